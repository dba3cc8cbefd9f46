"""Format `torchao`: a FqnToConfig with a configuration for each linear, as JSON and as a snippet that applies it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qra_eval.export.base import Exported, Exporter
from qra_eval.export.grids import group_that_divides
from qra_eval.export.shards import target_bits
from qra_eval.export.tuned import TunedRun
from qra_search.space.memory import UNQUANTIZED_BITS

CONFIG_FILE, SNIPPET_FILE = "fqn_to_config.json", "quantize.py"
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)
GROUP_SIZE = 64

SNIPPET = '''"""Quantize a model with torchao by the plan beside this file: python quantize.py MODEL OUT."""

import json
import sys
from pathlib import Path

import torch
from torchao.core.config import config_from_dict
from transformers import AutoModelForCausalLM, TorchAoConfig

config = config_from_dict(json.loads((Path(__file__).parent / "{file}").read_text()))
source, out = sys.argv[1:3]
model = AutoModelForCausalLM.from_pretrained(
    source, dtype=torch.{dtype}, quantization_config=TorchAoConfig(quant_type=config)
)
model.save_pretrained(out)
'''


class TorchAOExporter(Exporter):
    """The plan's bits for torchao to quantize with; no weights.

    torchao rounds by its own rules, so its model is not the tuned one. It keeps 1 to 7 bits one in each byte: no
    smaller than 8 bits.

    Args:
        group_size: weights of a row that share a scale; halved for a linear whose row it does not divide.
    """

    name = "torchao"
    summary = "FqnToConfig as JSON with a script that applies it"

    def __init__(self, group_size: int = GROUP_SIZE):
        self.group_size = int(group_size)

    def check(self, run: TunedRun) -> list[str]:
        _, reasons, _ = target_bits(run.linears, WIDTHS, "ignore")
        return reasons

    def write(self, run: TunedRun, out: Path) -> Exported:
        entries = {
            linear.name: None
            if linear.bits == UNQUANTIZED_BITS
            else intx_config(linear.bits, group_that_divides(linear.in_features, self.group_size), linear.in_features)
            for linear in run.linears
        }
        config = {
            "_type": "FqnToConfig",
            "_version": 1,
            "_data": {"fqn_to_config": entries},
        }
        (out / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n")
        dtype = str(run.dtype).removeprefix("torch.")
        (out / SNIPPET_FILE).write_text(SNIPPET.format(file=CONFIG_FILE, dtype=dtype))
        notes = [
            f"`python {out / SNIPPET_FILE} MODEL OUT` quantizes a model, such as one exported as merged, by this plan"
        ]
        if any(linear.bits < 8 for linear in run.linears):
            notes.append("torchao keeps 1 to 7 bits one in each byte: they take as much memory as 8 bits")
        notes.append("choices only, no weights: there is nothing whose logits could be compared")
        return Exported(out, tuple(notes))


def intx_config(bits: int, group_size: int, in_features: int) -> dict[str, Any]:
    """torchao's serialized IntxWeightOnlyConfig: signed, symmetric, a scale for each group (or row)."""
    if group_size == in_features:
        granularity = {"_type": "PerAxis", "_version": 1, "_data": {"axis": 0}}
    else:
        granularity = {"_type": "PerGroup", "_version": 1, "_data": {"group_size": group_size}}
    return {
        "_type": "IntxWeightOnlyConfig",
        "_version": 2,
        "_data": {
            "weight_dtype": {"_type": "torch.dtype", "_data": f"int{bits}"},
            "granularity": granularity,
            "mapping_type": {"_type": "MappingType", "_data": "SYMMETRIC"},
            "scale_dtype": None,
            "intx_packing_format": {"_type": "IntxPackingFormat", "_data": "UNPACKED_TO_INT8"},
            "intx_choose_qparams_algorithm": {"_type": "IntxChooseQParamsAlgorithm", "_data": "AFFINE"},
        },
    }
