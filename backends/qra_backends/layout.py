"""The layout of model folders in this project's own formats, which plug-ins for transformers and vLLM load.

config.json has a `quantization_config`: `quant_method` is `qra`, `backend` the spec of a backend, and `levels` the
level of each quantized linear and table by its path. `embedding` and `head` are the paths of these two, if quantized;
a table that is both goes by the embedding's. What is not in `levels` is stored as transformers has it, biases too.

The file of tensors has those of `Backend.to_tensors` as `PATH.TENSOR`, floats as integers of their size: what loads a
model may round floats to the model's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from qra_backends.base import Backend, Expected, Level
from qra_backends.registry import make_backend

METHOD = "qra"
_INTEGERS = {2: torch.int16, 4: torch.int32}
"""By the size of a float."""
_ALIGNED = 16
"""Bytes at a multiple of which tensors of different dtypes begin in one buffer."""


@dataclass(frozen=True)
class Layout:
    """What is quantized in a folder, and how.

    Attributes:
        levels: of the backend, by path.
        embedding, head: paths of the tables, None if they are not quantized.
    """

    backend: Backend
    levels: Mapping[str, Level]
    embedding: str | None = None
    head: str | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Layout:
        """That of a `quantization_config`.

        Raises:
            ValueError: it is another's, or names a backend or an option that is not here.
        """
        if config.get("quant_method") != METHOD or not {"backend", "levels"} <= config.keys():
            raise ValueError(
                f"quantization_config must have quant_method {METHOD!r}, backend and levels, got {sorted(config)}: "
                "write the folder with `qra export`"
            )
        return cls(make_backend(config["backend"]), config["levels"], config.get("embedding"), config.get("head"))

    def config(self) -> dict[str, Any]:
        """The `quantization_config`, plain data."""
        tables = {"embedding": self.embedding, "head": self.head}
        return {"quant_method": METHOD, "backend": self.backend.spec, "levels": dict(self.levels), **tables}

    def expected(self, name: str, out_features: int, in_features: int, dtype: torch.dtype) -> Expected:
        """Shape and dtype of each tensor in the file of a weight (out, in), by name; of one not quantized, `weight`.

        Args:
            dtype: that the model computes in.

        Raises:
            ValueError: the backend does not tell.
        """
        if name not in self.levels:
            return {"weight": ((out_features, in_features), dtype)}
        found = self.backend.expected(self.levels[name], out_features, in_features, dtype)
        if found is None:
            raise ValueError(f"{name}: backend {self.backend.name} does not tell its tensors beforehand")
        return {key: (shape, _stored_dtype(kind)) for key, (shape, kind) in found.items()}

    def tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """What the file has of a quantized module but its bias."""
        return {key: value.view(_stored_dtype(value.dtype)) for key, value in self.backend.to_tensors(module).items()}

    def module(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        *,
        out_features: int,
        in_features: int,
        dtype: torch.dtype,
        bias: Tensor | None = None,
    ) -> nn.Module:
        """The quantized module of the file's tensors, which are used, not copied.

        Raises:
            ValueError: they are not those of this level and shape.
        """
        level = self.levels[name]
        shape: dict[str, Any] = {"out_features": out_features, "in_features": in_features}
        floats = {
            key: kind
            for key, (_, kind) in (self.backend.expected(level, **shape, dtype=dtype) or {}).items()
            if kind.is_floating_point
        }
        own = {key: value.view(floats.get(key, value.dtype)) for key, value in tensors.items()}
        return self.backend.from_tensors(own, bits=level, **shape, bias=bias, dtype=dtype)


class Shards:
    """Weights that an engine runs as one matrix, at levels of their own; the tensors of a name share one buffer.

    Args:
        shapes: (out, in) of each weight by path, in their order; not all need be quantized.
        dtype: that the model computes in.

    Attributes:
        buffers: how many numbers the buffer of each name has, and their dtype: that of the tensors if they have the
            same, else bytes.
    """

    def __init__(self, layout: Layout, shapes: Mapping[str, tuple[int, int]], dtype: torch.dtype):
        self.layout, self.shapes, self.dtype = layout, shapes, dtype
        self.parts = [layout.expected(name, *shape, dtype) for name, shape in shapes.items()]
        self.buffers: dict[str, tuple[int, torch.dtype]] = {}
        self._at: dict[tuple[int, str], int] = {}
        for key in dict.fromkeys(key for part in self.parts for key in part):
            kinds = {part[key][1] for part in self.parts if key in part}
            kind, size = (kinds.pop(), 0) if len(kinds) == 1 else (torch.uint8, 0)
            for i, part in enumerate(self.parts):
                if key in part:
                    shape, own = part[key]
                    size += -size % _ALIGNED if own != kind else 0
                    self._at[i, key] = size
                    size += prod(shape) * own.itemsize // kind.itemsize
            self.buffers[key] = (size, kind)

    def put(self, buffer: Tensor, key: str, shard: int, tensor: Tensor) -> None:
        """Copy a tensor of the file to its place in the buffer of its name.

        Raises:
            ValueError: it is not what a weight of this level and shape has.
        """
        name, expected = list(self.shapes)[shard], self.parts[shard].get(key)
        if expected is None or expected != (tuple(tensor.shape), tensor.dtype):
            raise ValueError(f"{name}.{key} must be {expected}, got {tuple(tensor.shape)} {tensor.dtype}")
        self._view(buffer, key, shard).copy_(tensor)

    def modules(self, buffers: Mapping[str, Tensor]) -> list[nn.Module]:
        """The module of each weight, which keeps no other tensors than views of the buffers."""
        made: list[nn.Module] = []
        for i, (name, (out_features, in_features)) in enumerate(self.shapes.items()):
            own = {key: self._view(buffers[key], key, i) for key in self.parts[i]}
            if name in self.layout.levels:
                shape = {"out_features": out_features, "in_features": in_features}
                made.append(self.layout.module(name, own, **shape, dtype=self.dtype))
            else:
                plain = nn.Linear(in_features, out_features, bias=False, device="meta")
                plain.weight = nn.Parameter(own["weight"], requires_grad=False)
                made.append(plain)
        return made

    def _view(self, buffer: Tensor, key: str, shard: int) -> Tensor:
        (shape, kind), start = self.parts[shard][key], self._at[shard, key]
        count = prod(shape) * kind.itemsize // buffer.dtype.itemsize
        return buffer[start : start + count].view(kind).view(shape)


def _stored_dtype(dtype: torch.dtype) -> torch.dtype:
    return _INTEGERS[dtype.itemsize] if dtype.is_floating_point else dtype
