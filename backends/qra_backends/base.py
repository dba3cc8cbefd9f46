"""The contract of a quantization backend: it turns a linear into a quantized module of an exactly known size."""

from __future__ import annotations

import importlib
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qra_backends.modules import Scales
from qra_backends.storage import Expected, check_tensors, copy_bias

COMPUTE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Level = Any
"""Name of a way to store a weight, int or str: its bits if the backend has one way for so many, else a text such as
`Q4_K`. (`Any`, so that a backend whose levels are all numbers may say `int`.)"""


class Backend(ABC):
    """Quantizes the weights of linear layers, at one of several levels.

    A subclass gives `describe_tensors`, `make_module`, `layer`, and `encode`, or `encode_levels`.

    A backend is built with keyword options only, and building one imports no optional library: one that cannot work
    here says why in `unavailable_reason()`. 16 bits mean an unquantized weight; the caller keeps the linear for that.
    Subclass `qra_backends.conformance.BackendConformance` to test an implementation.

    Attributes:
        name: as registered in the entry-point group `qra.backends`.
        bits: the levels that it stores, by width.
        devices: device types that its modules run on.
        calibrated: True if `quantize` needs a Hessian of the layer's inputs.
        side_by_side: True if several threads may call `quantize_levels` at once, each with a linear of its own.
        variants: named presets of options; `make_backend("bitsandbytes-nf4")` is the variant `nf4` of `bitsandbytes`.
        options: the keyword arguments that make an equal backend, plain data.
        trained: names of the tensors of scales, and of offsets if there are any, that training may change.
        revision: raised whenever the same input gives other tensors, so that stored ones are made anew.
        largest: absolute value of a weight, at most, that its scales can hold; None: any.
        library: name on the package index of what does the rounding, whose version may change the tensors too; None
            if this package does it.
    """

    name: ClassVar[str]
    revision: ClassVar[int] = 1
    library: ClassVar[str | None] = None
    largest: ClassVar[float | None] = None
    trained: ClassVar[tuple[str, ...]] = ()
    bits: tuple[Level, ...]
    devices: tuple[str, ...] = ("cpu", "cuda")
    calibrated: bool = False
    side_by_side: bool = False
    variants: ClassVar[dict[str, dict[str, Any]]] = {}
    options: dict[str, Any]

    @property
    @abstractmethod
    def layer(self) -> type[nn.Module]:
        """Class of its modules, with `tensors`, `dequantize` and `dequantize_rows`, as `DequantizedLinear` has."""

    @abstractmethod
    def make_module(self, tensors: dict[str, Tensor], bits: Level, **form: Any) -> nn.Module:
        """A layer of these tensors, which were checked; they are used, not copied, and never written to.

        `form` has out_features, in_features, dtype, and bias, a parameter of the layer's own or None.
        """

    @abstractmethod
    def describe_tensors(self, bits: Level, out_features: int, in_features: int) -> Expected:
        """Shape and dtype of each tensor of `to_tensors`, by name; shapes that cannot be stored are rounded up."""

    def to_tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """Everything that `from_tensors` needs but the bias: contiguous tensors that share no storage."""
        return {name: tensor.detach().clone() for name, tensor in self.check_layer(module).tensors().items()}

    def storage(self, bits: Level) -> StorageFormat:
        """Exact bytes of a weight at `bits`: every tensor that the quantized module holds, its bias left out.

        Raises:
            ValueError: this backend does not store `bits`.
        """
        self.check_bits(bits)
        return StorageFormat(self, bits)

    def quantize(
        self,
        linear: nn.Linear,
        bits: Level,
        *,
        hessian: Tensor | None = None,
        output_weights: Tensor | None = None,
    ) -> nn.Module:
        """A frozen module that computes what `linear` does, with its weight stored at the level `bits`.

        The module is differentiable in its input, computes in the weight's dtype, gives the same output in train and
        eval mode, and shares no tensor with `linear`, which is left as it was.

        Args:
            linear: weight (out, in) in float32, bfloat16 or float16, on the device where the module is to live.
            hessian: (in, in), the mean of x xᵀ over the layer's inputs x, weighted or not; see
                `calibration.SecondMoment`. Ignored by backends that are not `calibrated`.
            output_weights: (out,), what a squared error of each output costs, up to a factor; None: all the same.
                Ignored by backends that encode each row of the weight by itself.

        Raises:
            ValueError: `bits`, the shape or the values cannot be stored, or a needed Hessian is missing.
        """
        return self.quantize_levels(linear, (bits,), hessian=hessian, output_weights=output_weights)[bits]

    @torch.no_grad()
    def quantize_levels(
        self,
        linear: nn.Linear,
        levels: Sequence[Level],
        *,
        hessian: Tensor | None = None,
        output_weights: Tensor | None = None,
    ) -> dict[Level, nn.Module]:
        """What `quantize` gives at each of several levels.

        Raises:
            ValueError: as `quantize`, for any of the levels.
        """
        if not levels:
            return {}
        for bits in levels:
            self.check(linear, bits)
        weight = linear.weight.detach()
        form: dict[str, Any] = {"out_features": linear.out_features, "in_features": linear.in_features}
        form |= {"bias": linear.bias, "dtype": weight.dtype}
        made = self.encode_levels(weight, tuple(dict.fromkeys(levels)), hessian, output_weights)
        return {bits: self.from_tensors(tensors, bits=bits, **form) for bits, tensors in made.items()}

    def probe_levels(
        self,
        linear: nn.Linear,
        levels: Sequence[Level],
        *,
        hessian: Tensor | None = None,
        output_weights: Tensor | None = None,
    ) -> list[tuple[nn.Module, dict[Level, float]]]:
        """Modules whose damage foretells that of every level: each with its levels, and their damage over its own.

        Damage is what a weight's error costs, in nats. Here every level foretells itself; a backend whose levels follow
        one law gives a short encoding for all of them. The arguments are those of `quantize_levels`.
        """
        modules = self.quantize_levels(linear, levels, hessian=hessian, output_weights=output_weights)
        return [(module, {bits: 1.0}) for bits, module in modules.items()]

    def encode_levels(
        self, weight: Tensor, levels: Sequence[Level], hessian: Tensor | None, output_weights: Tensor | None
    ) -> dict[Level, dict[str, Tensor]]:
        """What `encode` gives at each of several levels; overridden if they share work or rows are encoded together."""
        return {bits: self.encode(weight, bits, hessian) for bits in levels}

    def encode(self, weight: Tensor, bits: Level, hessian: Tensor | None) -> dict[str, Tensor]:
        """The tensors that `from_tensors` takes, of a weight (out, in) that `check` has passed; none is shared with it.

        To be given by a backend that does not define `encode_levels`.
        """
        raise NotImplementedError

    def count_work_bytes(
        self, levels: Sequence[Level], out_features: int, in_features: int, dtype: torch.dtype, device: str
    ) -> int:
        """Bytes that `quantize_levels` takes at its peak, beyond the linear, its Hessian and the modules it gives.

        Four float32 copies of the weight, and four matrices (in, in) if it is calibrated; override it with what was
        measured. What a library takes when it is first imported is not counted. `device` is the type of one.
        """
        matrices = 4 * in_features * in_features if self.calibrated else 0
        return 4 * (4 * out_features * in_features + matrices)

    def dequantize(self, module: nn.Module) -> Tensor:
        """The weight (out, in) that `module` multiplies by, in the dtype that it computes in; a new tensor."""
        weight: Tensor = self.check_layer(module).dequantize()
        return weight

    def dequantize_rows(self, module: nn.Module, at: Tensor) -> Tensor:
        """The rows (n, in) of `dequantize(module)` with indices `at` (n,), for tables of embeddings."""
        rows: Tensor = self.check_layer(module).dequantize_rows(at)
        return rows

    def from_tensors(
        self,
        tensors: dict[str, Tensor],
        *,
        bits: Level,
        out_features: int,
        in_features: int,
        bias: Tensor | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> nn.Module:
        """The module that `to_tensors` was called on, exactly, on the device of `tensors`.

        The tensors are used, not copied, and never written to: they may be a file mapped into memory, read-only.
        `bias` (out,) is copied; `dtype` is what the module computes in.

        Raises:
            ValueError: the tensors are not those of this backend at `bits` for this shape.
        """
        self.check_bits(bits, out_features, in_features)
        owner = f"{self!r} at {describe_level(bits)}"
        check_tensors(tensors, self.describe_tensors(bits, out_features, in_features), owner)
        frozen = copy_bias(bias, dtype, next(iter(tensors.values())).device)
        form = {"out_features": out_features, "in_features": in_features, "bias": frozen, "dtype": dtype}
        return self.make_module(tensors, bits, **form)

    def check_layer(self, module: nn.Module) -> Any:
        """The module itself.

        Raises:
            ValueError: it is not of this backend.
        """
        if not isinstance(module, self.layer):
            raise ValueError(
                f"backend {self.name!r} reads only layers that it made, got a {type(module).__name__}"
            )
        return module

    def get_scales(self, module: nn.Module) -> Scales | None:
        """The scales and offsets of a module of this backend, if training may change them; new tensors or views."""
        own = self.check_layer(module)
        if not self.trained:
            return None
        scale, offset = [*(own.tensors()[name] for name in self.trained), None][:2]
        return Scales(scale, offset, own.group_size)

    def count_trainable(self, bits: Level, out_features: int, in_features: int) -> int:
        """Number of scales and offsets that `get_scales` returns for a weight; 0 if it returns None."""
        self.check_bits(bits)
        expected = self.describe_tensors(bits, out_features, in_features)
        return sum(prod(expected[name][0]) for name in self.trained)

    def replace_scales(self, module: nn.Module, scales: Scales) -> nn.Module:
        """A module with other scales and offsets (finite, in the dtype of `get_scales`), that shares all else with the
        one given, which is left as it was."""
        own = self.check_layer(module)
        changed: nn.Module = own.replace_tensors(**dict(zip(self.trained, scales, strict=False)))
        return changed

    def unavailable_reason(self, levels: Sequence[Level] | None = None) -> str | None:
        """Why some levels (None: all) cannot be used here (a missing library or device), or None if they can.

        A backend all of whose levels need the same library has the same answer for any of them.
        """
        return None

    def unsupported_reason(self, bits: Level, out_features: int, in_features: int) -> str | None:
        """Why a weight of this shape cannot be stored at `bits`, or None if it can."""
        if bits not in self.bits:
            known = ", ".join(map(str, self.bits))
            return f"backend {self.name} does not store {describe_level(bits)}: choose from {known}"
        return None

    def check_bits(self, bits: Level, *shape: int) -> None:
        """Raises ValueError if this backend does not store `bits`, or a weight of a shape (out, in) if one is given."""
        reason = (
            self.unsupported_reason(bits, *shape) if shape else Backend.unsupported_reason(self, bits, 0, 0)
        )
        if reason is not None:
            raise ValueError(reason)

    def width(self, bits: Level) -> float:
        """Nominal bits of a level; to be given by a backend whose levels have texts for names."""
        self.check_bits(bits)
        width: float = bits
        return width

    @property
    def spec(self) -> dict[str, Any]:
        """Plain data that `make_backend` builds an equal backend from."""
        return {"name": self.name, **self.options}

    def is_calibrated(self, bits: Level) -> bool:
        """Whether `quantize` needs a Hessian at a level."""
        self.check_bits(bits)
        return self.calibrated

    def identity(self, bits: Level) -> dict[str, Any]:
        """What the tensors of a level depend on but the weight and the Hessian; plain data, alike in every process.

        The spec, the revision, and the library with its installed version (None if it is missing), which is read
        without an import. Tensors that were stored under another identity are to be made anew.

        Raises:
            ValueError: this backend does not store `bits`.
        """
        self.check_bits(bits)
        library: dict[str, str | None] = {}
        if self.library:
            library[self.library] = None
            with suppress(importlib.metadata.PackageNotFoundError):
                library[self.library] = importlib.metadata.version(self.library)
        return {"level": bits, "spec": self.spec, "revision": self.revision, "library": library}

    def check(self, linear: nn.Module, bits: Level) -> None:
        """Refuse what cannot be quantized.

        Raises:
            RuntimeError: the backend is unavailable here.
            ValueError: the layer, its values, its dtype or `bits` cannot be stored.
        """
        reason = self.unavailable_reason([bits])
        if reason is not None:
            raise RuntimeError(f"backend {self.name!r} cannot be used here: {reason}")
        weight = getattr(linear, "weight", None)
        if not isinstance(linear, nn.Linear) or type(weight) is not nn.Parameter:  # subclasses are quantized
            raise ValueError(
                f"backend {self.name!r} quantizes only plain nn.Linear, got a {type(linear).__name__}"
            )
        self.check_bits(bits, *weight.shape)
        if weight.dtype not in COMPUTE_DTYPES:
            raise ValueError(
                f"the weight to quantize must be float32, bfloat16 or float16, got {weight.dtype}"
            )
        low, high = (value.item() for value in weight.aminmax())  # makes no copy
        if not (isfinite(low) and isfinite(high)):
            raise ValueError(
                f"a weight of shape {tuple(weight.shape)} has values that are not finite: the model is damaged, use "
                "another copy"
            )
        if self.largest is not None and max(-low, high) > self.largest:
            raise ValueError(
                f"the weight has an absolute value of {max(-low, high):g}, but a scale of this format can "
                f"represent {self.largest:g} at most: use another backend"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.options.items())})"


@dataclass(frozen=True)
class StorageFormat:
    """How a backend stores a weight matrix at one level."""

    backend: Backend
    bits: Level

    def bytes(self, out_features: int, in_features: int) -> int:
        """Exact bytes of every tensor kept for a weight (out, in), bias not counted."""
        tensors = self.backend.describe_tensors(self.bits, out_features, in_features).values()
        return sum(prod(shape) * dtype.itemsize for shape, dtype in tensors)


def describe_level(bits: Level) -> str:
    return bits if isinstance(bits, str) else f"{bits} bits"


def explain_missing_library(name: str) -> str | None:
    """Why a library cannot be imported, and what brings it; None if it can."""
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # a native part may fail to load
        return f"the package {name} cannot be imported ({error}): pip install {name}"
    return None
