"""The plan in a GGUF file that someone quantized: its type by tensor, to start from, to tune on, or to beat."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qra_eval.models.names import check_gguf
from qra_search.integrations.plans import Foreign
from qra_search.space.levels import LevelName
from qra_search.space.memory import UNQUANTIZED_BITS

LINEARS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Linears of a decoder layer as llama.cpp and as transformers call them."""
OTHERS = {
    "phi2": {"attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"},
    "phi3": {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
}
"""Those that are called otherwise, by llama.cpp's architecture."""
EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
"""Linears of all experts of a layer, in one tensor."""
FLOATS = ("F32", "F16", "BF16")


def read_gguf_plan(path: Path) -> Foreign:
    """Types of the linears of every decoder layer.

    Raises:
        ValueError: no GGUF file, none of these linears in it, or a type that is not stored here.
    """
    check_gguf(path)  # before libraries are loaded that take seconds
    from qra_backends.ggml.types import TYPES

    from qra_eval.models.from_gguf import read_header

    levels: dict[str, LevelName] = {}
    widths: dict[str, float] = {}
    header = read_header(path)
    known = {**LINEARS, **OTHERS.get(header.value("general.architecture"), {})}
    for tensor in header.tensors:
        names, kind = _linears(tensor, known), tensor.tensor_type.name
        if names and kind not in TYPES and kind not in FLOATS:
            raise ValueError(f"{path}: {tensor.name} is {kind}, and types are {', '.join((*TYPES, *FLOATS))}")
        for name in names:
            levels[name] = UNQUANTIZED_BITS if kind in FLOATS else kind
            widths[name] = UNQUANTIZED_BITS if kind in FLOATS else TYPES[kind].width
    if not levels:
        raise ValueError(f"{path} has none of the linears of a decoder layer ({', '.join((*known, *EXPERTS))})")
    return Foreign(widths.get, tuple(widths), levels=levels)


def _linears(tensor: Any, known: Mapping[str, str]) -> list[str]:
    """The linears that a tensor is of, by transformers' names; none if it is another."""
    parts = tensor.name.split(".")
    if len(parts) != 4 or parts[0] != "blk" or parts[3] != "weight":
        return []
    layer = f"model.layers.{parts[1]}"
    if parts[2] in EXPERTS and len(tensor.shape) == 3:
        return [f"{layer}.mlp.experts.{i}.{EXPERTS[parts[2]]}" for i in range(int(tensor.shape[2]))]
    return [f"{layer}.{known[parts[2]]}"] if parts[2] in known else []
