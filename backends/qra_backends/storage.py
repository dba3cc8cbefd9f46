"""The tensors of quantized weights: their checks, and exact sizes by a backend's word and in a live module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Expected = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of each tensor, by name."""
_ELEMENTS_AT_ONCE = {"cpu": 1 << 18}  # weights: float32 arrays of 1 MiB, which stay in a CPU's caches
_ARRAYS_ON_CPU = 13  # float32 arrays of a block alive at once, fragments of the heap included
_ELEMENTS_ELSEWHERE = 1 << 24  # few launches, and a GPU's memory takes little notice


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
    seen = {id(getattr(module, name, None)) for name in skip}
    left: list[Any] = [module]
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor) and value.device.type != "meta":
            yield value.data if isinstance(value, nn.Parameter) else value
        if isinstance(value, dict):
            left.extend(value.values())
        elif isinstance(value, (list, tuple, set, frozenset)):
            left.extend(value)
        elif isinstance(value, nn.Module) or (hasattr(value, "__dict__") and not callable(value)):
            left.append(vars(value))


def find_group_size(in_features: int, largest: int, smallest: int) -> int | None:
    """Of `largest`, its half, and so on, as long as they are multiples of `smallest`: the first that divides
    `in_features`; None if none does."""
    size = largest
    while size and size % smallest == 0:
        if in_features % size == 0:
            return size
        size //= 2
    return None


def check_tensors(tensors: dict[str, Tensor], expected: Expected, owner: str) -> None:
    """Raises ValueError if names, shapes or dtypes are not the expected ones; it names what is there and must be."""
    if set(tensors) != set(expected):
        raise ValueError(
            f"{owner} needs the tensors {sorted(expected)}, got {sorted(tensors)}: were they saved by another backend?"
        )
    for name, (shape, dtype) in expected.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise ValueError(
                f"{owner}: tensor {name} must be {shape} {dtype}, got {tuple(tensor.shape)} {tensor.dtype}; "
                "was it quantized with other options?"
            )


def copy_bias(bias: Tensor | None, dtype: torch.dtype, device: torch.device) -> nn.Parameter | None:
    """A frozen copy of a bias (out,), or None."""
    if bias is None:
        return None
    return nn.Parameter(bias.detach().to(device=device, dtype=dtype, copy=True), requires_grad=False)


def choose_block_rows(columns: int, device: torch.device) -> int:
    """Rows of so many columns to take at once: a multiple of 8, so that their packed codes fill whole bytes."""
    elements = _ELEMENTS_AT_ONCE.get(device.type, _ELEMENTS_ELSEWHERE)
    return max(8, elements // columns // 8 * 8)


def count_block_bytes(elements: int, device: str, arrays: float) -> int:
    """Bytes of all arrays of a block at the height of fitting and coding a weight of so many elements.

    `arrays` of float32 are alive at once on a GPU, as counted; on a CPU they were measured.
    """
    alive = _ARRAYS_ON_CPU if device == "cpu" else arrays
    return int(alive * 4 * min(elements, _ELEMENTS_AT_ONCE.get(device, _ELEMENTS_ELSEWHERE)))
