"""What found plans look like, and how well the search foresaw what it saw; from the recorded trials alone.

python benchmarks/study/looks.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import protocol
from lines import RESULTS, read
from scipy.stats import spearmanr

from qra_search.evaluation.sensitivities import Sensitivities
from qra_search.log.recorded import recorded_space
from qra_search.log.trial_log import TrialLog


def by(values: np.ndarray, labels: list[str], weights: np.ndarray) -> dict[str, float]:
    """Mean of values (G,) over the groups of each label, weighted."""
    names = dict.fromkeys(labels)
    at = np.array(labels)
    return {name: float(np.average(values[at == name], weights=weights[at == name])) for name in names}


def table(title: str, columns: list[str], rows: list[list[str]]) -> list[str]:
    return ["", f"## {title}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns),
            *("| " + " | ".join(row) + " |" for row in rows)]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--search", default="gsm8k-qra-module-0")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    log = TrialLog(options.results / f"trials-{options.search}.jsonl")
    space = recorded_space(log)
    sensitivities = Sensitivities.from_dict(log.meta("prior"))
    trials = [t for t in log if t.evaluation is not None]
    text = [f"# What {options.search} found"]
    weights = np.array([g.weights for g in space.groups], float)
    kinds = [g.kind for g in space.groups]
    depth = np.array([g.depth or 0 for g in space.groups])
    quarter = [f"{['first', 'second', 'third', 'last'][int(4 * d / (depth.max() + 1))]} quarter" for d in depth]
    plans = [d for d in read(options.results / "plans.jsonl") if d["search"] == options.search]
    damage = sensitivities.bits_damage[:, 0] / weights
    for title, labels in (("By kind of linear", kinds), ("By depth", quarter)):
        names = list(dict.fromkeys(labels))
        rows = []
        for d in plans:
            plan = protocol.expanded(d)
            for what, values in (("bits", plan.bits), ("rank", plan.ranks)):
                means = by(np.array(values, float), labels, weights)
                rows.append([d["budget"], what, *(f"{means[n]:.2f}" if what == "bits" else f"{means[n]:.0f}"
                                                  for n in names)])  # fmt: skip
        text += table(f"{title}: mean bits (by weights) and mean rank", ["budget", "", *names], rows)
    rows = []
    for d in plans:
        plan = protocol.expanded(d)
        gain = sensitivities.rank_gain[:, -1] / weights
        rows.append([d["budget"], f"{spearmanr(damage, plan.bits)[0]:.2f}", f"{spearmanr(gain, plan.ranks)[0]:.2f}",
                     f"{spearmanr(plan.bits, plan.ranks)[0]:.2f}"])  # fmt: skip
    text += table(
        "Rank correlation over groups",
        ["budget", "bits with prior damage a weight", "rank with prior gain a weight", "bits with rank"],
        rows,
    )
    told = [t for t in trials if t.proposal.predicted_loss is not None]
    predicted = np.array([t.proposal.predicted_loss for t in told])
    seen = np.array([t.loss for t in told])
    error = seen - predicted
    text += [
        "",
        "## Foreseen and seen",
        "",
        f"Over {len(told)} proposals, before each was evaluated: rank correlation {spearmanr(predicted, seen)[0]:.3f}, "
        f"root mean square error {np.sqrt(np.mean(error**2)):.4f} nats (mean {error.mean():+.4f}), "
        f"of a spread of {seen.std():.4f}.",
    ]
    (options.results / f"looks-{options.search}.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
