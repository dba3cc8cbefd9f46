"""The sensitivities of an evaluator: measured once, and stored for later runs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from qra_eval.quantized.bank import get_bank_folder, lock_work
from qra_eval.sensitivities.measure import SAMPLED_ROWS, measure_sensitivities
from qra_eval.tuning.fine_tuner import FineTuner
from qra_search.files import write_json
from qra_search.schemas import Sensitivities
from qra_search.space.memory import UNQUANTIZED_BITS

SENSITIVITIES_VERSION = 12
"""Of the way in which the sensitivities are measured: those of another version are not used."""


def read_or_measure(tuner: FineTuner) -> Sensitivities:
    """The sensitivities of an earlier run of the same content, or measured and stored by one process, while others
    that need the same ones wait."""
    path = get_sensitivities_file(tuner)
    if (stored := _read(path)) is not None:
        return stored
    with lock_work(path.with_suffix(".lock"), "measures the same sensitivities", tuner.progress):
        if (stored := _read(path)) is not None:
            return stored
        sensitivities = measure_sensitivities(tuner)
        write_json(path, sensitivities.to_dict())
    return sensitivities


def _read(path: Path) -> Sensitivities | None:
    try:
        return Sensitivities.from_dict(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def get_sensitivities_file(tuner: FineTuner) -> Path:
    """The file of the sensitivities, named by all that they follow from, and by what their cost is a share of."""
    model = tuner.quantized_model
    levels = [model.backend.identity(b) for b in model.space.bits if b != UNQUANTIZED_BITS]
    identity = [SENSITIVITIES_VERSION, model.identity, levels, model.space.signature]
    tokens = tuner.count_evaluation_tokens()
    rows = tuner.rows.hash(train=max(SAMPLED_ROWS, model.plan_rows))
    identity += [rows, model.plan_rows, str(model.weighting), tokens, str(model.compute)]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return get_bank_folder(model.quantization.cache) / f"prior-{digest[:16]}.json"
