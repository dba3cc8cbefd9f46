"""The plan in a GGUF file that someone quantized: its type by tensor, to start from, to tune on, or to beat."""

from __future__ import annotations

from pathlib import Path

from qra_eval.models.names import check_gguf
from qra_search.exchange.plans import Foreign
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
    for tensor in read_header(path).tensors:
        parts = tensor.name.split(".")
        if len(parts) != 4 or parts[0] != "blk" or parts[3] != "weight" or parts[2] not in LINEARS:
            continue
        name, kind = f"model.layers.{parts[1]}.{LINEARS[parts[2]]}", tensor.tensor_type.name
        if kind not in TYPES and kind not in FLOATS:
            raise ValueError(f"{path}: {tensor.name} is {kind}, and types are {', '.join((*TYPES, *FLOATS))}")
        levels[name] = UNQUANTIZED_BITS if kind in FLOATS else kind
        widths[name] = UNQUANTIZED_BITS if kind in FLOATS else TYPES[kind].width
    if not levels:
        raise ValueError(f"{path} has none of the linears of a decoder layer ({', '.join(LINEARS)})")
    return Foreign(widths.get, tuple(widths), levels=levels)
