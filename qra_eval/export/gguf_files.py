"""What stands beside a GGUF model: its adapter as a GGUF LoRA, Ollama's Modelfile, and llama.cpp's own recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qra_eval.export.gguf_blocks import rounded_blocks, takes
from qra_eval.export.gguf_names import EXPERT, row_order, tensor_namer
from qra_eval.export.tuned import Chosen, TunedRun
from qra_eval.models.gguf_families import family_of
from qra_search.space.memory import UNQUANTIZED_BITS

MODEL_FILE, ADAPTER_FILE, TYPES_FILE, COMMAND_FILE = "model.gguf", "adapter.gguf", "tensor-types.txt", "quantize.sh"
OLLAMA_FILE = "Modelfile"
K_QUANTS = {2: "Q2_K", 3: "Q3_K", 4: "Q4_K", 5: "Q5_K", 6: "Q6_K", 8: "Q8_0"}
PLAIN_QUANTS = {2: "Q4_0", 3: "Q4_0", 4: "Q4_1", 5: "Q5_1", 6: "Q8_0", 8: "Q8_0"}
"""What llama-quantize is asked for where a row is no multiple of 256: the narrowest types in blocks of 32."""


def write_lora(run: TunedRun, path: Path) -> None:
    """The adapter as llama.cpp reads it: `<tensor>.lora_a` (rank, in), `<tensor>.lora_b` (out, rank), one alpha.

    llama.cpp scales by alpha over the rank of each tensor; where that is not the adapter's own scaling, B takes the
    rest. Factors are saved in bfloat16 and stay so, unless B then has more digits.
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    name_of = tensor_namer(run.config)
    writer = GGUFWriter(path, family_of(run.config).architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    ranks = [factors.rank for factors in run.factors.values()]
    common = max(set(ranks), key=ranks.count)
    alpha = next(f.scaling * f.rank for f in run.factors.values() if f.rank == common)
    writer.add_float32("adapter.lora.alpha", alpha)
    parts: dict[str, list[Tensor]] = {}
    for name in (linear.name for linear in run.linears if linear.name in run.factors):  # experts by their number
        factors = run.factors[name]
        order = row_order(run.config, name, factors.B.shape[0])
        B = factors.B.float() * (factors.scaling * factors.rank / alpha)
        for part, factor in (("a", factors.A.float()), ("b", B if order is None else B[order])):
            parts.setdefault(f"{name_of(name)}.weight.lora_{part}", []).append(factor.contiguous())
    experts = {name_of(name) for name in run.factors if EXPERT.search(name)}
    for name, several in parts.items():
        factor = torch.stack(several) if name.partition(".weight.")[0] in experts else several[0]
        kind = "BF16" if torch.equal(factor, factor.to(torch.bfloat16).float()) else "F32"
        writer.add_tensor(name, rounded_blocks(factor, kind), raw_dtype=GGMLQuantizationType[kind])
    finish(writer)


def write_modelfile(out: Path, *, adapter: bool) -> None:
    """What `ollama create` reads: the files beside it, and the prompt as it comes, as in tuning."""
    lines = [f"FROM ./{MODEL_FILE}", *([f"ADAPTER ./{ADAPTER_FILE}"] if adapter else []), "TEMPLATE {{ .Prompt }}"]
    (out / OLLAMA_FILE).write_text("\n".join(lines) + "\n")


def write_recipe(run: TunedRun, out: Path) -> list[str]:
    """Types for `llama-quantize`, one tensor a line, and the command that takes them."""
    name_of = tensor_namer(run.config)
    lines, kinds = [], []
    for linear in run.linears:
        if linear.bits == UNQUANTIZED_BITS:
            kind = "F32" if run.dtype == torch.float32 else "BF16"
        else:
            table = K_QUANTS if linear.in_features % 256 == 0 else PLAIN_QUANTS
            kind = table[min(b for b in table if b >= min(linear.bits, 8))]
            kind = kind if takes(kind, linear.in_features) else "F16"
        kinds.append(kind)
        lines.append(f"{re.escape(name_of(linear.name))}\\.weight={kind.lower()}")
    (out / TYPES_FILE).write_text("\n".join(dict.fromkeys(lines)) + "\n")
    common = max(set(kinds), key=kinds.count)
    (out / COMMAND_FILE).write_text(
        "#!/bin/sh\n"
        "# Quantizes an unquantized GGUF file (qra export RUN --format gguf --option weights=bf16) by this plan.\n"
        'here="$(dirname "$0")"\n'
        f'llama-quantize --tensor-type-file "$here/{TYPES_FILE}" \\\n'
        "    --token-embedding-type bf16 --output-tensor-type bf16 \\\n"
        f'    "${{1:?the unquantized file}}" "${{2:?the file to write}}" {_file_type(common)}\n'
    )
    narrow = narrow_linears(run)
    if not narrow:
        return []
    lengths = ", ".join(str(n) for n in sorted({linear.in_features for linear in narrow}))
    return [
        f"K-quants need rows that are multiples of 256; {len(narrow)} linears have rows of {lengths}, and get "
        "Q4_0 to Q8_0 in the recipe: at 2 and 3 bits the file is larger than the plan"
    ]


def finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def narrow_linears(run: TunedRun) -> list[Chosen]:
    """Linears below 8 bits that no K-quant takes."""
    return [linear for linear in run.linears if linear.bits < 8 and linear.in_features % 256]


def _file_type(kind: str) -> str:
    """The name that llama-quantize knows a file of mostly this type by."""
    return {"Q3_K": "Q3_K_S", "Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S"}.get(kind, kind)
