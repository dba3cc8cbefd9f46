"""The sensitivities of an evaluator: measured once, and kept from one run to the next."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qra_eval.quantized.bank import bank_folder
from qra_eval.quantized.model import CALIBRATION_ROWS
from qra_eval.quantized.pieces import Pieces
from qra_eval.sensitivities.measure import measure_sensitivities
from qra_eval.tasks.batches import PASS_MULTIPLE, Batch, collate, passed_together
from qra_eval.tasks.encoding import Encoded
from qra_eval.tuning.fine_tuner import FineTuner
from qra_search.evaluation.sensitivities import Sensitivities
from qra_search.files import write_json
from qra_search.space.memory import UNQUANTIZED_BITS

SENSITIVITIES_ROWS = 16
PROBE_ROWS, PROBE_TOKENS = 8, 512
"""Of these, on which groups are degraded for real, at most; and about as many tokens."""
SENSITIVITIES_VERSION = 6
"""Of the way in which the sensitivities are measured: those of another version are not used."""


def kept_or_measured(tuner: FineTuner) -> tuple[Sensitivities, dict[str, Any]]:
    """The sensitivities as an earlier run of the same content kept them, or measured and kept; and the report on them.

    Their cost is what measuring took, whether or not they were measured again.
    """
    path = sensitivities_file(tuner)
    kept = _kept(path)
    if kept is not None:
        return kept
    pieces = Pieces(path.with_suffix(""), tuner.progress, "measures the same sensitivities")
    try:
        sensitivities, report = measured(tuner, pieces)
    except FileNotFoundError:  # another made all pieces, kept what they gave, and removed them
        kept = _kept(path)
        if kept is None:
            raise
        return kept
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"prior": sensitivities.to_dict(), "report": report})
    pieces.forget()
    return sensitivities, report


def _kept(path: Path) -> tuple[Sensitivities, dict[str, Any]] | None:
    """What is there; None if nothing is, or it is not whole."""
    try:
        data = json.loads(path.read_text())
        return Sensitivities.from_dict(data["prior"]), data["report"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def probe_batch(rows: Sequence[Encoded]) -> Batch:
    """The rows on which groups are degraded for real: drawn at random, for the shortest are not like the others."""
    count = max(1, min(PROBE_ROWS, PROBE_TOKENS // max(map(len, rows))))
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]
    return collate([rows[i] for i in drawn], multiple=PASS_MULTIPLE)


def sensitivities_file(tuner: FineTuner) -> Path:
    """Where the sensitivities are kept, named by all that they follow from, and by what their cost is a share of."""
    model = tuner.quantized
    levels = [model.backend.identity(b) for b in model.space.bits if b != UNQUANTIZED_BITS]
    identity = [SENSITIVITIES_VERSION, model.identity, levels, model.space.signature]
    identity += [tuner.rows.hash(train=CALIBRATION_ROWS)] if model.backend.calibrated else []
    identity += [tuner.rows.hash(train=SENSITIVITIES_ROWS), tuner.evaluation_tokens(), str(model.compute)]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return bank_folder(model.quantization.cache) / f"prior-{digest[:16]}.json"


def measured(tuner: FineTuner, pieces: Pieces) -> tuple[Sensitivities, dict[str, Any]]:
    """The sensitivities, measured on the first train rows; see `qra_eval.sensitivities.measure`.

    Args:
        pieces: of which those are made that no other process has made or is at.
    """
    model = tuner.quantized
    rows = tuner.rows("train", SENSITIVITIES_ROWS)
    with model.blocks.kept():  # for both: what fits the device is sent there once
        tuner.switcher.prepare()  # quantizing is no part of the sensitivities' time
        start = time.perf_counter()
        tuner.switcher.unquantize()
        sensitivities, report = measure_sensitivities(tuner, passed_together(rows), probe_batch(rows), pieces)
    tokens = report["forward_tokens"]
    if model.backend.calibrated:
        tokens += sum(map(len, tuner.rows("train", CALIBRATION_ROWS)))
    cost = tokens / tuner.evaluation_tokens()
    seconds = time.perf_counter() - start
    return replace(sensitivities, cost=cost, seconds=seconds), {**report, "forward_tokens": tokens, "cost": cost}
