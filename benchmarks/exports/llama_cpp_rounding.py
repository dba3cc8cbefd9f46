"""What llama.cpp's CPU kernels round besides weights: files without it, and the same rounding done in torch.

A product with a quantized weight has its inputs rounded to 8 bits in blocks, of 32 values (Q8_0) or 256 (Q8_K), as the
type of the weight says; one with a bfloat16 weight, such as a factor of an adapter, has them rounded to bfloat16. One
with a float32 weight has them as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import torch
from qra_backends.ggml.linear import GGMLLinear
from torch import Tensor

from qra_eval.export.tuned import TunedRun

Round = Callable[[Tensor], Tensor]


BLOCK = re.compile(r"blk\.(\d+)\.")


def recast(file: Path, out: Path, as_float: Callable[[str], bool], *, layers: int | None = None) -> None:
    """A copy of a GGUF file in which some tensors, by name, are decoded to float32: the same numbers.

    Args:
        layers: only so many decoder layers, the first ones.
    """
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(out, reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        shortened = layers is not None and field.name.endswith(".block_count")
        value = layers if shortened else field.contents()
        writer.add_key_value(field.name, value, field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        found = BLOCK.match(tensor.name)
        if layers is not None and found is not None and int(found[1]) >= layers:
            continue
        data, kind = tensor.data, tensor.tensor_type
        if as_float(tensor.name) and kind != gguf.GGMLQuantizationType.F32:
            data, kind = gguf.dequantize(data, kind), gguf.GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def q8_0(x: Tensor) -> Tensor:
    """Blocks of 32 values in 8 bits; the scale is kept in float16."""
    blocks = x.reshape(-1, 32)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    codes = torch.where(scale > 0, blocks / scale, 0.0).round()
    return (codes * scale.to(torch.float16).float()).view_as(x)


def q8_k(x: Tensor) -> Tensor:
    """Blocks of 256 values in 8 bits; the largest becomes -127, and the scale is kept in float32."""
    blocks = x.reshape(-1, 256)
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    inverse = torch.where(largest != 0, -127 / largest, 0.0)
    codes = (blocks * inverse).round().clamp_max(127)
    return torch.where(inverse != 0, codes / inverse, 0.0).view_as(x)


def bf16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).float()


@contextmanager
def rounded_inputs(model: Any, run: TunedRun, *, adapter: bool, table: bool) -> Iterator[Any]:
    """The float32 model, with the inputs of its products rounded as llama.cpp's kernels do.

    Args:
        adapter: those of the adapter's factors as well, which the exported file has in bfloat16.
        table: those of the head as well, by the type of the table that it multiplies by.
    """
    handles = []

    def hook(module: Any, round_input: Round) -> None:
        handles.append(module.register_forward_pre_hook(lambda _, args: (round_input(args[0]), *args[1:])))

    for linear in run.linears:
        module, stored = model.get_submodule(f"base_model.model.{linear.name}"), run.module(linear.name)
        if isinstance(stored, GGMLLinear):
            hook(getattr(module, "base_layer", module), by_block(stored))
        if adapter and hasattr(module, "lora_A"):
            for factors in (module.lora_A, module.lora_B):
                for factor in factors.values():
                    hook(factor, bf16)
    if table:
        (stored_table,) = run.tables.values() or (None,)
        head = model.get_output_embeddings()
        hook(head, by_block(stored_table) if isinstance(stored_table, GGMLLinear) else bf16)
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def by_block(stored: GGMLLinear) -> Round:
    """How the inputs of a product with this weight are rounded."""
    return q8_k if stored.kind.block == 256 else q8_0
