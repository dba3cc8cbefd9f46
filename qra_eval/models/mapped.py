"""Weights that are mapped from a checkpoint: what was read of them is let go until it is used."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

from torch import Tensor

SUFFIX = ".safetensors"
_libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


class MappedFiles:
    """The checkpoints that this process has mapped, as ranges of addresses; none but on Linux."""

    def __init__(self) -> None:
        lines = Path("/proc/self/maps").read_text().splitlines() if _libc is not None else []
        ranges = [line.split()[0].split("-") for line in lines if line.endswith(SUFFIX)]
        self.ranges = [(int(start, 16), int(stop, 16)) for start, stop in ranges]

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in one of the files."""
        if tensor.device.type != "cpu" or type(tensor.data) is not Tensor:
            return False
        address = tensor.data_ptr()
        return any(start <= address < stop for start, stop in self.ranges)

    def release(self, tensor: Tensor) -> None:
        """Let go of the pages of a tensor that nobody has written to; they are read again when it is used."""
        if not self.holds(tensor) or _libc is None:
            return
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > start:
            _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)
