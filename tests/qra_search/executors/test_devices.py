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


def assign(device, workers, share=None):
    with make_executor(config(device), Workers(workers, gpus=share)) as executor:
        return executor.devices


@pytest.mark.parametrize(
    ("device", "workers", "share", "expected"),
    [
        *((device, 3, None, ["cuda:0", "cuda:1", "cuda:2"]) for device in ("auto", "cuda")),
        *((device, 2, 2, ["cuda:0,cuda:1", "cuda:2,cuda:3"]) for device in ("auto", "cuda")),
        ("auto", 1, 3, ["cuda:0,cuda:1,cuda:2"]),
        ("auto", 5, 0.5, ["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:0"]),  # over all before two share one
        ("cuda:2", 1, None, ["cuda:2"]),
        ("cuda:1,cuda:3", 1, None, ["cuda:1,cuda:3"]),
        ("cuda:1,cuda:3", 2, 1, ["cuda:1", "cuda:3"]),
        ("cpu", 2, None, ["cpu", "cpu"]),
        ("cpu", 2, 0, ["cpu", "cpu"]),
        ("auto", 2, 0, ["cpu", "cpu"]),
    ],
)
def test_worker_processes_get_the_gpus_that_their_run_names_or_leaves_open(
    four, device, workers, share, expected
):
    assert assign(device, workers, share) == expected


@pytest.mark.parametrize(
    ("device", "workers", "share", "message"),
    [
        (
            "auto",
            5,
            None,
            "this machine has 4 GPUs, enough for 4 of 5 workers with 1 each: ask for fewer workers",
        ),
        ("cuda", 3, 2, "this machine has 4 GPUs, enough for 2 of 3 workers with 2 each"),
        ("auto", 1, 8, "this machine has 4 GPUs, enough for 0 of 1 workers with 8 each"),
        ("cuda", 9, 0.5, "this machine has 4 GPUs, enough for 8 of 9 workers with 0.5 each"),
        ("cuda:1", 2, None, "device 'cuda:1' has 1 GPU, enough for 1 of 2 workers with 1 each"),
        ("cuda:7", 1, None, "device 'cuda:7': torch sees 4 GPUs here"),
        (
            "auto",
            1,
            1.5,
            "--gpus-per-worker must be 0, a share of one GPU such as 0.5, or a whole number, got 1.5",
        ),
        ("auto", 1, -1, "or a whole number, got -1"),
        ("auto", 1, float("nan"), "or a whole number, got nan"),
        ("cpu", 1, 1, "--gpus-per-worker is 1 and the device is 'cpu'"),
        ("cuda", 1, 0, "--gpus-per-worker is 0 and the device is 'cuda'"),
    ],
)
def test_gpus_that_cannot_be_had_are_refused_in_one_line(four, device, workers, share, message):
    with pytest.raises(BadInput) as refused:
        make_executor(config(device), Workers(workers, gpus=share))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_without_a_gpu_cuda_is_refused_and_auto_means_the_cpu(monkeypatch):
    monkeypatch.setattr(devices, "list_visible_gpus", list)
    with pytest.raises(
        BadInput, match="this machine has 0 GPUs, enough for 0 of 2 workers .* use --device cpu"
    ):
        make_executor(config("cuda"), Workers(2))
    with pytest.raises(BadInput, match="this machine has 0 GPUs, enough for 0 of 1 workers with 1 each"):
        make_executor(config("auto"), Workers(1, gpus=1))
    assert assign("auto", 2) == ["cpu", "cpu"]


def test_ray_chooses_gpus_itself_so_that_numbered_ones_are_refused():
    with pytest.raises(
        BadInput, match="--device cuda:1 cannot be used with --executor ray, which assigns GPUs itself"
    ):
        make_executor(config("cuda:1"), Workers(1, "ray"))


def test_a_workers_gpus_are_all_of_one_machine():
    devices.check_enough_gpus([2, 2], 2, 2, "the Ray cluster")
    with pytest.raises(BadInput, match="the Ray cluster has 4 GPUs, enough for 0 of 1 workers with 4 each"):
        devices.check_enough_gpus([2, 2], 1, 4, "the Ray cluster")


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
    two = devices.make_environment("cuda:2,cuda:3", 2)
    assert (two["CUDA_VISIBLE_DEVICES"], two["QRA_DEVICE"]) == ("2,3", "cuda:0,cuda:1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert devices.make_environment("cuda:1", 2)["CUDA_VISIBLE_DEVICES"] == "7"
    assert devices.make_environment("cuda:1", 4, sharing=3)["QRA_SHARING"] == "3"
    with pytest.raises(ValueError, match="was given 2 GPUs"):
        devices.make_environment("cuda:2", 2)


@pytest.mark.parametrize("device", ["gpu0", "cuda:", "cuda:0,cpu", "cores:0-3", ""])
def test_a_device_of_no_known_form_is_refused(device):
    with pytest.raises(ValueError, match="unknown device .*: use cpu, cuda:0, or cuda:0,cuda:1"):
        ProcessExecutor(dict, devices=[device])
