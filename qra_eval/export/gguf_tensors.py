"""The tensors of a GGUF file: what they are called, in which order rows stand, and what is stored of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from qra_backends.ggml.linear import GGMLLinear
from torch import Tensor, nn

from qra_eval.export.tuned import Chosen, TunedRun
from qra_eval.models.gguf_families import family_of, rope_factors
from qra_eval.models.linears import ROUTERS
from qra_search.space.memory import UNQUANTIZED_BITS

EXPERT = re.compile(r"\bexperts\.(\d+)\.")
"""The number of an expert in a linear's name: llama.cpp has those of a layer in one tensor."""


class FileTensor(NamedTuple):
    """A tensor as a file holds it: bytes of a block type, or floats.

    Attributes:
        searched: how many of the plan's weights it is.
    """

    name: str
    data: np.ndarray
    kind: str
    searched: int = 0


def model_tensors(run: TunedRun) -> Iterator[FileTensor]:
    """Every tensor of the model's file; what was searched is a copy of the plan's own blocks.

    llama.cpp wants one-dimensional tensors in full precision, and what chooses experts.
    """
    config, name_of, rest = run.config, tensor_namer(run.config), run.base.state_dict()
    searched, experts = {linear.name: linear for linear in run.linears}, stacked_experts(run)
    for key in run.skeleton().state_dict():
        owner, _, what = key.rpartition(".")
        if owner in experts or (getattr(config, "tie_word_embeddings", False) and key == "lm_head.weight"):
            continue
        if owner in searched and what == "weight":
            yield FileTensor(name_of(key), *_weight(run, searched[owner]), searched=1)
        elif what == "weight" and isinstance(table := run.tables.get(owner), GGMLLinear):
            yield FileTensor(name_of(key), table.blocks.cpu().numpy(), table.kind.name, searched=1)
        else:
            value = _in_order(config, key, rest[key].detach())
            if family_of(config).shifted_norms and owner.endswith("norm"):
                value = value.float() + 1
            full = value.ndim == 1 or owner.rpartition(".")[2] in ROUTERS
            kind = "F32" if full else float_kind(run.dtype)
            yield FileTensor(name_of(key), as_floats(value, kind), kind)
    for linears in (each for kinds in experts.values() for each in kinds):
        parts = [_weight(run, linear) for linear in linears]
        (kind,) = {kind for _, kind in parts}
        name = f"{name_of(linears[0].name)}.weight"
        yield FileTensor(name, np.stack([data for data, _ in parts]), kind, searched=len(parts))
    factors = rope_factors(config)
    if factors is not None:
        yield FileTensor("rope_freqs.weight", factors.numpy(), "F32")


def lora_tensors(run: TunedRun, alpha: float) -> Iterator[FileTensor]:
    """The adapter as llama.cpp reads it: `<tensor>.lora_a` (rank, in) and `<tensor>.lora_b` (out, rank).

    llama.cpp scales by alpha over the rank of each tensor; where that is not the adapter's own scaling, B takes the
    rest. Factors are saved in bfloat16 and stay so, unless B then has more digits.
    """
    name_of = tensor_namer(run.config)
    parts: dict[str, list[Tensor]] = {}
    for name in (linear.name for linear in run.linears if linear.name in run.factors):  # experts by their number
        factors = run.factors[name]
        B = factors.B.float() * (factors.scaling * factors.rank / alpha)
        for part, factor in (("a", factors.A.float()), ("b", _in_order(run.config, name, B))):
            parts.setdefault(f"{name_of(name)}.weight.lora_{part}", []).append(factor.contiguous())
    experts = {name_of(name) for name in run.factors if EXPERT.search(name)}
    for name, several in parts.items():
        factor = torch.stack(several) if name.partition(".weight.")[0] in experts else several[0]
        kind = "BF16" if torch.equal(factor, factor.to(torch.bfloat16).float()) else "F32"
        yield FileTensor(name, as_floats(factor, kind), kind)


def tensor_namer(config: Any) -> Callable[[str], str]:
    """From a name in transformers (`model.layers.0.self_attn.q_proj`, with or without `.weight`) to the one in GGUF.

    Raises:
        ValueError: llama.cpp has no such tensor.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = family_of(config).architecture
    kind = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(kind, config.num_hidden_layers)

    def name_of(name: str) -> str:
        found = names.get_name(EXPERT.sub("experts.", name), try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ValueError(f"llama.cpp has no tensor for {name} of {config.model_type}")
        return found

    return name_of


def row_order(config: Any, name: str, rows: int) -> Tensor | None:
    """Order in which llama.cpp keeps the rows of q and k for its rotary embedding; None if it is as it was.

    A head's rows are the first halves of its pairs and then the second halves; llama.cpp wants pair after pair.
    """
    parts = name.split(".")
    if not family_of(config).permuted or not {"q_proj", "k_proj"} & set(parts):
        return None
    heads = config.num_attention_heads if "q_proj" in parts else config.num_key_value_heads
    return torch.arange(rows).view(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def stored_blocks(module: nn.Module) -> tuple[Tensor, str] | None:
    """Blocks uint8 (out, bytes of a row) of a linear that is stored as llama.cpp does, and their type; else None."""
    return (module.blocks.cpu(), module.kind.name) if isinstance(module, GGMLLinear) else None


def stacked_experts(run: TunedRun) -> dict[str, list[list[Chosen]]]:
    """By the path of a layer's experts, the linears of each kind in the order of the experts."""
    found: dict[str, dict[str, list[Chosen]]] = {}
    for linear in run.linears:
        match = EXPERT.search(linear.name)
        if match is not None:
            path, kind = linear.name[: match.start(1) - 1], linear.name[match.end() :]
            found.setdefault(path, {}).setdefault(kind, []).append(linear)
    return {path: list(kinds.values()) for path, kinds in found.items()}


def expert_reasons(run: TunedRun) -> list[str]:
    """Why experts do not go into one tensor: their levels or ranks differ."""
    levels = {group["name"]: (group["bits"], group["rank"]) for group in run.plan["groups"]}
    every = (linears for kinds in stacked_experts(run).values() for linears in kinds)
    uneven = [linears[0].name for linears in every if len({levels[linear.group] for linear in linears}) > 1]
    if not uneven:
        return []
    return [
        f"llama.cpp has the experts of a layer in one tensor, of one type and rank, and they differ in {len(uneven)} "
        f"cases, such as those of {uneven[0]}: search with --granularity fused, or layer"
    ]


def float_kind(dtype: torch.dtype) -> str:
    """The type of what is not quantized."""
    return "F32" if dtype == torch.float32 else "BF16"


def as_floats(value: Tensor, kind: str) -> np.ndarray:
    """A tensor in a type of floats."""
    from gguf import GGMLQuantizationType, quantize

    return quantize(value.float().contiguous().numpy(), GGMLQuantizationType[kind])


def _weight(run: TunedRun, linear: Chosen) -> tuple[np.ndarray, str]:
    """What the file holds of a searched linear: its own blocks, or its floats if it is unquantized."""
    if linear.bits == UNQUANTIZED_BITS:
        kind = float_kind(run.dtype)
        return as_floats(_in_order(run.config, linear.name, run.weight(linear)), kind), kind
    found = stored_blocks(run.module(linear.name))
    assert found is not None, "checked before"
    return np.ascontiguousarray(_in_order(run.config, linear.name, found[0]).numpy()), found[1]


def _in_order(config: Any, name: str, rows: Tensor) -> Tensor:
    order = row_order(config, name, rows.shape[0])
    return rows if order is None else rows[order]
