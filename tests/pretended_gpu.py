"""A GPU that is not there: values on the CPU, the device written on each storage, operands on two devices refused.

It sees no kernels that CUDA lacks, none of CUDA's rounding, no fragmentation, no streams.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from qra_backends import kernels as our_kernels
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
FREE = 8 << 30
MAKERS = ["empty", "zeros", "ones", "full"]
MAKERS += [f"{name}_like" for name in MAKERS]
MAKERS += ["arange", "linspace", "eye", "rand", "randn", "randint", "tensor", "as_tensor"]
_kind = torch._C.TensorBase.device.__get__  # type: ignore[attr-defined]
_send = Tensor.to


class PretendedGpu(TorchDispatchMode):
    """Checks every operation, and counts the bytes that live on the device.

    Attributes:
        room: bytes that the device has.
        bytes, peak: on the device, now and at most since `peak` was last set.
        sent, fetched: bytes that went to the device, and came from it.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.bytes = self.peak = self.sent = self.fetched = 0
        self.sending: list[torch.device] = []

    def mark(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Write the device on a tensor's storage."""
        storage: Any = tensor.untyped_storage()
        if device.type == "cuda" and place(tensor).type != "cuda":
            size = storage.nbytes()
            self.bytes += size
            if self.bytes > self.room:
                self.bytes -= size
                raise torch.OutOfMemoryError(
                    f"the pretended GPU is out of memory: {size} bytes beside {self.bytes}"
                )
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._free, size)
        storage.place = device
        return tensor

    def count(self, tensor: Tensor, to: torch.device, dtype: torch.dtype | None = None) -> None:
        """A copy between host and device: what changes its dtype is changed before it is sent, as by CUDA."""
        size = tensor.numel() * (dtype or tensor.dtype).itemsize
        self.sent += size if to.type == "cuda" else 0
        self.fetched += size if to == CPU else 0

    def _free(self, size: int) -> None:
        self.bytes -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t for t in iterate_tensors((args, kwargs)) if _kind(t).type == "cpu"]
        places = {place(t) for t in given if t.dim() or place(t).type == "cuda"}
        cards = [p for p in places if p.type == "cuda"]
        name = func._schema.name
        if name == "aten::copy_" and not self.sending and cards and CPU in places:
            self.count(given[1], place(given[0]))
        if cards and not self.sending and name not in ("aten::copy_", "aten::_to_copy"):
            indexed = name.startswith("aten::index") and place(given[0]).type == "cuda"
            if len(cards) > 1 or (CPU in places and not indexed):
                raise RuntimeError(f"operands of {name} are on two devices")
            if (kwargs or {}).get("generator") is not None:
                raise RuntimeError(f"{name} on the device with a generator of the CPU")
        made = func(*args, **(kwargs or {}))
        if cards or self.sending:
            known = {t.untyped_storage()._cdata for t in given}
            for tensor in iterate_tensors(made):
                if tensor.untyped_storage()._cdata not in known:
                    self.mark(tensor, self.sending[-1] if self.sending else cards[0])
        return made


def iterate_tensors(given: Any) -> Iterator[Tensor]:
    """Those among an operation's arguments or results; torch's own search for them takes twice as long as the rest."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, list | tuple | dict):
        for each in given.values() if isinstance(given, dict) else given:
            yield from iterate_tensors(each)


class SendTensor(torch.autograd.Function):
    """A tensor with a gradient sent to another device: its gradient goes back to where it was."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: torch.device) -> Tensor:
        ctx.back = place(tensor)
        return tensor.to(device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].to(ctx.back), None


def group_tensors(lists: Any, with_indices: bool = False) -> dict[Any, Any]:
    """Tensors by device and dtype, as torch groups those that the optimizer and clipping work on together."""
    groups: dict[Any, Any] = {}
    for i, first in enumerate(lists[0]):
        made, indices = groups.setdefault((place(first), first.dtype), ([[] for _ in lists], []))
        indices.append(i)
        for own, some in zip(made, lists, strict=True):
            own += some[i : i + 1]
    return groups


def place(tensor: Tensor) -> torch.device:
    """The device that is written on a tensor's storage; the real one if none is, or it is not the CPU."""
    kind = _kind(tensor)
    return getattr(tensor.untyped_storage(), "place", CPU) if kind.type == "cpu" else kind


def parse_device(device: Any) -> torch.device | None:
    """The device that an argument names."""
    if device is None:
        return None
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


@contextlib.contextmanager
def pretended_gpu(room: int = FREE, *, kernels: bool = False) -> Iterator[PretendedGpu]:
    """`cuda` is a device of this process, for as long as the context lasts.

    Args:
        kernels: ours are used as well, if Triton was imported to interpret them.
    """
    import bitsandbytes  # noqa: F401 - libraries that look for CUDA when they are imported do so before it is there
    import peft  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    gpu = PretendedGpu(room)
    torch.utils._device._device_constructors()  # remembers the makers that are there now
    with contextlib.ExitStack() as stack:
        if not kernels:
            stack.enter_context(mock.patch.object(our_kernels, "_can_compile", lambda: False))
        for owner, name, value in _replaced(gpu):
            stack.enter_context(mock.patch.object(owner, name, value, create=True))
        stack.enter_context(gpu)
        yield gpu


def _replaced(gpu: PretendedGpu) -> Iterator[tuple[Any, str, Any]]:
    def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        copy = kwargs.pop("copy", False)
        if args and isinstance(args[0], Tensor):
            device, dtype = place(args[0]), args[0].dtype
        else:
            device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)  # type: ignore[attr-defined]
        device = parse_device(device)
        if device is None or device == place(tensor):
            return _send(tensor, dtype or tensor.dtype, copy=copy)
        if device.type == "meta":
            return _send(tensor, device)
        if tensor.requires_grad and torch.is_grad_enabled():
            return SendTensor.apply(tensor if dtype is None else _send(tensor, dtype), device)
        gpu.count(tensor, device, dtype)
        gpu.sending.append(device)
        try:
            return _send(tensor, dtype or tensor.dtype, copy=True)
        finally:
            gpu.sending.pop()

    def maker(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def make(*args: Any, device: Any = None, pin_memory: bool = False, **kwargs: Any) -> Tensor:
            card = parse_device(device)
            if card is not None and card.type == "cuda":
                if kwargs.get("generator") is not None:
                    raise RuntimeError(f"torch.{real.__name__} on the device with a generator of the CPU")
                return gpu.mark(real(*args, **kwargs), card)
            return real(*args, **kwargs, **({} if device is None else {"device": device}))

        return make

    def like(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def make(tensor: Tensor, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            wanted = parse_device(device) or place(tensor)
            if wanted.type not in ("cpu", "cuda"):
                return real(tensor, *args, device=device, **kwargs)
            return gpu.mark(real(tensor, *args, **kwargs), wanted)

        return make

    yield from (
        (torch.cuda, name, value)
        for name, value in {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "mem_get_info": lambda device=None: (gpu.room - gpu.bytes, gpu.room),
            "memory_reserved": lambda device=None: gpu.bytes,
            "memory_allocated": lambda device=None: gpu.bytes,
            "max_memory_reserved": lambda device=None: gpu.peak,
            "max_memory_allocated": lambda device=None: gpu.peak,
            "reset_peak_memory_stats": lambda device=None: setattr(gpu, "peak", gpu.bytes),
            "get_device_name": lambda device=None: "pretended",
            "synchronize": lambda device=None: None,
            "empty_cache": lambda: None,
            "get_rng_state": lambda device=None: torch.get_rng_state(),
            "manual_seed_all": lambda seed: None,
            "is_bf16_supported": lambda **options: True,
            "get_device_capability": lambda device=None: (9, 0),
        }.items()
    )
    yield torch._C, "_group_tensors_by_device_and_dtype", group_tensors
    yield torch, "compile", lambda function=None, **options: function or (lambda given: given)
    yield from ((torch, name, maker(getattr(torch, name))) for name in MAKERS)
    copied = torch.UntypedStorage.__deepcopy__

    def copy_storage(storage: Any, memo: Any) -> Any:
        made = copied(storage, memo)
        made.place = getattr(storage, "place", CPU)
        return made

    yield torch.UntypedStorage, "__deepcopy__", copy_storage
    yield Tensor, "device", property(place)
    yield Tensor, "is_cuda", property(lambda tensor: place(tensor).type == "cuda")
    yield Tensor, "to", to
    yield Tensor, "pin_memory", lambda tensor, *args: tensor
    yield Tensor, "cpu", lambda tensor: to(tensor, CPU)
    yield Tensor, "cuda", lambda tensor, *args: to(tensor, CUDA)
    for name in ("new_zeros", "new_empty", "new_ones", "new_full"):
        yield Tensor, name, like(getattr(Tensor, name))
