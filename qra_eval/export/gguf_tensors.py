"""The tensors of a GGUF file: what they are called, in which order rows stand, and what is stored of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from qra_backends.ggml.backend import GGMLLinear
from torch import Tensor

from qra_eval.export.tuned import TunedRun
from qra_eval.models.gguf_families import compute_rope_factors, find_family
from qra_eval.models.linears import ROUTERS

EXPERT = re.compile(r"\bexperts\.(\d+)\.")
"""The number of an expert in a linear's name: llama.cpp has those of a layer in one tensor."""
FileTensor = tuple[str, np.ndarray, str]
"""A tensor as a file holds it: its name, and bytes of a block type, or floats, with the name of their type."""


def list_model_tensors(run: TunedRun) -> Iterator[FileTensor]:
    """Every tensor of the model's file; what was searched is a copy of the plan's own blocks."""
    config, translate_name, experts = run.config, make_tensor_namer(run.config), group_experts(run)
    stacks = {EXPERT.split(names[0])[0] + "experts" for names in experts}
    state = run.base.state_dict()
    for key in run.build_skeleton().state_dict():
        tied = getattr(config, "tie_word_embeddings", False) and key == "lm_head.weight"
        if not tied and key.rpartition(".")[0] not in stacks:
            yield translate_name(key), *_encode_tensor(run, key, state)
    for names in experts:
        parts = [_encode_tensor(run, f"{name}.weight", state) for name in names]
        yield f"{translate_name(names[0])}.weight", np.stack([data for data, _ in parts]), parts[0][1]
    factors = compute_rope_factors(config)
    if factors is not None:
        yield "rope_freqs.weight", factors.numpy(), "F32"


def _encode_tensor(run: TunedRun, key: str, state: dict[str, Tensor]) -> tuple[np.ndarray, str]:
    """What the file holds of a tensor: a searched weight's own blocks, or floats.

    llama.cpp wants one-dimensional tensors in full precision, and what chooses experts.
    """
    owner, _, what = key.rpartition(".")
    module = run.tables.get(owner) or run.base.get_submodule(owner)
    if what == "weight" and isinstance(module, GGMLLinear):
        return _reorder_rows(run.config, key, module.blocks.cpu()).contiguous().numpy(), module.kind.name
    value = _reorder_rows(run.config, key, state[key].detach())
    if find_family(run.config).shifted_norms and owner.endswith("norm"):
        value = value.float() + 1
    full = value.ndim == 1 or owner.rpartition(".")[2] in ROUTERS
    kind = "F32" if full else choose_float_kind(run.dtype)
    return cast_floats(value, kind), kind


def list_lora_tensors(run: TunedRun) -> Iterator[FileTensor]:
    """The adapter as llama.cpp reads it: `<tensor>.lora_a` (rank, in) and `<tensor>.lora_b` (out, rank).

    It scales by alpha over the rank of each tensor, as the adapter does.
    """
    translate_name, in_stack = (
        make_tensor_namer(run.config),
        {name for names in group_experts(run) for name in names},
    )
    parts: dict[str, list[Tensor]] = {}
    for name in filter(run.factors.__contains__, run.levels):  # experts by their number
        A, B = run.factors[name]
        for part, factor in (("a", A), ("b", _reorder_rows(run.config, name, B))):
            own = factor[None] if name in in_stack else factor
            parts.setdefault(f"{translate_name(name)}.weight.lora_{part}", []).append(own)
    for name, factors in parts.items():
        kind = choose_float_kind(factors[0].dtype)
        yield name, cast_floats(torch.cat(factors), kind), kind


def make_tensor_namer(config: Any) -> Callable[[str], str]:
    """From a name in transformers (`model.layers.0.self_attn.q_proj`, with or without `.weight`) to the one in GGUF.

    Raises:
        ValueError: llama.cpp has no such tensor.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = find_family(config).architecture
    kind = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(kind, config.num_hidden_layers)

    def translate_name(name: str) -> str:
        found = names.get_name(EXPERT.sub("experts.", name), try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ValueError(f"llama.cpp has no tensor for {name} of {config.model_type}")
        return found

    return translate_name


def find_row_order(config: Any, name: str, rows: int) -> Tensor | None:
    """Order in which llama.cpp keeps the rows of q and k for its rotary embedding; None if it is as it was.

    A head's rows are the first halves of its pairs and then the second halves; llama.cpp wants pair after pair.
    """
    parts = name.split(".")
    if not find_family(config).permuted or not {"q_proj", "k_proj"} & set(parts):
        return None
    heads = config.num_attention_heads if "q_proj" in parts else config.num_key_value_heads
    return torch.arange(rows).view(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def _reorder_rows(config: Any, name: str, rows: Tensor) -> Tensor:
    order = find_row_order(config, name, rows.shape[0])
    return rows if order is None else rows[order]


def group_experts(run: TunedRun) -> list[list[str]]:
    """The linears that llama.cpp has in one tensor: those of one kind in a layer, in the order of the experts."""
    stacks: dict[str, list[str]] = {}
    for name in filter(EXPERT.search, run.levels):
        stacks.setdefault(EXPERT.sub("experts.", name), []).append(name)
    return list(stacks.values())


def list_expert_issues(run: TunedRun) -> list[str]:
    """Why experts do not go into one tensor: their levels or ranks differ."""
    ranks = {name: len(A) for name, (A, _) in run.factors.items()}
    uneven = [
        names[0] for names in group_experts(run) if len({(run.levels[n], ranks.get(n, 0)) for n in names}) > 1
    ]
    if not uneven:
        return []
    return [
        (
            "llama.cpp stores the experts of a layer as one tensor of one type and rank, but those of this "
            f"plan differ in {len(uneven)} cases, such as {uneven[0]}. Search with --granularity fused or "
            "layer"
        )
    ]


def choose_float_kind(dtype: torch.dtype) -> str:
    """The type of what is not quantized."""
    return "F32" if dtype == torch.float32 else "BF16"


def cast_floats(value: Tensor, kind: str) -> np.ndarray:
    from gguf import GGMLQuantizationType, quantize

    return quantize(value.float().contiguous().numpy(), GGMLQuantizationType[kind])
