"""The bank: every linear at every bit-width, quantized once, kept on disk, and swapped in by reference."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from qra_backends.base import Backend
from torch import Tensor, nn

from qra_eval.models.loaded import cache_root
from qra_eval.quantized.tensorfile import DamagedFile, open_tensors, write_tensors
from qra_search.space.memory import UNQUANTIZED_BITS

Progress = Callable[[str, int, int], None]
log = logging.getLogger(__name__)

WEIGHT_CACHE_BYTES = 4 << 30
"""Dequantized weights kept ready, at most; the least recently used ones go first."""


class Bank:
    """Quantized versions of a model's linears.

    Each bit-width is one safetensors file, named by a hash of the model, the backend and the calibration; files are
    read memory-mapped, so that workers share them. A missing file is made, and one that is cut off or foreign is made
    again with a warning.

    Args:
        linears: by name; left untouched.
        backend: quantizes them.
        bits: the widths wanted; 16 stands for the linear as it is.
        folder: where the files are kept.
        fingerprint: identifies the weights (and the calibration data, where the backend is calibrated).
        hessian: gives the (in, in) mean of x xᵀ of a linear's inputs; asked only for calibrated backends.
        progress: called with `("quantize <bits> bits", done, total)`.
        compute: dtype in which `weight` gives dequantized weights; default: that of the linears.
    """

    def __init__(
        self,
        linears: Mapping[str, nn.Linear],
        backend: Backend,
        bits: Sequence[int],
        folder: str | Path,
        fingerprint: str,
        *,
        hessian: Callable[[str], Tensor] | None = None,
        progress: Progress | None = None,
        weight_cache_bytes: int = WEIGHT_CACHE_BYTES,
        compute: torch.dtype | None = None,
    ):
        self.linears = dict(linears)
        self.compute = compute
        self.backend = backend
        self.bits = tuple(bits)
        self.folder = Path(folder)
        self.fingerprint = fingerprint
        self._hessian = hessian
        self._modules: dict[tuple[str, int], nn.Module] = {}
        self._files: dict[int, Any] = {}
        self._keys: dict[int, dict[str, list[str]]] = {}
        self._weights: OrderedDict[tuple[str, int], Tensor] = OrderedDict()
        self._room = weight_cache_bytes
        check_shapes(backend, self.linears, self.bits)
        for b in self.bits:
            if b != UNQUANTIZED_BITS:
                self._open(b, progress)

    def module(self, name: str, bits: int) -> nn.Module:
        """The linear `name` at `bits`: one module, shared by every call."""
        if bits == UNQUANTIZED_BITS:
            return self.linears[name]
        key = (name, bits)
        if key not in self._modules:
            self._modules[key] = self._load(name, bits)
        return self._modules[key]

    def weight(self, name: str, bits: int) -> Tensor:
        """The dequantized weight (out, in) of a linear at `bits`, from a cache of bounded size.

        Rounded to the linear's dtype, as its module computes with, then put in `compute`.
        """
        dtype = self.compute or self.linears[name].weight.dtype
        if bits == UNQUANTIZED_BITS and dtype == self.linears[name].weight.dtype:
            return self.linears[name].weight.detach()
        key = (name, bits)
        if key in self._weights:
            self._weights.move_to_end(key)
            return self._weights[key]
        if bits == UNQUANTIZED_BITS:
            weight = self.linears[name].weight.detach().to(dtype)
        else:
            weight = self.backend.dequantize(self._load(name, bits)).detach().to(dtype)
        self._weights[key] = weight
        self._room -= weight.nbytes
        while self._room < 0 and len(self._weights) > 1:
            self._room += self._weights.popitem(last=False)[1].nbytes
        return weight

    def release(self) -> None:
        """Forget the dequantized weights that are kept ready."""
        self._room += sum(weight.nbytes for weight in self._weights.values())
        self._weights.clear()

    def nbytes(self, name: str, bits: int) -> int:
        """Bytes of every tensor that a linear holds for its weight at `bits`, counted one by one."""
        if bits == UNQUANTIZED_BITS:
            return self.linears[name].weight.nbytes
        return sum(t.nbytes for t in self.backend.to_tensors(self._load(name, bits)).values())

    def path(self, bits: int) -> Path:
        """The file of a bit-width."""
        return bank_file(self.folder, self.fingerprint, self.backend, bits, self.linears)

    # -- files ---------------------------------------------------------------------------------
    def _open(self, bits: int, progress: Progress | None) -> None:
        path = self.path(bits)
        if not self._read(path, bits):
            self._build(path, bits, progress)
            if not self._read(path, bits):
                raise RuntimeError(f"the bank file {path} cannot be read after it was written")

    def _read(self, path: Path, bits: int) -> bool:
        """Open a file and index it; False if it is missing or not whole."""
        if not path.is_file():
            return False
        try:
            file = open_tensors(path)
        except (DamagedFile, OSError) as error:
            log.warning("%s: quantizing again", error)
            return False
        keys: dict[str, list[str]] = {}
        for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
            keys.setdefault(key.rpartition("::")[0], []).append(key)
        if set(keys) != set(self.linears):
            log.warning("%s holds other linears: quantizing again", path)
            return False
        self._files[bits], self._keys[bits] = file, keys
        return True

    def _build(self, path: Path, bits: int, progress: Progress | None) -> None:
        tensors: dict[str, Tensor] = {}
        for done, (name, linear) in enumerate(self.linears.items()):
            if progress is not None:
                progress(f"quantize {bits} bits", done, len(self.linears))
            hessian = self._hessian(name) if self.backend.calibrated and self._hessian is not None else None
            module = self.backend.quantize(linear, bits, hessian=hessian)
            for key, tensor in self.backend.to_tensors(module).items():
                tensors[f"{name}::{key}"] = tensor.cpu()
        if progress is not None:
            progress(f"quantize {bits} bits", len(self.linears), len(self.linears))
        write_tensors(tensors, path)

    def _load(self, name: str, bits: int) -> nn.Module:
        linear = self.linears[name]
        file = self._files[bits]
        tensors = {
            key.rpartition("::")[2]: file.get_tensor(key).to(linear.weight.device) for key in self._keys[bits][name]
        }
        return self.backend.from_tensors(
            tensors,
            bits=bits,
            out_features=linear.out_features,
            in_features=linear.in_features,
            bias=linear.bias,
            dtype=linear.weight.dtype,
        )


def bank_folder(given: str | None) -> Path:
    """Where banks are kept: as given, or in the user's cache."""
    return Path(given) if given is not None else cache_root() / "bank"


def bank_file(folder: Path, fingerprint: str, backend: Backend, bits: int, names: Iterable[str]) -> Path:
    """Where the linears of these names are kept at a bit-width."""
    # Only the options that matter at this width would be ideal; a mixed backend differs as a whole.
    identity = json.dumps([fingerprint, backend.spec, bits, sorted(names)], sort_keys=True)
    return folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}-{bits}bit.safetensors"


def check_shapes(backend: Backend, linears: Mapping[str, nn.Linear], bits: Sequence[int]) -> None:
    """Raises ValueError where the backend cannot store a linear at one of the bit-widths."""
    for b in bits:
        for name, linear in linears.items() if b != UNQUANTIZED_BITS else ():
            reason = backend.supports(b, linear.out_features, linear.in_features)
            if reason is not None:
                raise ValueError(f"{name}: {reason}")


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of every parameter and buffer of a model, each tensor counted once."""
    seen: dict[int, int] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        seen[tensor.data_ptr() or id(tensor)] = tensor.nbytes
    return sum(seen.values())
