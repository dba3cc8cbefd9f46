"""Whether kernels written in Triton are used: on a GPU, where a first one could be compiled and run."""

from __future__ import annotations

import logging
from functools import lru_cache

import torch

from qra_backends.base import explain_missing_library

log = logging.getLogger(__name__)


def are_kernels_usable(device: torch.device) -> bool:
    """Whether our kernels work on tensors of a device. Elsewhere torch's operations give the same numbers.

    Triton needs a C compiler when a kernel is first called, which slim images lack.
    """
    return device.type == "cuda" and _can_compile()


@lru_cache(maxsize=1)
def _can_compile() -> bool:
    """Whether a kernel compiles here: tried, and its failure logged, once a process."""
    reason = explain_missing_library("triton")
    if reason is None:
        try:
            try_kernel()
        except Exception as error:  # whatever a missing compiler, its headers or an old driver come to
            reason = f"Triton cannot compile here ({type(error).__name__}: {error})"
    if reason is not None:
        log.warning(
            "the GPU dequantizes more slowly than it could, as its kernels are not available: %s",
            " ".join(reason.split()),
        )
    return reason is None


def try_kernel() -> None:
    """Compile and run a kernel on a weight of one number; raises what keeps it from that."""
    from qra_backends.kernels.groupwise import decode

    one = torch.ones(1, 1, dtype=torch.float16, device="cuda")
    decode(one.view(torch.uint8).view(-1), one, one, 8, 1, (1, 1), torch.float32).cpu()
