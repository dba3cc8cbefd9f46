"""Devices: which a text names, and the memory of a CPU."""

from __future__ import annotations

import ctypes
import re
import sys

import psutil
import torch

from qra_search.errors import BadInput, shorten

MALLOC_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
"""glibc's function; None elsewhere."""
RELEASE_GROWTH_BYTES = 512 << 20
"""Bytes by which a process on a CPU grows before freed memory goes back to the system."""
_released_at = [0]
"""Resident bytes after the last release, or the fewest since."""

_FORM = re.compile(r"auto|cpu|cuda(?::(\d+))?")


def resolve_device(text: str) -> torch.device:
    """The device that a text names; `auto` is a GPU if torch sees one."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    form = _FORM.fullmatch(text)
    if form is None:
        raise BadInput(f"device must be auto, cpu, cuda or cuda:N, got {shorten(text)}")
    if text == "cpu" or (text == "auto" and not count):
        return torch.device("cpu")
    if not count:
        raise BadInput(
            f"device is {text!r}, but torch {torch.__version__} finds no CUDA device. Use --device cpu, or install a "
            "torch with CUDA"
        )
    if int(form[1] or 0) >= count:
        raise BadInput(
            f"device {text!r} does not exist: use --device cuda:0{f' to cuda:{count - 1}' if count > 1 else ''}"
        )
    return torch.device("cuda" if text == "auto" else text)


def send_tensor(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device; to a GPU by way of pinned memory, from which it goes while the host does something else."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def release_freed_memory(device: torch.device) -> None:
    """After a step or a layer on a CPU: glibc's heap goes back to the system but for what lives in it, once the process
    has grown by `RELEASE_GROWTH_BYTES`.

    A tuning of 1.5B otherwise grew from 7.8 to 10.9 GiB in 36 steps (`benchmarks/memory/scale.py`). After every step it
    would cost more than it gives: pages that come back take an eighth of a step of SmolLM2.
    """
    if device.type != "cpu" or MALLOC_TRIM is None:
        return
    resident = psutil.Process().memory_info().rss
    _released_at[0] = min(_released_at[0], resident)
    if resident > _released_at[0] + RELEASE_GROWTH_BYTES:
        MALLOC_TRIM(0)
        _released_at[0] = psutil.Process().memory_info().rss
