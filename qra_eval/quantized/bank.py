"""The bank: linears at the levels that plans asked for, quantized once, kept on disk, and read memory-mapped."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from qra_backends.base import Backend
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qra_eval.models.device import send_tensor
from qra_eval.models.linears import make_linear
from qra_eval.models.loaded import get_cache_root, make_cache_error
from qra_search.errors import BadInput
from qra_search.evaluator import Progress
from qra_search.files import replace_file, write_text
from qra_search.schemas import LevelName
from qra_search.space.memory import UNQUANTIZED_BITS


def write_tensors(
    tensors: Mapping[str, Tensor],
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
    durable: bool = False,
) -> None:
    """Write tensors, with texts in the header; a reader sees the whole file or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path, durable=durable) as partial:
        ready = {name: t.cpu().contiguous() for name, t in tensors.items()}
        try:
            save_file(ready, partial, metadata={"format": "pt", **(metadata or {})})
        except SafetensorError as error:  # what is written is ours: it is the disk
            raise OSError(f"{path} cannot be written ({error})") from error


def open_tensors(path: str | Path, *, device: str = "cpu") -> Any:
    """The opened file (`keys`, `get_tensor`), memory-mapped."""
    try:
        return safe_open(path, framework="pt", device=device)
    except SafetensorError as error:
        raise BadInput(f"{path} is damaged, or not a safetensors file ({error})") from error


log = logging.getLogger(__name__)

WAIT_SECONDS = 1.0
BANK_VERSION = 6
"""Version of how Hessians are gathered and files laid out: files of another version are not read."""


class Bank:
    """Quantized versions of a model's linears, one safetensors file for each linear and level that a plan asked for.

    Files are named by all that their content follows from: the weights, the backend with its revision and library at
    that level, the calibration data if the level is calibrated, and the kind of device, whose arithmetic rounds its own
    way. Those that are missing or cut off are made by `qra_eval.quantized.build`.

    Args:
        fingerprint, calibration: identify the weights, and the calibration data.
        layers: decoder layer of each linear; tables are in one layer more.
        device: where modules are given; default: where the linears are.
    """

    def __init__(
        self,
        linears: Mapping[str, nn.Linear],
        backend: Backend,
        folder: str | Path,
        fingerprint: str,
        *,
        calibration: str = "",
        layers: Mapping[str, int],
        device: torch.device | None = None,
    ):
        self.linears, self.backend = dict(linears), backend
        self.folder, self.fingerprint, self.calibration = Path(folder), fingerprint, calibration
        self.device = device
        # Layers that pass in float32 have float32 weights meanwhile.
        self.dtypes = {name: linear.weight.dtype for name, linear in self.linears.items()}
        self.layer_of = {name: layers[name] for name in self.linears}
        self._files: dict[tuple[str, LevelName], Any] = {}

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

    # -- files ---------------------------------------------------------------------------------
    def get_path(self, name: str, bits: LevelName) -> Path:
        calibration = self.calibration if self.backend.is_calibrated(bits) else ""
        level = bits if isinstance(bits, str) else f"{bits}bit"
        digest = self.digest(calibration, self.backend.identity(bits))
        return self.folder / f"{digest}-{level}-{name}.safetensors"

    def digest(self, *content: Any) -> str:
        """Digest of the weights, the kind of device, and what else a file's content follows from."""
        devices = [] if self.device is None or self.device.type == "cpu" else [self.device.type]
        identity = [BANK_VERSION, self.fingerprint, devices, *content]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def lock_file(self) -> Path:
        """Held by the process that makes the files, at whichever levels."""
        return self.folder / f"{self.digest(self.calibration, self.backend.spec)}.lock"

    def list_names(self, layer: int) -> list[str]:
        return [name for name, own in self.layer_of.items() if own == layer]

    def find_missing(self, wanted: Iterable[tuple[str, LevelName]]) -> dict[str, list[LevelName]]:
        """Of linears at levels those that the bank lacks: the levels by name."""
        missing: dict[str, list[LevelName]] = {}
        for name, bits in wanted:
            if bits != UNQUANTIZED_BITS and self._open(name, bits) is None:
                missing.setdefault(name, []).append(bits)
        return missing

    def _open(self, name: str, bits: LevelName) -> Any | None:
        """The opened file of a linear at a level; None if it is missing or not whole. A damaged file is removed."""
        if (name, bits) not in self._files:  # asked for every linear of every plan: nothing is hashed again
            path = self.get_path(name, bits)
            if not path.is_file():
                return None
            try:
                self._files[name, bits] = open_tensors(path)
            except BadInput as error:
                log.warning("%s: the weights are quantized again", error)
                path.unlink(missing_ok=True)  # another process may have found it too
                return None
        return self._files[name, bits]

    def load_tensors(self, name: str, bits: LevelName) -> dict[str, Tensor]:
        """What `Backend.to_tensors` gave of a linear at a level, mapped from the file."""
        file = self._open(name, bits)
        if file is None:
            raise RuntimeError(
                f"quantized weights in {self.get_path(name, bits)} are missing or damaged. Run the command again"
            )
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping

    def get_device(self, name: str) -> torch.device:
        return self.device or self.linears[name].weight.device


def get_bank_folder(given: str | None) -> Path:
    return Path(given) if given is not None else get_cache_root() / "bank"


def can_store(backend: Backend, bits: LevelName, linear: nn.Linear) -> bool:
    shape = linear.out_features, linear.in_features
    return bits == UNQUANTIZED_BITS or backend.unsupported_reason(bits, *shape) is None


def count_tensor_bytes(model: nn.Module) -> int:
    """Bytes of every parameter and buffer of a model, each tensor counted once."""
    seen: dict[int, int] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        seen[tensor.data_ptr() or id(tensor)] = tensor.nbytes
    return sum(seen.values())


@contextmanager
def lock_work(lock_file: Path, work: str, progress: Progress | None) -> Iterator[None]:
    """Hold a lock, once no other process does; the kernel frees it when its process ends.

    While this process waits, `progress` is called with the holder and its work, such as `quantizes the same weights`.
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
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]
        since = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
        write_text(holder, f"process {os.getpid()} on {socket.gethostname()}, since {since} ({command})")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
