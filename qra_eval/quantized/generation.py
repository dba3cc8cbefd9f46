"""Generation about as fast as in 16 bits: a token asks for every weight, and to dequantize it each time is slow.

Layers that multiply straight from their codes do so, with the adapter added in the same call. Other weights stay
dequantized from the first call on, with the adapter merged into them before they are rounded to the model's dtype. So
an answer may differ from one without either by a rounding, as between two kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from qra_backends.base import Backend
from torch import Tensor, nn
from torch.nn import functional as F

from qra_eval.models.embeddings import Table, TableEmbedding, TableHead
from qra_eval.quantized.model import count_cache_bytes

WEIGHT_FORMS = ("auto", "codes", "decoded")
Factors = list[tuple[Tensor, Tensor, float]]
"""A, B and scaling of each active adapter of a linear."""
Weights = MutableMapping[nn.Module, tuple[Hashable, Tensor, Factors]]
"""Dequantized weights by module, each with what it was made of."""


def prepare_generate(model: Any, backend: Backend, names: Collection[str], weights: str = "auto") -> None:
    """Have `generate` of a loaded model multiply as `weights` says, from its first call on.

    By `codes` nothing is kept dequantized, by `decoded` everything is; by `auto` what cannot be multiplied straight
    from its codes is, if a share of the free memory holds it. Linears are found by `names`, tables without.
    """
    if weights not in WEIGHT_FORMS:
        raise ValueError(
            f"weights of a loaded model must be one of {', '.join(WEIGHT_FORMS)}, got {weights!r}"
        )
    kept: Weights = WeakKeyDictionary()

    def generate(self: Any, *args: Any, **options: Any) -> Any:
        with serve_weights(self, backend, names, kept, weights):
            return type(self).generate(self, *args, **options)

    model.generate = MethodType(generate, model)  # a copy of the model is bound to itself


@contextmanager
def serve_weights(
    model: Any, backend: Backend, names: Collection[str], kept: Weights, weights: str
) -> Iterator[None]:
    """Multiply by codes or by dequantized weights while the context lasts; as before by what does not fit."""
    linears: dict[nn.Module, tuple[Any, Factors]] = {}
    for module in map(model.get_submodule, names):
        linear = getattr(module, "base_layer", module)  # below an adapter of PEFT
        if type(linear) is not nn.Linear:  # merged since
            factors = _find_factors(module)
            linears[linear if factors is None else module] = linear, factors or []
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = {end.table for end in ends if isinstance(end, TableEmbedding | TableHead)}
    tables = {table for table in tables if table.module is not None and table.plain_weight is None}
    decoded = linears | {table: (table, []) for table in tables}
    if weights != "decoded":
        decoded = {
            module: own for module, own in decoded.items() if weights == "auto" and not _is_direct(own[0])
        }
    versions = {module: _get_version(model, factors) for module, (_, factors) in decoded.items()}
    lacking = [module for module, version in versions.items() if kept.get(module, (None,))[0] != version]
    needed = sum(math.prod(_get_shape(decoded[module][0])) for module in lacking) * model.dtype.itemsize
    if weights == "auto" and needed > count_cache_bytes("auto", model.device):
        decoded, lacking = {}, []
    try:
        with torch.no_grad():
            for module in lacking:
                linear, factors = decoded[module]
                weight = linear.weight if isinstance(linear, Table) else _merge(backend, linear, factors)
                kept[module] = versions[module], weight.to(model.dtype), factors
        for module, (linear, factors) in linears.items():
            if module in decoded:
                module.forward = _make_forward(module, kept[module][1], linear.bias)
            elif _is_direct(linear):  # with its adapters in one call, which PEFT takes several modules for
                module.forward = linear.make_forward(factors, partial(type(module).forward, module))
        for table in tables & decoded.keys():
            table.frozen = kept[table][1]
        yield
    finally:
        for module in linears:
            vars(module).pop("forward", None)
        for table in tables:
            table.frozen = None


def _is_direct(linear: nn.Module) -> bool:
    return getattr(linear.module if isinstance(linear, Table) else linear, "few_inputs", 0) > 0


def _get_shape(linear: Any) -> tuple[int, int]:
    return linear.shape if isinstance(linear, Table) else (linear.out_features, linear.in_features)


def _find_factors(module: nn.Module) -> Factors | None:
    """Factors of the adapters that are active on a linear; None if these are not plain LoRA on frozen weights."""
    from peft.tuners.lora.layer import LoraLayer  # seconds, which a refusal does without

    if not isinstance(module, LoraLayer):
        return []
    a: Any = module.lora_A
    b: Any = module.lora_B
    active = [name for name in module.active_adapters if name in a and not module.disable_adapters]
    has_biases = any(factors[name].bias is not None for factors in (a, b) for name in active)
    if module.merged or module.training or module.lora_variant or has_biases:
        return None
    return [(a[name].weight, b[name].weight, module.scaling[name]) for name in active]


def _get_version(model: Any, factors: Factors) -> Hashable:
    """All that a dequantized weight depends on; an optimizer's step changes it."""
    adapters = tuple((id(a), a._version, id(b), b._version, scaling) for a, b, scaling in factors)
    return model.dtype, model.device, adapters


def _merge(backend: Backend, linear: nn.Module, factors: Factors) -> Tensor:
    """The weight of a quantized linear and its adapters, float32 if it has any."""
    weight = backend.dequantize(linear)
    for a, b, scaling in factors:
        weight = torch.addmm(weight.float(), b.float(), a.float(), alpha=scaling)
    return weight


def _make_forward(module: nn.Module, weight: Tensor, bias: Tensor | None) -> Callable[..., Tensor]:
    usual = type(module).forward

    def forward(x: Tensor, *args: Any, **options: Any) -> Tensor:
        if args or options:  # such as one adapter for each row
            return usual(module, x, *args, **options)  # type: ignore[no-any-return]
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    return forward
