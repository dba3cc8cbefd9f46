"""Format `recipe`: the bits of a plan as input of tools that quantize by themselves; no weights are written."""

from __future__ import annotations

import math
import re
from pathlib import Path

import yaml

from qra_eval.export import Exported, Exporter
from qra_eval.export.gguf import make_tensor_namer
from qra_eval.export.tuned import TunedRun
from qra_eval.models.gguf_families import list_family_issues
from qra_search.files import write_json, write_text

LLAMA_CPP_FILE, EXLLAMA_FILE, AUTO_ROUND_FILE = "tensor-types.txt", "exllamav3.yaml", "layer_config.json"
LLAMA_CPP_TYPES = {1.5: "IQ1_S", 2: "Q2_K", 3: "Q3_K", 4: "Q4_K", 5: "Q5_K", 6: "Q6_K", 8: "Q8_0", 16: "BF16"}
"""llama.cpp's type of a width, for plans in levels of others; a width between two of them takes the wider type."""
EXLLAMA_BITS = (1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 16)
HEAD_BITS = 6
"""exllamav3's own default for a head that the plan says nothing of."""


class RecipeExporter(Exporter):
    """Files for `llama-quantize`, exllamav3 and AutoRound, which then quantize the original model at these bits."""

    name = "recipe"
    needs_adapter = False

    def write(self, run: TunedRun, out: Path) -> Exported:
        widths = read_widths(run)
        linears = {name: width for name, width in widths.items() if name in run.levels}
        head = next((width for name, width in reversed(widths.items()) if name not in linears), HEAD_BITS)
        tensors = {name: round_up(width, EXLLAMA_BITS) for name, width in linears.items()}
        sizes = {name: run.base.get_submodule(name).weight.numel() for name in linears}
        mean = sum(tensors[name] * size for name, size in sizes.items()) / sum(sizes.values())
        recipe = {
            "achieved_bpw": round(mean, 4),
            "head_bits": round_up(head, EXLLAMA_BITS),
            "tensors": tensors,
        }
        write_text(out / EXLLAMA_FILE, yaml.safe_dump(recipe, sort_keys=False))
        write_json(out / AUTO_ROUND_FILE, {name: {"bits": math.ceil(w)} for name, w in linears.items()})
        notes = [
            f"exllamav3: convert.py -i MODEL -o OUT -w WORK --recipe {out / EXLLAMA_FILE}",
            f'AutoRound: auto-round --model MODEL --layer_config "$(cat {out / AUTO_ROUND_FILE})"',
            "a recipe has no adapter, as it was tuned on other codes: tune again on what these tools write",
        ]
        issues = list_family_issues(run.config)
        if issues:
            notes.append(f"nothing is written for llama.cpp, because {issues[0]}")
        else:
            write_text(out / LLAMA_CPP_FILE, "".join(f"{line}\n" for line in list_tensor_types(run)))
            notes.append(
                f"llama.cpp: llama-quantize --tensor-type-file {out / LLAMA_CPP_FILE} MODEL.gguf OUT.gguf Q4_K_M"
            )
        return Exported(out, tuple(notes))


def read_widths(run: TunedRun) -> dict[str, float]:
    groups = run.plan["groups"]
    return {name: group.get("width", group["bits"]) for group in groups for name in group["linears"]}


def round_up(width: float, allowed: tuple[float, ...]) -> float:
    """The least of the allowed widths that is not below this one."""
    return min(other for other in allowed if other >= width)


def list_tensor_types(run: TunedRun) -> list[str]:
    """Lines of `llama-quantize --tensor-type-file`: an expression that one tensor's name matches, and its type.

    Experts of a layer are one tensor, which takes the type of the widest.
    """
    from gguf import GGMLQuantizationType

    levels = {name: group["bits"] for group in run.plan["groups"] for name in group["linears"]}
    translate_name = make_tensor_namer(run.config)
    types = {}
    for name, width in sorted(read_widths(run).items(), key=lambda item: item[1]):
        level = str(levels[name])
        own = (
            level
            if level in GGMLQuantizationType.__members__
            else LLAMA_CPP_TYPES[round_up(width, tuple(LLAMA_CPP_TYPES))]
        )
        types[f"{translate_name(name)}.weight"] = own
    return [f"^{re.escape(name)}$={kind}" for name, kind in types.items()]
