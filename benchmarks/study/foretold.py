"""How well differences between plans follow the sensitivities: the two constants of `qra_search.study.forecast`.

python benchmarks/study/foretold.py

Reads the recorded searches with a measured prior; pairs every mixed plan with every uniform one that the prior has
above it, and compares the difference of the losses of a short tuning with the predicted one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qra_search.log.recorded import recorded_state
from qra_search.log.trial_log import TrialLog
from qra_search.study.forecast import FACTOR, LEAST, WITHIN
from qra_search.surrogates.prior_table import prior_losses

LOGS = Path(__file__).parents[1] / "results" / "study"
MEASURED = "fisher"
LARGER = 1.1
"""A mixed plan is compared with uniform ones of at least its bytes over this."""


def differences(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true differences (N,) in nats of a log's pairs; both empty if its prior was not measured."""
    with TrialLog(path) as log:
        state = recorded_state(log)
    if state.sensitivities is None or MEASURED not in state.sensitivities.source:
        return np.zeros(0), np.zeros(0)
    trials = [t for t in state.full if t.seed == state.seed]
    predicted = prior_losses(state.space, state.sensitivities, [t.plan for t in trials])
    true = np.array([t.loss for t in trials])
    size = [state.space.memory_bytes(t.plan) for t in trials]
    pairs = [
        (m, u)
        for u, uniform in enumerate(trials)
        for m, mixed in enumerate(trials)
        if state.space.uniform_choice(uniform.plan) and not state.space.uniform_choice(mixed.plan)
        and size[m] <= LARGER * size[u] and predicted[m] < predicted[u]
    ]  # fmt: skip
    if not pairs:
        return np.zeros(0), np.zeros(0)
    m, u = np.array(pairs).T
    return predicted[m] - predicted[u], true[m] - true[u]


def main() -> None:
    everything = []
    for path in sorted(LOGS.glob("trials*.jsonl")):
        predicted, true = differences(path)
        if len(predicted):
            inside = np.abs(true - predicted) < WITHIN * np.hypot(FACTOR * predicted, LEAST)
            ratio = np.median(true / predicted)
            print(f"{path.name:45} {len(predicted):4} pairs, median ratio {ratio:5.2f}, within {inside.mean():.0%}")
            everything.append(inside)
    inside = np.concatenate(everything)
    print(f"{len(everything)} searches, {len(inside)} pairs, within {inside.mean():.1%}")


if __name__ == "__main__":
    main()
