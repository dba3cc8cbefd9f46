"""Which device a text names, and one clear line if there is none such, before anything is loaded on it."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from qra_search.errors import BadInput, shortened

if TYPE_CHECKING:
    import torch

PRODUCTS = 256
"""More than a step of training takes, adapters of four ranks among its products."""
FORMS = "auto, cpu, cuda, cuda:1, or cuda:0,cuda:1 to spread the layers,"
_FORM = re.compile(r"auto|cpu|cuda(?::(\d+))?")


def resolve_devices(text: str) -> list[torch.device]:
    """The devices that a text names, over which the layers of a model are spread; mostly one.

    Raises:
        BadInput: as `resolve_device`, or one is named twice.
    """
    found = [resolve_device(part) for part in text.split(",")]
    if len(found) > 1 and (len(set(found)) < len(found) or any(device.index is None for device in found)):
        raise BadInput(f"device is {shortened(text)}: name each GPU by its number, once, such as cuda:0,cuda:1")
    if len(found) > 1 and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise BadInput(f"device is {shortened(text)}: processes of a launcher have one GPU each: use --device cuda")
    return found


def resolve_device(text: str) -> torch.device:
    """The device that a text names; `auto` is a GPU if torch sees one.

    Raises:
        BadInput: no device of that form, or torch has none such.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if count and beside > 1 and text in ("auto", "cuda"):
        if beside > count:
            raise BadInput(f"{beside} processes on this machine, where torch sees {count} CUDA devices: start as many")
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    form = _FORM.fullmatch(text)
    if form is None:
        raise BadInput(f"device is {shortened(text)}: {FORMS} is needed")
    if text == "cpu" or (text == "auto" and not count):
        return torch.device("cpu")
    if not count:
        built = "" if torch.backends.cuda.is_built() else " was built without CUDA"
        raise BadInput(
            f"device {text!r}: no CUDA device is visible to torch here (torch {torch.__version__}{built}): "
            f"use --device cpu"
        )
    if int(form[1] or 0) >= count:
        known = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise BadInput(f"device {text!r} is not there: torch sees {known}")
    return torch.device("cuda" if text == "auto" else text)


def send_tensor(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device; to a GPU by way of pinned memory, from which it goes while the host does something else."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def keep_few_products() -> None:
    """On a CPU: hold oneDNN to `PRODUCTS` compiled products; before the first one is made.

    It keeps 1,024 by itself, about 0.5 MiB each, and makes new ones for every length of rows: a process grew by 20 MiB
    with each length it met. To make one again costs half a millisecond.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRODUCTS))


def give_back_freed_memory(device: torch.device) -> None:
    """After a step or a layer on a CPU: glibc's heap goes back to the system but for what lives in it.

    It otherwise keeps what tensors have freed, in holes that the next ones do not fill: a tuning of 1.5B grew from 7.8
    to 10.9 GiB in 36 steps. To have each block go back as it is freed (`M_MMAP_THRESHOLD`) costs page faults: 106
    seconds of the processor instead of 62 (`benchmarks/memory/scale.py`, a search of 0.4B).
    """
    trim = _malloc_trim() if device.type == "cpu" else None
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    """glibc's function; None elsewhere."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None


def has_matrix_units() -> bool:
    """Whether this CPU multiplies half precision by AMX; True where torch does not say."""
    import torch

    return bool(torch.cpu.get_capabilities().get("amx_bf16")) if hasattr(torch.cpu, "get_capabilities") else True
