"""When an evaluation is not worth ending: its training loss can no longer fall to where any useful plan ends."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qra_eval.tuning.training import TrainerCallback, Training

WINDOW = 3
"""Steps over which losses are averaged: batches differ by more than a step gains."""
EARLIEST = 1 / 3
"""Share of the steps before which no evaluation is cut short: most of the fall comes early, as the rate rises."""
LEAST_MARGIN = 1.0
"""Nats above the untuned model's loss that are always allowed."""


def ceiling(untuned: float, vocabulary: int, share: float) -> float:
    """The highest loss in nats at which a plan's tuning may plausibly end.

    Args:
        untuned: loss of the unquantized, untuned model, which every useful plan ends near or below.
        vocabulary: a blind guess among so many tokens has the loss ln(vocabulary).
        share: how far up the way from the one to the other a plan may end.
    """
    return untuned + max(share * (math.log(vocabulary) - untuned), LEAST_MARGIN)


def optimistic_end(losses: Sequence[float], steps: int) -> float:
    """Where training would end if its loss went on falling as fast as it ever did; -inf while that cannot be said.

    Args:
        losses: of the steps so far.
        steps: that are to be made in all.
    """
    done = len(losses)
    if done < 2 * WINDOW or done < EARLIEST * steps:
        return -math.inf
    means = [sum(losses[i : i + WINDOW]) / WINDOW for i in range(done - WINDOW + 1)]
    fastest = max(0.0, *((means[i] - means[j]) / (j - i) for i in range(len(means)) for j in range(i + 1, len(means))))
    return means[-1] - fastest * (steps - done)


def is_hopeless(losses: Sequence[float], steps: int, highest: float) -> bool:
    """Whether no plausible end of this training lies at or below `highest`."""
    return optimistic_end(losses, steps) > highest


class StopHopeless(TrainerCallback):
    """Ends a training of which no plausible end lies at or below `highest`."""

    def __init__(self, highest: float):
        self.highest = highest

    def after(self, training: Training) -> bool:
        return is_hopeless(training.losses, training.steps, self.highest)
