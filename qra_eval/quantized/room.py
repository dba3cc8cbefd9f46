"""How much memory may go to dequantized weights: by what is free on the device, unless the config says a size."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

from qra_search.space.memory import parse_bytes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`, from its malloc.h."""
FREED_AT_ONCE = 128 << 10
"""Bytes of a block from which on it is given back."""
SHARE = 0.4
"""Of what is free: the rest is for the plan, adapters, activations and logits."""
HOST_SHARE = 0.25
"""On a CPU, where other processes live of the same memory, and workers each have their own."""


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device now; of the host's memory what is available without swapping."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as lines:
            found = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
        return int(found["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError):  # no Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def give_back_freed_memory() -> None:
    """On Linux: what tensors have freed goes back to the system at once, so that memory is what lives, and no more.

    glibc otherwise keeps blocks of up to 32 MiB for the next that asks: the process of a search on a model of 0.3
    billion weights kept 740 MiB of 1.2 GiB so. It costs page faults, so it is done where memory matters more.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and hasattr(library, "gnu_get_libc_version"):
        library.mallopt(M_MMAP_THRESHOLD, FREED_AT_ONCE)
        library.mallopt(M_TRIM_THRESHOLD, FREED_AT_ONCE)


def weight_cache_bytes(given: int | str, device: torch.device) -> int:
    """Bytes for dequantized weights on a device: as given (`2GiB`, 0), or of what is free now (`auto`)."""
    if given != "auto":
        return 0 if str(given) == "0" else parse_bytes(given)
    return int(free_bytes(device) * (HOST_SHARE if device.type == "cpu" else SHARE))
