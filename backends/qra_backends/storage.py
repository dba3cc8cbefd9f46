"""The tensors of quantized weights: their checks, and exact sizes by a backend's word and in a live module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Expected = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of each tensor, by name."""
HALVES = {torch.float16, torch.bfloat16}
_ELEMENTS = {"cpu": 1 << 18}  # weights: float32 arrays of 1 MiB, which stay in a CPU's caches
_ARRAYS_ON_CPU = 13  # float32 arrays of a block alive at once, fragments of the heap included
_ELEMENTS_ELSEWHERE = 1 << 24  # few launches, and a GPU's memory takes little notice


class StorageFormat(Protocol):
    """How a weight matrix is stored at one bit-width."""

    def bytes(self, out_features: int, in_features: int) -> int:
        """Exact bytes of every tensor kept for a weight of shape (out_features, in_features), bias not counted."""
        ...


def bits_per_weight(storage: StorageFormat, out_features: int, in_features: int) -> float:
    """Stored bits for each weight, metadata included."""
    return 8 * storage.bytes(out_features, in_features) / (out_features * in_features)


def ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def count_live_bytes(module: nn.Module, *, skip: tuple[str, ...] = ()) -> int:
    """Bytes of every tensor reachable from a module, each storage once and whole.

    Counts parameters, buffers, and tensors kept in plain attributes, dictionaries and helper objects (libraries
    hide scales in all of these). `skip` names attributes of the module itself to leave out, such as `bias`.
    """
    storages = {}
    for tensor in find_live_tensors(module, skip=skip):
        storage = tensor.untyped_storage()
        storages[(tensor.device, storage.data_ptr())] = storage.nbytes()
    return sum(storages.values())


def find_live_tensors(module: nn.Module, *, skip: tuple[str, ...] = ()) -> Iterator[Tensor]:
    """Every tensor reachable from a module; meta tensors, which hold nothing, are left out."""
    seen = {id(module)}
    for name, value in _list_children(module):
        if name not in skip:
            yield from _collect_tensors(value, seen)


def _collect_tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if (
        id(value) in seen
        or value is None
        or isinstance(value, (str, bytes, int, float, bool, type, torch.dtype))
    ):
        return
    seen.add(id(value))
    if isinstance(value, Tensor) and value.device.type != "meta":
        yield value.data if isinstance(value, nn.Parameter) else value
    for _, child in _list_children(value):
        yield from _collect_tensors(child, seen)


def _list_children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, nn.Module):
        for name in ("_parameters", "_buffers", "_modules"):
            yield from list(getattr(value, name).items())
        yield from [
            (k, v) for k, v in vars(value).items() if k not in ("_parameters", "_buffers", "_modules")
        ]
    elif isinstance(value, dict):
        yield from [(str(k), v) for k, v in value.items()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from [(str(i), v) for i, v in enumerate(value)]
    elif hasattr(value, "__dict__") and not callable(value):
        yield from list(vars(value).items())


def find_group_size(in_features: int, largest: int, smallest: int) -> int | None:
    """Of `largest`, its half, and so on, as long as they are multiples of `smallest`: the first that divides
    `in_features`; None if none does."""
    size = largest
    while size and size % smallest == 0:
        if in_features % size == 0:
            return size
        size //= 2
    return None


def cast_halves(tensors: dict[str, Tensor], expected: Expected) -> dict[str, Tensor]:
    """The tensors, those that were stored in the other 16-bit dtype in the expected one."""
    wanted = {
        name: expected[name][1] if name in expected else tensor.dtype for name, tensor in tensors.items()
    }
    return {
        name: t.to(wanted[name]) if {t.dtype, wanted[name]} == HALVES else t for name, t in tensors.items()
    }


def check_tensors(tensors: dict[str, Tensor], expected: Expected, owner: str) -> None:
    """Refuse tensors whose names, shapes or dtypes are not the expected ones.

    Raises:
        ValueError: names what is there and what must be.
    """
    if set(tensors) != set(expected):
        raise ValueError(f"{owner} needs the tensors {sorted(expected)}, got {sorted(tensors)}")
    for name, (shape, dtype) in expected.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise ValueError(
                f"{owner}: tensor {name} must be {shape} {dtype}, got {tuple(tensor.shape)} {tensor.dtype}; "
                "was it stored with other options?"
            )


def copy_bias(bias: Tensor | None, dtype: torch.dtype, device: torch.device) -> nn.Parameter | None:
    """A frozen copy of a bias (out,), or None."""
    if bias is None:
        return None
    return nn.Parameter(bias.detach().to(device=device, dtype=dtype, copy=True), requires_grad=False)


def choose_block_rows(columns: int, device: torch.device) -> int:
    """Rows of so many columns to take at once: a multiple of 8, so that their packed codes fill whole bytes."""
    elements = _ELEMENTS.get(device.type, _ELEMENTS_ELSEWHERE)
    return max(8, elements // columns // 8 * 8)


def count_block_bytes(elements: int, device: str, arrays: float) -> int:
    """Bytes of all arrays of a block at the height of fitting and coding a weight of so many elements.

    Args:
        arrays: of float32, alive at once on a GPU, as counted; on a CPU they were measured.
    """
    if device == "cpu":
        arrays = _ARRAYS_ON_CPU
    return int(arrays * 4 * min(elements, _ELEMENTS.get(device, _ELEMENTS_ELSEWHERE)))
