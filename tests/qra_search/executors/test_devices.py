"""How devices are assigned to workers, and the message if there are too few GPUs; none is needed to see it."""

from __future__ import annotations

import sys

import pytest

from qra_search import BadInput
from qra_search.app import evaluator
from qra_search.app.config import RunConfig, make_config
from qra_search.app.evaluator import Workers, build_in_worker, make_executor
from qra_search.executors import workers as processes


def config(device: str) -> RunConfig:
    return make_config({"evaluator": "landscape", "model": {"device": device}})


@pytest.fixture
def four(monkeypatch):
    """Four GPUs are said to be visible."""
    monkeypatch.setattr(processes, "list_visible_gpus", lambda: [f"cuda:{i}" for i in range(4)])


def assign(device, workers):
    with make_executor(config(device), Workers(workers)) as executor:
        return executor.devices


@pytest.mark.parametrize(
    ("device", "workers", "expected"),
    [
        ("auto", 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda", 2, ["cuda:0", "cuda:1"]),
        ("cpu", 2, ["cpu", "cpu"]),
    ],
)
def test_each_worker_gets_a_gpu_if_its_run_leaves_that_open(four, device, workers, expected):
    assert assign(device, workers) == expected


@pytest.mark.parametrize(
    ("device", "workers", "message"),
    [
        ("auto", Workers(5), "each of 5 workers needs a GPU, and there are 4: use fewer"),
        (
            "cuda:1",
            Workers(2),
            "--device cuda:1 names one GPU, but each worker needs its own. Use --device cuda",
        ),
        ("cuda:1", Workers(1, "ray"), "--device cuda:1 names one GPU"),
    ],
)
def test_gpus_that_cannot_be_had_are_refused_in_one_line(four, device, workers, message):
    with pytest.raises(BadInput) as refused:
        make_executor(config(device), workers)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_without_a_gpu_cuda_is_refused_and_auto_means_the_cpu(monkeypatch):
    monkeypatch.setattr(processes, "list_visible_gpus", list)
    with pytest.raises(BadInput, match="there are 0: .* or --device cpu"):
        make_executor(config("cuda"), Workers(2))
    assert assign("auto", 2) == ["cpu", "cpu"]


@pytest.mark.parametrize(("device", "built"), [("auto", "cuda"), ("cuda", "cuda"), ("cpu", "cpu")])
def test_in_a_worker_its_gpu_is_cuda_whatever_its_number_is_outside(monkeypatch, device, built):
    seen = []
    monkeypatch.setenv("QRA_DEVICE", "cuda")
    monkeypatch.setattr(evaluator.plugins, "load", lambda kind, name: seen.append)
    build_in_worker(config(device))
    assert seen[0].model.device == built


def test_torch_is_not_imported_to_hear_that_it_was_built_without_gpus(monkeypatch):
    monkeypatch.setattr(processes.importlib.metadata, "version", lambda name: "2.13.0+cpu")
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it would fail
    assert processes.list_visible_gpus() == []


@pytest.mark.parametrize(("given", "gpus"), [("5,7", ["cuda:5", "cuda:7"]), (None, ["cuda:0", "cuda:1"])])
def test_a_worker_sees_one_of_the_gpus_that_this_process_was_given(monkeypatch, given, gpus):
    monkeypatch.setattr(processes.importlib.metadata, "version", lambda name: "2.13.0")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert processes.list_visible_gpus() == gpus
    variables = processes.make_environment(gpus[1], 2)
    assert variables["CUDA_VISIBLE_DEVICES"] == gpus[1].removeprefix("cuda:")
    assert variables["QRA_DEVICE"] == "cuda"
