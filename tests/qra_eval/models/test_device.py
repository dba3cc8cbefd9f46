"""A device by its text, and what is said of one that is not there; GPUs are pretended."""

from __future__ import annotations

import mmap

import pytest
import torch

from qra_eval.models import device as device_module
from qra_eval.models.device import release_freed_memory, resolve_device
from qra_search import BadInput


@pytest.fixture
def gpus(monkeypatch):
    """Sets how many CUDA devices torch is said to see."""

    def see(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return see


def test_auto_is_a_gpu_if_there_is_one(gpus):
    gpus(2)
    assert resolve_device("auto") == torch.device("cuda")
    gpus(0)
    assert resolve_device("auto") == torch.device("cpu")


NEITHER = "device must be auto, cpu, cuda or cuda:N, got "


@pytest.mark.parametrize(
    ("count", "text", "message"),
    [
        (0, "cuda", "device is 'cuda', but torch .* finds no CUDA device. Use --device cpu, or install"),
        (2, "cuda:7", "device 'cuda:7' does not exist: use --device cuda:0 to cuda:1$"),
        (1, "cuda:1", "device 'cuda:1' does not exist: use --device cuda:0$"),
        *((2, text, NEITHER) for text in ("gpu", "", "cuda:", "cuda:-1", "cuda:x", "CUDA", "cuda:0\n")),
    ],
)
def test_a_device_that_is_not_there_or_is_none_is_refused_with_what_there_is(gpus, count, text, message):
    gpus(count)
    with pytest.raises(BadInput, match=message):
        resolve_device(text)


def test_freed_memory_is_given_back_once_the_process_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[int] = []
    monkeypatch.setattr(device_module, "MALLOC_TRIM", trims.append)
    monkeypatch.setattr(device_module, "_released_at", [0])
    monkeypatch.setattr(device_module, "RELEASE_GROWTH_BYTES", 16 << 20)
    release_freed_memory(torch.device("cpu"))  # the process is larger than that
    release_freed_memory(torch.device("cpu"))
    assert trims == [0], "it has not grown since"
    grown = mmap.mmap(-1, 32 << 20)  # malloc could reuse memory that earlier tests freed
    grown.write(bytes([1]) * len(grown))
    release_freed_memory(torch.device("cuda"))
    assert trims == [0]
    release_freed_memory(torch.device("cpu"))
    assert trims == [0, 0]
