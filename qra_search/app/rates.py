"""The learning rate of a full tuning, foretold from short trials: which one is next, and what they say.

The best rate falls as a power of the steps, by a factor that differs by model (docs/tuning.md).
Trials at one length, by factors of two until the best has a worse one on either side, give its best rate by a parabola
in the logarithm; the law carries it to the full length.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from qra_search.app.evaluator import RateTrial
from qra_search.errors import BadInput

LAW_RATE, LAW_STEPS, LAW_MIN_STEPS = 1.8e-3, 200, 60
"""Best rate after so many steps, the middle of the models that were measured; fewer steps than the last count as these,
since the best rate is then at the edge of divergence."""
LAW_SLOPE, LAW_SLOPE_DEVIATION = -0.27, 0.11
"""Slope of the best rate over the steps, both in logarithms, and its deviation between models and tasks. Bjorck et al.
(arXiv 2409.19913) find -0.32 in pre-training."""
TRIAL_STEPS, TRIAL_SHARE = 100, 0.1
"""A trial's steps, at least, and as a share of those of the tuning."""
MIN_TRIALS = 3
TRIAL_NOISE = 0.025
"""Deviation of a trial's log loss, of trials that see the same rows."""
WIDE_DEVIATION = 0.6
"""Deviation of the foretold rate, in factors of two, beyond which trials of twice the length are worth their cost."""
MAX_LOG_LOSS_GAP = math.log(2)
"""By how much a trial counts as worse than another in log loss, at most; one that diverged counts as this."""
MAX_DOUBLINGS = 6
"""Factors of two from the first rate to the last that is tried."""


@dataclass(frozen=True)
class RateForecast:
    """The learning rate for a tuning of so many steps.

    Attributes:
        deviation: of the rate, in factors of two.
        trials: that it follows from; empty: from the law alone.
        is_at_edge: the best of the trials is the lowest or the highest rate, so a better one may lie beyond.
    """

    rate: float
    steps: int
    deviation: float
    trials: tuple[RateTrial, ...] = ()
    is_at_edge: bool = False

    @property
    def cost(self) -> float:
        """Steps of the trials, in tunings."""
        return sum(trial.made for trial in self.trials) / self.steps

    def __str__(self) -> str:
        head = f"learning rate {self.rate:g} for {self.steps} steps, foretold"
        if not self.trials:
            return f"{head} from the number of steps alone, because trials would take longer than the tuning"
        lengths = " and ".join(map(str, sorted({trial.steps for trial in self.trials})))
        text = f"{head} from {len(self.trials)} trials of {lengths} steps"
        text += f", which cost {self.cost:.0%} of a tuning"
        edge = " (warning: the best rate is at the edge of the rates tried, so a better one may lie beyond)"
        return text + edge * self.is_at_edge


def foretell_rate(trials: Sequence[RateTrial], steps: int) -> RateForecast:
    """The best rate of a tuning of so many steps, by its trials, or by the law alone if there are none.

    >>> foretell_rate((), 600).rate, foretell_rate((), 150).rate
    (0.0013, 0.0019)
    """
    if not trials:
        return RateForecast(round_rate(_compute_law_rate(steps)), steps, 1.0)
    fits = [
        fit_best_rate(filter_trials_by_length(trials, length)) for length in sorted({t.steps for t in trials})
    ]
    first, last = fits[0], fits[-1]
    slope, variance = LAW_SLOPE, LAW_SLOPE_DEVIATION**2
    if len(fits) > 1:
        apart = math.log2(last.steps / first.steps)
        own = (last.deviation**2 + first.deviation**2) / apart**2
        slope = (slope * own + (last.log2_rate - first.log2_rate) / apart * variance) / (own + variance)
        variance = own * variance / (own + variance)
    ahead = math.log2(steps / last.steps)
    deviation = math.hypot(last.deviation, math.sqrt(variance) * ahead)
    rate = round_rate(2 ** (last.log2_rate + slope * ahead))
    return RateForecast(rate, steps, deviation, tuple(trials), last.is_at_edge)


def propose_next_trial(trials: Sequence[RateTrial], steps: int) -> tuple[float, int] | None:
    """Rate and steps of the next trial; None if there are enough, or they would cost more than the tuning."""
    first = max(TRIAL_STEPS, round(TRIAL_SHARE * steps))
    length = max([first, *(trial.steps for trial in trials)])
    known = filter_trials_by_length(trials, length)
    left = steps - sum(trial.made for trial in trials)
    if not known:
        return (round_rate(_compute_law_rate(length)), length) if MIN_TRIALS * length <= steps else None
    best = min(known, key=lambda t: (t.loss, t.rate))
    rates = [best.rate / 2] if math.isinf(best.loss) else [best.rate * 2, best.rate / 2]
    tried = {round(math.log2(trial.rate / known[0].rate)) for trial in known}
    missing = [rate for rate in rates if round(math.log2(rate / known[0].rate)) not in tried]
    if missing:
        is_near = abs(math.log2(missing[0] / known[0].rate)) < MAX_DOUBLINGS + 0.5
        return (missing[0], length) if is_near and (len(known) < MIN_TRIALS or length <= left) else None
    foretold = foretell_rate(trials, 2 * length)
    is_wide = foretell_rate(trials, steps).deviation > WIDE_DEVIATION
    if length == first and is_wide and MIN_TRIALS * 2 * length <= left:
        return foretold.rate, 2 * length
    return None


def _compute_law_rate(steps: int) -> float:
    return LAW_RATE * (max(steps, LAW_MIN_STEPS) / LAW_STEPS) ** LAW_SLOPE


def filter_trials_by_length(trials: Sequence[RateTrial], length: int) -> list[RateTrial]:
    return [trial for trial in trials if trial.steps == length]


class RateFit(NamedTuple):
    """log2 of the best rate of trials of one length, its deviation, and whether it is the lowest or the highest."""

    steps: int
    log2_rate: float
    deviation: float
    is_at_edge: bool


def fit_best_rate(trials: Sequence[RateTrial]) -> RateFit:
    """The best rate of trials of one length, by a parabola through the best one and its neighbours."""
    steps = trials[0].steps
    losses = {round(math.log2(trial.rate / trials[0].rate)): trial.loss for trial in trials}
    at = min(losses, key=lambda place: (losses[place], place))
    middle = math.log2(trials[0].rate) + at
    if not {at - 1, at + 1} <= losses.keys() or math.isinf(losses[at]):
        return RateFit(steps, middle, 1.0, True)
    lower, higher = (
        min(math.log(losses[place] / losses[at]), MAX_LOG_LOSS_GAP) for place in (at - 1, at + 1)
    )
    bend = lower + higher
    if bend < TRIAL_NOISE:
        return RateFit(steps, middle, 1.0, False)
    off = (lower - higher) / (2 * bend)
    deviation = min(1.0, TRIAL_NOISE / bend * math.sqrt(0.5 + 6 * off**2))
    return RateFit(steps, middle + off, deviation, False)


def round_rate(rate: float) -> float:
    return float(f"{rate:.2g}")


# -- what is kept ------------------------------------------------------------------------------
def make_trials_key(settings: Mapping[str, Any]) -> str:
    """Digest of what a trial follows from beside rate and steps, from the settings of a full tuning."""
    training = {name: v for name, v in settings.get("training", {}).items() if name != "learning_rate"}
    content = json.dumps([training, settings.get("evaluator"), settings.get("data")], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def read_trials(path: Path, key: str) -> list[RateTrial]:
    """The trials with a key, in the order they were made; raises BadInput if the file is damaged."""
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        found = [line for line in lines if line.pop("key") == key]
        return [
            RateTrial(**{**line, "loss": math.inf if line["loss"] is None else line["loss"]})
            for line in found
        ]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{path} is damaged: delete it, and the trials of learning rates will be made again"
        ) from error


def append_trial(path: Path, key: str, trial: RateTrial) -> None:
    loss = trial.loss if math.isfinite(trial.loss) else None
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"key": key, **asdict(trial), "loss": loss}) + "\n")
