"""How model folders in this project's own formats store weights, for what loads them: transformers and vLLM.

config.json has a `quantization_config`: `quant_method` is `qra`, `backend` the spec of a backend, and `levels` the
level of each linear and table by its path, 16 for one that is stored as transformers has it. `embedding` and `head` are
the paths of the tables; one that is both goes by the embedding's. The files of tensors have those of
`Backend.to_tensors` as `PATH::TENSOR`, and all else as transformers has it, biases too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from qra_backends.base import Backend, Level
from qra_backends.registry import make_backend
from qra_backends.storage import Expected

QUANT_METHOD = "qra"
SEPARATOR = "::"
"""Between the path of a weight and the name of a tensor."""
_UNQUANTIZED = 16
_ALIGNED = 16
"""Bytes at a multiple of which tensors of different dtypes begin in one buffer."""


@dataclass(frozen=True)
class Layout:
    """What is quantized in a folder, and how.

    Attributes:
        levels: of the backend, by path, of what is quantized.
        embedding, head: paths of the tables, None if they are not quantized.
    """

    backend: Backend
    levels: Mapping[str, Level]
    embedding: str | None = None
    head: str | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Layout:
        """The layout that a `quantization_config` describes.

        Raises:
            ValueError: it names a backend or an option that is not here.
        """
        levels = {name: level for name, level in config["levels"].items() if level != _UNQUANTIZED}
        ends = (config[end] if config.get(end) in levels else None for end in ("embedding", "head"))
        return cls(make_backend(config["backend"]), levels, *ends)


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
        self.parts: list[Expected] = [
            layout.backend.describe_tensors(layout.levels[name], *shape)
            if name in layout.levels
            else {"weight": (shape, dtype)}
            for name, shape in shapes.items()
        ]
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

    def copy_shard(self, buffer: Tensor, key: str, shard: int, tensor: Tensor) -> None:
        """Copy a tensor of the file to its place in the buffer of its name.

        Raises:
            ValueError: it is not what a weight of this level and shape has.
        """
        name, expected = list(self.shapes)[shard], self.parts[shard].get(key)
        shape, dtype = expected or ((), None)
        cast = name not in self.layout.levels  # what is not quantized may be stored in another dtype
        if expected is None or tuple(tensor.shape) != shape or not (cast or tensor.dtype == dtype):
            raise ValueError(
                f"tensor {name}.{key} of the exported model must be {expected}, got {tuple(tensor.shape)} "
                f"{tensor.dtype}: export it again"
            )
        self._view_shard(buffer, key, shard).copy_(tensor)

    def make_modules(self, buffers: Mapping[str, Tensor]) -> list[nn.Module]:
        """The module of each weight, which keeps no other tensors than views of the buffers."""
        made: list[nn.Module] = []
        for i, (name, (out_features, in_features)) in enumerate(self.shapes.items()):
            own = {key: self._view_shard(buffers[key], key, i) for key in self.parts[i]}
            if name in self.layout.levels:
                level, backend = self.layout.levels[name], self.layout.backend
                shape: dict[str, Any] = {"out_features": out_features, "in_features": in_features}
                made.append(backend.from_tensors(own, bits=level, **shape, dtype=self.dtype))
            else:
                made.append(make_linear(own["weight"]))
        return made

    def _view_shard(self, buffer: Tensor, key: str, shard: int) -> Tensor:
        (shape, kind), start = self.parts[shard][key], self._at[shard, key]
        count = prod(shape) * kind.itemsize // buffer.dtype.itemsize
        return buffer[start : start + count].view(kind).view(shape)


def make_linear(weight: Tensor) -> nn.Linear:
    """An unquantized linear of a weight (out, in), which is not copied."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear
