"""The sensitivities of an evaluator: measured once, and stored for later runs."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qra_eval.quantized.bank import bank_folder
from qra_eval.quantized.lock import lock_work
from qra_eval.sensitivities.measure import measure_sensitivities
from qra_eval.tasks.batches import PASS_MULTIPLE, Batch, collate
from qra_eval.tuning.fine_tuner import FineTuner
from qra_search.allocate.sensitivities import Sensitivities
from qra_search.files import write_json
from qra_search.space.memory import UNQUANTIZED_BITS

SAMPLED_ROWS = 16
PROBE_ROWS, PROBE_TOKENS = 8, 512
"""Of so many train rows, those on which groups are degraded for real, at most; and about as many tokens."""
SENSITIVITIES_VERSION = 7
"""Of the way in which the sensitivities are measured: those of another version are not used."""


def read_or_measure(tuner: FineTuner) -> tuple[Sensitivities, dict[str, Any]]:
    """The sensitivities and the report on them: those of an earlier run of the same content, or measured and stored.

    Their cost is what measuring took, whether or not they were measured again. Of processes that need the same ones
    at the same time one measures, and the others wait.
    """
    path = sensitivities_file(tuner)
    if (stored := _read(path)) is not None:
        return stored
    with lock_work(path.with_suffix(".lock"), "measures the same sensitivities", tuner.progress):
        if (stored := _read(path)) is not None:
            return stored
        sensitivities, report = measure(tuner)
        write_json(path, {"prior": sensitivities.to_dict(), "report": report})
    return sensitivities, report


def _read(path: Path) -> tuple[Sensitivities, dict[str, Any]] | None:
    """The content of a file; None if there is none, or it is damaged."""
    try:
        data = json.loads(path.read_text())
        return Sensitivities.from_dict(data["prior"]), data["report"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def probe_batch(tuner: FineTuner) -> Batch:
    """The rows on which groups are degraded for real: a random sample, as the shortest are not like the others."""
    rows = tuner.rows("train", SAMPLED_ROWS)
    count = max(1, min(PROBE_ROWS, PROBE_TOKENS // max(map(len, rows))))
    sample = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]
    return collate([rows[i] for i in sample], multiple=PASS_MULTIPLE)


def sensitivities_file(tuner: FineTuner) -> Path:
    """The file of the sensitivities, named by all that they follow from, and by what their cost is a share of."""
    model = tuner.quantized
    levels = [model.backend.identity(b) for b in model.space.bits if b != UNQUANTIZED_BITS]
    identity = [SENSITIVITIES_VERSION, model.identity, levels, model.space.signature]
    identity += [model.calibration, tuner.rows.hash(train=SAMPLED_ROWS), tuner.evaluation_tokens(), str(model.compute)]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return bank_folder(model.quantization.cache) / f"prior-{digest[:16]}.json"


def measure(tuner: FineTuner) -> tuple[Sensitivities, dict[str, Any]]:
    """Measure the sensitivities on the first train rows; see `qra_eval.sensitivities.measure`."""
    model = tuner.quantized
    tuner.switcher.unquantize()
    model.figures()  # quantizes too, which is no part of the sensitivities' time
    tuner.switcher.prepare()
    start = time.perf_counter()
    tuner.switcher.unquantize()
    sensitivities, report = measure_sensitivities(tuner, probe_batch(tuner))
    cost = report["forward_tokens"] / tuner.evaluation_tokens()
    seconds = time.perf_counter() - start
    return replace(sensitivities, cost=cost, seconds=seconds), {**report, "cost": cost}
