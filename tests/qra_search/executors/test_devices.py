"""How devices are assigned to workers, and the message if there are too few GPUs; none is needed to see it."""

from __future__ import annotations

import sys

import pytest

from qra_search import BadInput
from qra_search.app import evaluator
from qra_search.app.config import RunConfig, make_config
from qra_search.app.evaluator import EvaluatorFactory, Workers, make_executor
from qra_search.executors import ProcessExecutor, devices


def config(device: str) -> RunConfig:
    return make_config({"evaluator": "landscape", "model": {"device": device}})


@pytest.fixture
def four(monkeypatch):
    """Four GPUs are said to be visible."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "list_visible_gpus", lambda: [f"cuda:{i}" for i in range(4)])


def assign(device, workers):
    with make_executor(config(device), Workers(workers)) as executor:
        return executor.devices


@pytest.mark.parametrize(
    ("device", "workers", "expected"),
    [
        ("auto", 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda", 2, ["cuda:0", "cuda:1"]),
        ("cuda:2", 1, ["cuda:2"]),
        ("cuda:1,cuda:3", 2, ["cuda:1", "cuda:3"]),
        ("cpu", 2, ["cpu", "cpu"]),
    ],
)
def test_each_worker_gets_a_gpu_that_its_run_names_or_leaves_open(four, device, workers, expected):
    assert assign(device, workers) == expected


@pytest.mark.parametrize(
    ("device", "workers", "message"),
    [
        ("auto", 5, "this machine has 4 GPUs, and each of 5 workers needs one: use fewer"),
        ("cuda:1", 2, "device 'cuda:1' has 1 GPUs, and each of 2 workers needs one"),
        ("cuda:7", 1, "device 'cuda:7': torch sees 4 GPUs here"),
    ],
)
def test_gpus_that_cannot_be_had_are_refused_in_one_line(four, device, workers, message):
    with pytest.raises(BadInput) as refused:
        make_executor(config(device), Workers(workers))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_without_a_gpu_cuda_is_refused_and_auto_means_the_cpu(monkeypatch):
    monkeypatch.setattr(devices, "list_visible_gpus", list)
    with pytest.raises(BadInput, match="this machine has 0 GPUs, .* or --device cpu"):
        make_executor(config("cuda"), Workers(2))
    assert assign("auto", 2) == ["cpu", "cpu"]


def test_ray_chooses_gpus_itself_so_that_numbered_ones_are_refused():
    with pytest.raises(
        BadInput, match="--device cuda:1 cannot be used with --executor ray, which assigns GPUs itself"
    ):
        make_executor(config("cuda:1"), Workers(1, "ray"))


@pytest.mark.parametrize(
    ("device", "built"), [("auto", "cuda"), ("cuda:3", "cuda"), ("cuda:0,cuda:1", "cuda"), ("cpu", "cpu")]
)
def test_in_a_worker_its_gpu_is_cuda_whatever_its_number_is_outside(monkeypatch, device, built):
    seen = []
    monkeypatch.setenv("QRA_DEVICE", "cuda")
    monkeypatch.setattr(evaluator.plugins, "load", lambda kind, name: seen.append)
    EvaluatorFactory(config(device))()
    assert seen[0].model.device == built


def test_torch_is_not_imported_to_hear_that_it_was_built_without_gpus(monkeypatch):
    monkeypatch.setattr(devices.importlib.metadata, "version", lambda name: "2.13.0+cpu")
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it would fail
    assert devices.list_visible_gpus() == []


def test_gpus_of_a_worker_are_numbered_within_what_this_process_was_given(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    third = devices.make_environment("cuda:2", 2)
    assert (third["CUDA_VISIBLE_DEVICES"], third["QRA_DEVICE"]) == ("2", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert devices.make_environment("cuda:1", 2)["CUDA_VISIBLE_DEVICES"] == "7"
    with pytest.raises(ValueError, match="was given 2 GPUs"):
        devices.make_environment("cuda:2", 2)


@pytest.mark.parametrize("device", ["gpu0", "cuda:", "cuda:0,cuda:1", ""])
def test_a_device_of_no_known_form_is_refused(device):
    with pytest.raises(ValueError, match="unknown device .*: use cpu, or cuda:0"):
        ProcessExecutor(dict, devices=[device])
