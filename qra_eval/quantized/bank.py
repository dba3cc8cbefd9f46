"""The bank: every linear at every level, quantized once, kept on disk, and swapped in by reference."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from qra_backends.base import Backend
from torch import Tensor, nn

from qra_eval.models.loaded import cache_root
from qra_eval.quantized.tensorfile import DamagedFile, open_tensors, write_tensors
from qra_search.evaluation.protocols import Progress
from qra_search.space.levels import LevelName, level_words
from qra_search.space.memory import UNQUANTIZED_BITS

log = logging.getLogger(__name__)


class Bank:
    """Quantized versions of a model's linears.

    Each level is one safetensors file, named by a hash of the model, the backend and the calibration; files are
    read memory-mapped, so that workers share them. A missing file is made, and one that is cut off or foreign is made
    again with a warning.

    Args:
        linears: by name; left untouched.
        backend: quantizes them.
        bits: the levels wanted; 16 stands for the linear as it is.
        folder: where the files are kept.
        fingerprint: identifies the weights (and the calibration data, where the backend is calibrated).
        hessian: gives the (in, in) mean of x xᵀ of a linear's inputs; needed by calibrated backends.
        progress: called with `("quantize <bits> bits", done, total)`.
        keep_weights: whether a weight that was dequantized once is kept.
        compute: dtype in which `weight` gives dequantized weights; default: that of the linears.
    """

    def __init__(
        self,
        linears: Mapping[str, nn.Linear],
        backend: Backend,
        bits: Sequence[LevelName],
        folder: str | Path,
        fingerprint: str,
        *,
        hessian: Callable[[str], Tensor] | None = None,
        progress: Progress | None = None,
        keep_weights: bool = True,
        compute: torch.dtype | None = None,
    ):
        self.linears = dict(linears)
        self.compute = compute
        self.backend = backend
        self.bits = tuple(bits)
        self.folder = Path(folder)
        self.fingerprint = fingerprint
        self._modules: dict[tuple[str, LevelName], nn.Module] = {}
        self._files: dict[LevelName, Any] = {}
        self._keys: dict[LevelName, dict[str, list[str]]] = {}
        self._weights: dict[tuple[str, LevelName], Tensor] = {}
        self._keep_weights = keep_weights
        check_shapes(backend, self.linears, self.bits)
        for b in self.bits:
            if b != UNQUANTIZED_BITS:
                path = self.path(b)
                if not self._read(path, b):
                    self._build(path, b, hessian, progress)
                    if not self._read(path, b):
                        raise RuntimeError(f"the bank file {path} cannot be read after it was written")

    def module(self, name: str, bits: LevelName) -> nn.Module:
        """The linear `name` at `bits`: one module, shared by every call."""
        if bits == UNQUANTIZED_BITS:
            return self.linears[name]
        key = (name, bits)
        if key not in self._modules:
            self._modules[key] = self._load(name, bits)
        return self._modules[key]

    def weight(self, name: str, bits: LevelName) -> Tensor:
        """The dequantized weight (out, in) of a linear at `bits`.

        Rounded to the linear's dtype, as its module computes with, then put in `compute`.
        """
        own = self.linears[name].weight.detach()
        dtype = self.compute or own.dtype
        if bits == UNQUANTIZED_BITS and dtype == own.dtype:
            return own
        if (name, bits) in self._weights:
            return self._weights[name, bits]
        whole = own if bits == UNQUANTIZED_BITS else self.backend.dequantize(self._load(name, bits)).detach()
        weight = whole.to(dtype)
        if self._keep_weights:
            self._weights[name, bits] = weight
        return weight

    def path(self, bits: LevelName) -> Path:
        """The file of a level."""
        return bank_file(self.folder, self.fingerprint, self.backend, bits, self.linears)

    # -- files ---------------------------------------------------------------------------------
    def _read(self, path: Path, bits: LevelName) -> bool:
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

    def _build(
        self, path: Path, bits: LevelName, hessian: Callable[[str], Tensor] | None, progress: Progress | None
    ) -> None:
        """Quantize all linears at a level and write them; the Hessians are as large as the model, and not kept."""
        tensors: dict[str, Tensor] = {}
        for done, (name, linear) in enumerate(self.linears.items()):
            if progress is not None:
                progress(f"quantize {level_words(bits)}", done, len(self.linears))
            module = self.backend.quantize(linear, bits, hessian=None if hessian is None else hessian(name))
            for key, tensor in self.backend.to_tensors(module).items():
                tensors[f"{name}::{key}"] = tensor.cpu()
        if progress is not None:
            progress(f"quantize {level_words(bits)}", len(self.linears), len(self.linears))
        write_tensors(tensors, path)

    def _load(self, name: str, bits: LevelName) -> nn.Module:
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


def bank_file(folder: Path, fingerprint: str, backend: Backend, bits: LevelName, names: Iterable[str]) -> Path:
    """Where the linears of these names are kept at a level."""
    # Only the options that matter at this level would be ideal; a mixed backend differs as a whole.
    identity = json.dumps([fingerprint, backend.spec, bits, sorted(names)], sort_keys=True)
    level = bits if isinstance(bits, str) else f"{bits}bit"
    return folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}-{level}.safetensors"


def check_shapes(backend: Backend, linears: Mapping[str, nn.Linear], bits: Sequence[LevelName]) -> None:
    """Raises ValueError if the backend cannot store a linear at one of the levels."""
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
