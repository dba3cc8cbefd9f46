"""The bank: every linear at every level, quantized once, kept on disk, and read memory-mapped."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from qra_backends.base import Backend
from torch import Tensor, nn

from qra_eval.models.device import sent
from qra_eval.models.experts import linear_of
from qra_eval.models.loaded import cache_root
from qra_eval.quantized.tensorfile import DamagedFile, open_tensors, write_tensors
from qra_search.files import read_json, write_json
from qra_search.space.levels import LevelName
from qra_search.space.memory import UNQUANTIZED_BITS

log = logging.getLogger(__name__)

BANK_VERSION = 5
"""Of the way in which Hessians are gathered and files laid out: files of another version are not read."""


class Bank:
    """Quantized versions of a model's linears, one safetensors file for each level of a decoder layer.

    Files are named by all that their content follows from: the weights, the backend with its revision and library at
    that level, the calibration data if the level is calibrated, and the kind of device, whose arithmetic rounds its own
    way. Those that are missing, cut off or foreign are
    made by `qra_eval.quantized.build`.

    Args:
        linears: by name; left untouched.
        backend: quantizes them.
        bits: the levels wanted; 16 stands for the linear as it is.
        folder: where the files are kept.
        fingerprint: identifies the weights.
        calibration: identifies the calibration data.
        layers: decoder layer of each linear; default: all in one.
        levels: those of layers that have others than `bits`.
        devices: where modules and weights of a layer are given; default: where the linears are.
        room: bytes of dequantized weights that are kept, the last used ones.
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
        calibration: str = "",
        layers: Mapping[str, int] | None = None,
        levels: Mapping[int, Sequence[LevelName]] | None = None,
        devices: Mapping[int, torch.device] | None = None,
        room: int = 0,
        compute: torch.dtype | None = None,
    ):
        self.linears, self.backend, self.bits = dict(linears), backend, tuple(bits)
        self.folder, self.fingerprint, self.calibration = Path(folder), fingerprint, calibration
        self.compute, self.devices, self.room = compute, dict(devices or {}), room
        # Layers that pass in float32 have float32 weights meanwhile: what is kept then must serve afterwards too.
        self.dtypes = {name: linear.weight.dtype for name, linear in self.linears.items()}
        self.layer_of = {name: 0 if layers is None else layers[name] for name in self.linears}
        self._levels = dict(levels or {})
        self._names: dict[int, list[str]] = {}
        for name, layer in self.layer_of.items():
            self._names.setdefault(layer, []).append(name)
        self._files: dict[tuple[int, LevelName], Any] = {}
        self._keys: dict[tuple[int, LevelName], dict[str, list[str]]] = {}
        self._weights: OrderedDict[tuple[str, LevelName], Tensor] = OrderedDict()
        self._kept = 0
        self._damaged: set[Path] = set()

    # -- what is asked of it -------------------------------------------------------------------
    def module(self, name: str, bits: LevelName) -> nn.Module:
        """The linear `name` at `bits`; on the host its tensors are those of the file, mapped."""
        linear, device = self.linears[name], self.device_of(name)
        if bits == UNQUANTIZED_BITS:
            if device == linear.weight.device:
                return linear
            return linear_of(
                sent(linear.weight.detach(), device), None if linear.bias is None else linear.bias.to(device)
            )
        return self.backend.from_tensors(
            {key: sent(tensor, device) for key, tensor in self.tensors(name, bits).items()},
            bits=bits,
            out_features=linear.out_features,
            in_features=linear.in_features,
            bias=None if linear.bias is None else linear.bias.to(device),
            dtype=self.dtypes[name],
        )

    def weight(self, name: str, bits: LevelName) -> Tensor:
        """The dequantized weight (out, in) of a linear at `bits`.

        Rounded to the linear's dtype, as its module computes with, then put in `compute`.
        """
        own = self.linears[name].weight.detach()
        dtype, device = self.compute or own.dtype, self.device_of(name)
        if bits == UNQUANTIZED_BITS and dtype == own.dtype and device == own.device:
            return own
        key = (name, bits)
        if key not in self._weights:
            whole = own if bits == UNQUANTIZED_BITS else self.backend.dequantize(self.module(name, bits)).detach()
            weight = whole.to(device=device, dtype=dtype)
            if self.room < weight.nbytes:
                return weight
            self._weights[key] = weight
            self._kept += weight.nbytes
            while self._kept > self.room:
                self._kept -= self._weights.popitem(last=False)[1].nbytes
        self._weights.move_to_end(key)
        return self._weights[key]

    def forget(self) -> None:
        """Let the dequantized weights go that are kept."""
        self._weights.clear()
        self._kept = 0

    # -- files ---------------------------------------------------------------------------------
    def path(self, layer: int, bits: LevelName) -> Path:
        """The file of a layer's linears at a level."""
        calibration = self.calibration if self.backend.is_calibrated(bits) else ""
        digest = self._digest(calibration, [self.backend.identity(bits), self.stored(layer, bits)])
        level = bits if isinstance(bits, str) else f"{bits}bit"
        return self.folder / f"{digest}-{level}-{layer}.safetensors"

    def figures_file(self, layer: int) -> Path:
        """The file of a layer's `figures`."""
        levels = [[self.backend.identity(b), self.stored(layer, b)] for b in self.levels(layer)]
        return self.folder / f"{self._digest(self.calibration, levels)}-figures-{layer}.json"

    def _digest(self, calibration: str, of_levels: Any) -> str:
        devices = sorted({device.type for device in self.devices.values()} - {"cpu"})
        identity = [BANK_VERSION, self.fingerprint, calibration, of_levels, devices]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def lock_file(self) -> Path:
        """Held by the process that makes the files, at whichever levels."""
        return self.folder / f"{self._digest(self.calibration, self.backend.spec)}.lock"

    def names(self, layer: int) -> list[str]:
        """The linears of a layer, in the model's order."""
        return list(self._names[layer])

    def levels(self, layer: int) -> tuple[LevelName, ...]:
        """Those that a layer's linears are quantized at."""
        return tuple(b for b in self._levels.get(layer, self.bits) if b != UNQUANTIZED_BITS)

    def stored(self, layer: int, bits: LevelName) -> list[str]:
        """The linears of a layer whose shape the backend can store at a level, in the model's order."""
        return [name for name in self._names[layer] if storable(self.backend, bits, self.linears[name])]

    def missing(self, some: Collection[int] | None = None) -> dict[int, list[LevelName]]:
        """Levels that each layer (or each of some) lacks, in the layers' order; those that lack none are left out."""
        layers = dict.fromkeys(self.layer_of.values()) if some is None else some
        lacking = {layer: [b for b in self.levels(layer) if not self._opened(layer, b)] for layer in layers}
        return {layer: levels for layer, levels in lacking.items() if levels}

    def write(self, layer: int, bits: LevelName, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Keep a layer's linears at a level: what `Backend.to_tensors` gives of each, by name."""
        flat = {f"{name}::{key}": tensor for name, parts in tensors.items() for key, tensor in parts.items()}
        write_tensors(flat, self.path(layer, bits))

    def figures(self, layer: int) -> dict[str, dict[str, list[float]]] | None:
        """Figures of a layer's linears from the pass of the calibration rows, by name; None if there are none.

        `damage`: at each of the layer's levels, see `LayerMoments.damage`; 0 where the linear cannot be stored.
        `spectrum`: see `LayerMoments`.
        """
        return read_json(self.figures_file(layer))

    def write_figures(self, layer: int, figures: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        """Keep what `figures` gives."""
        write_json(self.figures_file(layer), figures)

    def _opened(self, layer: int, bits: LevelName) -> bool:
        """Open a file and index it; False if it is missing or not whole."""
        if (layer, bits) in self._files:  # asked for every linear of every plan: nothing is hashed again
            return True
        names = self.stored(layer, bits)
        if not names:
            return True
        path = self.path(layer, bits)
        if not path.is_file():
            return False
        try:
            file = open_tensors(path)
        except (DamagedFile, OSError) as error:
            self._complain(path, str(error))
            return False
        keys: dict[str, list[str]] = {}
        for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
            keys.setdefault(key.rpartition("::")[0], []).append(key)
        if set(keys) != set(names):
            self._complain(path, f"{path} holds other linears")
            return False
        self._files[layer, bits], self._keys[layer, bits] = file, keys
        return True

    def _complain(self, path: Path, fault: str) -> None:
        if path not in self._damaged:
            log.warning("%s: quantizing again", fault)
            self._damaged.add(path)

    def tensors(self, name: str, bits: LevelName) -> dict[str, Tensor]:
        """What `Backend.to_tensors` gave of a linear at a level, mapped from the file."""
        layer = self.layer_of[name]
        if not self._opened(layer, bits):
            raise RuntimeError(f"the bank has no whole file {self.path(layer, bits)}")
        file = self._files[layer, bits]
        return {key.rpartition("::")[2]: file.get_tensor(key) for key in self._keys[layer, bits][name]}

    def device_of(self, name: str) -> torch.device:
        """Where a linear's modules and weights are given."""
        return self.devices.get(self.layer_of[name]) or self.linears[name].weight.device


def bank_folder(given: str | None) -> Path:
    """Where banks are kept: as given, or in the user's cache."""
    return Path(given) if given is not None else cache_root() / "bank"


def storable(backend: Backend, bits: LevelName, linear: nn.Linear) -> bool:
    """Whether the backend can store a linear of this shape at a level."""
    return bits == UNQUANTIZED_BITS or backend.supports(bits, linear.out_features, linear.in_features) is None


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of every parameter and buffer of a model, each tensor counted once."""
    seen: dict[int, int] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        seen[tensor.data_ptr() or id(tensor)] = tensor.nbytes
    return sum(seen.values())


def weight_bytes(linears: Iterable[nn.Linear]) -> int:
    """Bytes of the weights of linears."""
    return sum(linear.weight.nbytes for linear in linears)
