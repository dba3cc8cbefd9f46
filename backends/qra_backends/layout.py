"""The layout of model folders in this project's own formats, which plug-ins for transformers and vLLM load.

config.json has a `quantization_config`: `quant_method` is `qra`, `backend` the spec of a backend, and `levels` the
level of each quantized linear or table by its path; a table that is embedding and head goes by the embedding's. What is
not in it is stored as transformers has it, biases too.

The file of tensors has those of `Backend.to_tensors` as `PATH.TENSOR`, floats as integers of their size: what loads a
model may round floats to the model's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qra_backends.base import Backend, Expected, Level
from qra_backends.registry import make_backend

METHOD = "qra"
_INTEGERS = {2: torch.int16, 4: torch.int32}
"""By the size of a float."""


@dataclass(frozen=True)
class Layout:
    """What is quantized in a folder, and how.

    Attributes:
        levels: of the backend, by path.
    """

    backend: Backend
    levels: Mapping[str, Level]

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
        return cls(make_backend(config["backend"]), config["levels"])

    def config(self) -> dict[str, Any]:
        """The `quantization_config`, plain data."""
        return {"quant_method": METHOD, "backend": self.backend.spec, "levels": dict(self.levels)}

    def expected(self, name: str, out_features: int, in_features: int, dtype: torch.dtype) -> Expected:
        """Shape and dtype of each tensor in the file of a weight (out, in), by name.

        Args:
            dtype: that the model computes in.

        Raises:
            ValueError: the backend does not tell.
        """
        level = self.levels[name]
        found = self.backend.expected(level, out_features, in_features, dtype)
        if found is None:
            raise ValueError(f"{name}: backend {self.backend.name} does not tell the tensors of {level!r} beforehand")
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


def _stored_dtype(dtype: torch.dtype) -> torch.dtype:
    return _INTEGERS[dtype.itemsize] if dtype.is_floating_point else dtype
