"""How many groups have to be degraded for real, for the prior to tell recorded evaluations apart?

    python benchmarks/study/probes.py --data DIR --cache BANK

Groups of three depths for each kind are degraded at both of their lowest bit-widths; the sensitivities are then scaled
by all of these probes, by every second one in turn (two ways to begin), by those of one bit-width, and by none. Beside
them is the prior that the recorded searches themselves had, an older one. For each: rank correlation with the losses of
each recorded search, and the error of a line fitted to the other searches.
"""

from __future__ import annotations

import json

import numpy as np
import protocol
from in_context import SEARCHES, held_out, score, trials
from lines import RESULTS
from scipy.stats import spearmanr

from qra_eval.sensitivities import measure
from qra_eval.sensitivities.cache import PRIOR_ROWS, probe_batch
from qra_eval.sensitivities.fisher import measure_fisher
from qra_eval.tasks.batches import passed_together
from qra_search.evaluation.sensitivities import Sensitivities
from qra_search.log.trial_log import TrialLog


def main() -> None:
    parser = protocol.options(__doc__, seeds=1)
    options = parser.parse_args()
    _, commit = protocol.begin(parser, options)
    evaluator = protocol.evaluator("gsm8k", options.data, cache=options.cache)
    bench, model, space = evaluator.workbench, evaluator.quantized, evaluator.space
    gain = evaluator.sensitivities().rank_gain
    rows = bench.rows("calibration", PRIOR_ROWS)
    model.unquantize()
    found = measure_fisher(bench, model.levels, passed_together(rows)).damage
    raw = np.array([sum(found[linear.name] for linear in group.linears) for group in space.groups])
    kinds = [group.kind or group.name for group in space.groups]
    measure.MANY_PROBES = len(space) * len(space.bits)  # none is left out
    pairs = measure.probed(space)
    with model.in_float32() as blocks:
        probes = measure.degrade_groups(bench, blocks, model.levels, pairs, probe_batch(rows))[0]
    probes.sort(key=lambda probe: pairs.index(probe[:2]))
    recorded = {name: trials(name, evaluator) for name in SEARCHES}
    row = {"commit": commit, "searches": {name: len(some[2]) for name, some in recorded.items()}}
    damages = {
        way: (len(some), measure.no_less_than_wider(measure.scale_damage(raw, kinds, some), space.widths))
        for way, some in ways(probes).items()
    }
    older = TrialLog(RESULTS / "trials-gsm8k-qra-module-0.jsonl").meta("prior")
    damages["as recorded"] = (len(probes), Sensitivities.from_dict(older).bits_damage)
    for way, (count, damage) in damages.items():
        scores = {name: score(damage, gain, bits, ranks) for name, (bits, ranks, _) in recorded.items()}
        losses = {name: figures[2] for name, figures in recorded.items()}
        row[way] = {
            "probes": count,
            "rank": {n: round(float(spearmanr(scores[n], losses[n]).statistic), 4) for n in SEARCHES},
            "held-out error": held_out(scores, losses, "line"),
        }
    print(json.dumps(row, indent=1))
    with (RESULTS / "probes.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def ways(probes: list[tuple[int, int, float]]) -> dict[str, list[tuple[int, int, float]]]:
    """Probes by way of choosing among them; they come by group, the lower bit-width first."""
    lower, upper = probes[::2], probes[1::2]
    pairs = list(zip(lower, upper, strict=True))
    return {
        "all": probes,
        "in turn": [pair[n % 2] for n, pair in enumerate(pairs)],
        "in turn, from the upper": [pair[(n + 1) % 2] for n, pair in enumerate(pairs)],
        "lower": lower,
        "upper": upper,
        "none": [],
    }


if __name__ == "__main__":
    main()
