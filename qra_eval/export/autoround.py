"""Format `autoround`: the plan as AutoRound's `layer_config`."""

from __future__ import annotations

import json
from pathlib import Path

from qra_eval.export.base import Exported, Exporter
from qra_eval.export.grids import group_that_divides
from qra_eval.export.shards import target_bits
from qra_eval.export.tuned import TunedRun
from qra_search.space.memory import UNQUANTIZED_BITS

GROUP_SIZE = 128
WIDTHS = (2, 3, 4, 8)


class AutoRoundExporter(Exporter):
    """The plan's bits for AutoRound to quantize with; no weights.

    Args:
        group_size: weights of a row that share a scale; halved for a linear whose row it does not divide.
        symmetric: grids without zero points, which is AutoRound's default.
    """

    name = "autoround"
    summary = "AutoRound's layer_config as JSON"
    file = True

    def __init__(self, group_size: int = GROUP_SIZE, symmetric: bool = True):
        self.group_size, self.symmetric = int(group_size), symmetric

    def check(self, run: TunedRun) -> list[str]:
        _, reasons, _ = target_bits(run.linears, WIDTHS, "ignore")
        return reasons

    def write(self, run: TunedRun, out: Path) -> Exported:
        layers = {
            linear.name: {"bits": 16, "data_type": "fp"}
            if linear.bits == UNQUANTIZED_BITS
            else {
                "bits": linear.bits,
                "group_size": group_that_divides(linear.in_features, self.group_size),
                "sym": self.symmetric,
                "data_type": "int",
            }
            for linear in run.linears
        }
        out.write_text(json.dumps(layers, indent=1) + "\n")
        return Exported(
            out,
            (
                f'AutoRound(model, tokenizer, layer_config=json.load(open("{out}"))) quantizes by this plan',
                "choices only, no weights: there is nothing whose logits could be compared",
            ),
        )
