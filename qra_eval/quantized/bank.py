"""The bank: every linear at every level, quantized once, kept on disk, and read memory-mapped."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from qra_backends.base import Backend
from torch import Tensor, nn

from qra_eval.models.device import send_tensor
from qra_eval.models.experts import make_linear
from qra_eval.models.loaded import get_cache_root, make_cache_error
from qra_eval.quantized.tensorfile import DamagedFile, open_tensors, write_tensors
from qra_search.errors import BadInput
from qra_search.evaluator import Progress
from qra_search.files import read_json, write_text
from qra_search.log.journal import describe_process
from qra_search.schemas import LevelName
from qra_search.space.memory import UNQUANTIZED_BITS

log = logging.getLogger(__name__)

WAIT_SECONDS = 1.0
BANK_VERSION = 5
"""Version of how Hessians are gathered and files laid out: files of another version are not read."""


class Bank:
    """Quantized versions of a model's linears, one safetensors file for each level of a decoder layer.

    Files are named by all that their content follows from: the weights, the backend with its revision and library at
    that level, the calibration data if the level is calibrated, and the kind of device, whose arithmetic rounds its own
    way. Those that are missing, cut off or foreign are made by `qra_eval.quantized.build`.

    Args:
        linears: by name; left untouched.
        backend: quantizes them.
        bits: the levels wanted; 16 stands for the linear as it is.
        folder: where the files are kept.
        fingerprint: identifies the weights.
        calibration: identifies the calibration data.
        layers: decoder layer of each linear.
        levels: those of layers that have others than `bits`.
        calibrations: those of layers that are calibrated in another way.
        devices: where modules and weights of a layer are given; default: where the linears are.
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
        layers: Mapping[str, int],
        levels: Mapping[int, Sequence[LevelName]] | None = None,
        calibrations: Mapping[int, str] | None = None,
        devices: Mapping[int, torch.device] | None = None,
    ):
        self.linears, self.backend, self.bits = dict(linears), backend, tuple(bits)
        self.folder, self.fingerprint, self.calibration = Path(folder), fingerprint, calibration
        self.devices, self._levels = dict(devices or {}), dict(levels or {})
        self._calibrations = dict(calibrations or {})
        # Layers that pass in float32 have float32 weights meanwhile.
        self.dtypes = {name: linear.weight.dtype for name, linear in self.linears.items()}
        self.layer_of = {name: layers[name] for name in self.linears}
        self._names: dict[int, list[str]] = {}
        for name, layer in self.layer_of.items():
            self._names.setdefault(layer, []).append(name)
        self._files: dict[tuple[int, LevelName], tuple[Any, dict[str, list[str]]]] = {}

    # -- modules and weights -------------------------------------------------------------------
    def load_module(self, name: str, bits: LevelName) -> nn.Module:
        """The linear `name` at `bits`; on the host its tensors are those of the file, mapped."""
        linear, device = self.linears[name], self.get_device(name)
        bias = None if linear.bias is None else linear.bias.to(device)
        if bits == UNQUANTIZED_BITS:
            if device == linear.weight.device:
                return linear
            return make_linear(send_tensor(linear.weight.detach(), device), bias)
        return self.backend.from_tensors(
            {key: send_tensor(tensor, device) for key, tensor in self.load_tensors(name, bits).items()},
            bits=bits,
            out_features=linear.out_features,
            in_features=linear.in_features,
            bias=bias,
            dtype=self.dtypes[name],
        )

    def load_weight(self, name: str, bits: LevelName, dtype: torch.dtype | None = None) -> Tensor:
        """The dequantized weight (out, in) of a linear at `bits`.

        Rounded to the linear's dtype, as its module computes with, then cast to `dtype`.
        """
        own = self.linears[name].weight.detach()
        weight = (
            own
            if bits == UNQUANTIZED_BITS
            else self.backend.dequantize(self.load_module(name, bits)).detach()
        )
        return weight.to(device=self.get_device(name), dtype=dtype or own.dtype)

    # -- files ---------------------------------------------------------------------------------
    def get_path(self, layer: int, bits: LevelName) -> Path:
        """The file of a layer's linears at a level."""
        own = self._calibrations.get(layer, self.calibration)
        calibration = own if self.backend.is_calibrated(bits) else ""
        digest = self._digest(calibration, [self.backend.identity(bits), self.list_storable(layer, bits)])
        level = bits if isinstance(bits, str) else f"{bits}bit"
        return self.folder / f"{digest}-{level}-{layer}.safetensors"

    def get_figures_file(self, layer: int) -> Path:
        levels = [[self.backend.identity(b), self.list_storable(layer, b)] for b in self.list_levels(layer)]
        return self.folder / f"{self._digest(self.calibration, levels)}-figures-{layer}.json"

    def _digest(self, calibration: str, of_levels: Any) -> str:
        devices = sorted({device.type for device in self.devices.values()} - {"cpu"})
        identity = [BANK_VERSION, self.fingerprint, calibration, of_levels, devices]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def lock_file(self) -> Path:
        """Held by the process that makes the files, at whichever levels."""
        return self.folder / f"{self._digest(self.calibration, self.backend.spec)}.lock"

    def list_names(self, layer: int) -> list[str]:
        """The linears of a layer, in the model's order."""
        return list(self._names[layer])

    def list_levels(self, layer: int) -> tuple[LevelName, ...]:
        return tuple(b for b in self._levels.get(layer, self.bits) if b != UNQUANTIZED_BITS)

    def list_storable(self, layer: int, bits: LevelName) -> list[str]:
        """The linears of a layer whose shape the backend can store at a level, in the model's order."""
        return [name for name in self._names[layer] if can_store(self.backend, bits, self.linears[name])]

    def find_missing(self, some: Collection[int] | None = None) -> dict[int, list[LevelName]]:
        """Levels that each layer (or each of some) lacks, in the layers' order; those that lack none are left out."""
        layers = dict.fromkeys(self.layer_of.values()) if some is None else some
        lacking = {
            layer: [
                b
                for b in self.list_levels(layer)
                if self.list_storable(layer, b) and self._open(layer, b) is None
            ]
            for layer in layers
        }
        return {layer: levels for layer, levels in lacking.items() if levels}

    def write(self, layer: int, bits: LevelName, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Keep a layer's linears at a level: what `Backend.to_tensors` gives of each, by name."""
        flat = {f"{name}::{key}": tensor for name, parts in tensors.items() for key, tensor in parts.items()}
        write_tensors(flat, self.get_path(layer, bits))

    def read_figures(self, layer: int) -> dict[str, dict[str, list[float]]] | None:
        """Figures of a layer's linears from the pass of the calibration rows, by name; None if there are none.

        `damage`: at each of the layer's levels (`LayerMoments.estimate_damage`); 0 where the linear cannot be stored.
        `spectrum`: see `LayerMoments`.
        """
        try:
            figures: dict[str, Any] = read_json(self.get_figures_file(layer))
        except BadInput as error:
            log.warning("%s: measuring again", error)
            return None
        return figures if figures and {*self.list_names(layer)} <= figures.get("damage", {}).keys() else None

    def _open(self, layer: int, bits: LevelName) -> tuple[Any, dict[str, list[str]]] | None:
        """The opened file of a layer at a level, and the keys of each linear; None if it is missing or not whole.

        A damaged file is removed.
        """
        if (layer, bits) not in self._files:  # asked for every linear of every plan: nothing is hashed again
            path = self.get_path(layer, bits)
            if not path.is_file():
                return None
            try:
                file = open_tensors(path)
                keys: dict[str, list[str]] = {}
                for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
                    keys.setdefault(key.rpartition("::")[0], []).append(key)
                if set(keys) != set(self.list_storable(layer, bits)):
                    raise DamagedFile(f"{path} holds other linears")
            except DamagedFile as error:
                log.warning("%s: quantizing again", error)
                path.unlink(missing_ok=True)  # another process may have found it too
                return None
            self._files[layer, bits] = file, keys
        return self._files[layer, bits]

    def load_tensors(self, name: str, bits: LevelName) -> dict[str, Tensor]:
        """What `Backend.to_tensors` gave of a linear at a level, mapped from the file."""
        opened = self._open(self.layer_of[name], bits)
        if opened is None:
            raise RuntimeError(f"the bank has no whole file {self.get_path(self.layer_of[name], bits)}")
        file, keys = opened
        return {key.rpartition("::")[2]: file.get_tensor(key) for key in keys[name]}

    def get_device(self, name: str) -> torch.device:
        """Where a linear's modules and weights are given."""
        return self.devices.get(self.layer_of[name]) or self.linears[name].weight.device


def get_bank_folder(given: str | None) -> Path:
    """Where banks are kept: as given, or in the user's cache."""
    return Path(given) if given is not None else get_cache_root() / "bank"


def can_store(backend: Backend, bits: LevelName, linear: nn.Linear) -> bool:
    """Whether the backend can store a linear of this shape at a level."""
    return (
        bits == UNQUANTIZED_BITS
        or backend.unsupported_reason(bits, linear.out_features, linear.in_features) is None
    )


def count_tensor_bytes(model: nn.Module) -> int:
    """Bytes of every parameter and buffer of a model, each tensor counted once."""
    seen: dict[int, int] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        seen[tensor.data_ptr() or id(tensor)] = tensor.nbytes
    return sum(seen.values())


@contextmanager
def lock_work(lock_file: Path, work: str, progress: Progress | None) -> Iterator[None]:
    """Hold a lock, once no other process does; the kernel frees it when its process ends.

    Args:
        lock_file: its folder is made.
        work: what the holder does, for those that wait: `quantizes the same weights`.
        progress: called with the holder and its work, 0 and 1, while this process waits.
    """
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock_file.touch()
    except OSError as error:
        raise make_cache_error(lock_file.parent, error) from error
    lock, holder = FileLock(lock_file), lock_file.with_suffix(".holder")
    while not lock.is_locked:
        try:
            lock.acquire(timeout=WAIT_SECONDS)
        except Timeout:
            if progress is not None:
                owner = "another process"
                with suppress(OSError):  # it may have ended meanwhile
                    owner = holder.read_text()
                progress(f"wait for {owner}: it {work}", 0, 1)
    try:
        write_text(holder, describe_process(os.getpid()))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
