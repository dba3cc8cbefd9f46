"""Format `gptqmodel`: a GPTQ checkpoint whose `dynamic` rules give each linear its bits."""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qra_backends.integers.linear import GPTQIntegers

from qra_eval.export.base import Exported
from qra_eval.export.copied import IntegerExporter
from qra_eval.export.tuned import TunedRun
from qra_search.errors import DISTRIBUTION


class GPTQModelExporter(IntegerExporter):
    """Layers of the backend gptq, in GPTQ's second format: GPTQModel takes zero points that differ in no other."""

    name = "gptqmodel"
    summary = "GPTQ checkpoint with `dynamic` bits for GPTQModel, the adapter beside it"
    engine = "gptqmodel"
    layer = GPTQIntegers

    def write(self, run: TunedRun, out: Path) -> Exported:
        done = super().write(run, out)
        config = json.loads((out / "config.json").read_text())["quantization_config"]
        (out / "quantize_config.json").write_text(json.dumps(config, indent=1) + "\n")
        return done

    def quantization(self, run: TunedRun) -> dict[str, Any]:
        dynamic: dict[str, dict[str, Any]] = {}
        sizes = self.sizes(run)
        ways = list(sizes.values())
        common = max(ways, key=ways.count, default=(4, 64))
        for linear in run.linears:
            pattern = f"^{re.escape(linear.name)}$"
            if linear.name not in sizes:
                dynamic[f"-:{pattern}"] = {}
            elif sizes[linear.name] != common:
                bits, size = sizes[linear.name]
                group_size = -1 if size == linear.in_features else size
                dynamic[f"+:{pattern}"] = {"bits": bits, "group_size": group_size, "sym": False}
        return {
            "quant_method": "gptq",
            "checkpoint_format": "gptq_v2",
            "bits": common[0],
            "group_size": common[1],
            "sym": False,
            "desc_act": False,
            "lm_head": False,
            "pack_dtype": "int32",
            "dynamic": dynamic,
            "meta": {"quantizer": [f"qra:{_version()}"]},
        }

    def reload(self, run: TunedRun, out: Path) -> tuple[Any, str]:
        note = "compared by unpacking the written file in this process; GPTQModel.load(path) loads it"
        return self.unpacked(run, out), note


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "0"
