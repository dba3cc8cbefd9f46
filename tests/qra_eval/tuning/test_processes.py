"""A tuning that several processes share by `torch.distributed` (gloo) ends where one process alone ends."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import socket
import sys

import pytest
import torch
from evaluators import make_evaluator

from qra_eval.quantized import adapters
from qra_eval.tuning.full import CURVE_FILE
from qra_eval.tuning.processes import LaunchedProcesses
from qra_search.app.cli import errors
from qra_search.launched import is_follower

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="processes are forked: another import takes seconds"
)


def launched(rank, port, work, arguments, options):
    """One of two processes, as `torchrun` starts them."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)  # the threads of the process that was forked are not in this one
    try:
        status = work(*arguments, **options)
    except SystemExit as end:
        status = end.code
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(status or 0)


def in_two(work, *arguments, **options):
    """Exit statuses of the two."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    given = (port, work, arguments, options)
    both = [context.Process(target=launched, args=(rank, *given)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        process.kill()
    return [process.exitcode for process in both]


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    made = make_evaluator(
        "tiny",
        device="cpu",
        compute="float32",
        space={"bits": (4,), "ranks": (4,), "granularity": "layer"},
        quantization={"backend": "reference", "cache": str(tmp_path_factory.mktemp("bank"))},
        training={"batch_size": 4, "max_length": 48, "learning_rate": 0.01, "scales": True},
        evaluation={"validation_rows": 3},
        finetune={"steps": 4, "test_rows": 3, "evaluate_every": 2, "checkpoint_every": 2, "scored_rows": 0},
    )
    made.tuner.switcher.prepare()
    return made


def tune(evaluator, place, kill_at=0, **changed):
    """Tune, and keep adapters, trained scales, and the test loss of each row."""
    evaluator.quantized_model.settings = evaluator.quantized_model.settings.model_copy(update=changed)
    if is_follower():
        evaluator.serve_tunings()

    def heard(stage, done, total):
        if stage.startswith("tune") and done == kill_at:
            os._exit(7)

    plan = evaluator.space.uniform(4, 4)
    done = evaluator.tune(plan, folder=place / "run", save_base=False, progress=heard)
    tensors = adapters.cast_factors(evaluator.tuner.switcher.wrapped, torch.float32)
    for name, groups in evaluator.tuner.switcher.trained_scales.items():
        tensors[f"{name}.scale"] = groups.scale.float()
    torch.save((tensors, done.row_nats), place / "tuned")


def tuned(place):
    return *torch.load(place / "tuned"), (place / "run" / CURVE_FILE).read_text()


@pytest.mark.parametrize("changed", [{"accumulation": 2, "batch_size": 2}, {}], ids=["batches", "rows"])
def test_two_processes_end_where_one_with_all_rows_of_a_step_ends(evaluator, tmp_path, changed):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    was = evaluator.quantized_model.settings
    tune(evaluator, tmp_path / "one", **changed)
    evaluator.quantized_model.settings = was
    assert in_two(tune, evaluator, tmp_path / "two", **changed) == [0, 0]
    (alone, nats, _), (shared, same_nats, _) = tuned(tmp_path / "one"), tuned(tmp_path / "two")
    assert same_nats == pytest.approx(nats, rel=1e-4)
    for name, tensor in alone.items():
        torch.testing.assert_close(shared[name], tensor, rtol=0.02, atol=1e-4, msg=name)


def test_killed_amid_a_tuning_and_resumed_two_processes_end_in_the_same_numbers(evaluator, tmp_path):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    assert in_two(tune, evaluator, tmp_path / "whole", dropout=0.3) == [0, 0]
    assert in_two(tune, evaluator, tmp_path / "cut", dropout=0.3, kill_at=3)[0] == 7
    assert in_two(tune, evaluator, tmp_path / "cut", dropout=0.3) == [0, 0]
    (expected, *told), (found, *again) = tuned(tmp_path / "whole"), tuned(tmp_path / "cut")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()) and told == again


def test_memory_that_runs_out_in_one_process_fails_the_tuning_in_both(tmp_path):
    def work():
        processes = LaunchedProcesses(torch.device("cpu"))

        def passes():
            if processes.rank == 1:
                raise torch.OutOfMemoryError("tried to allocate")

        try:
            processes.run_together(passes)
        except torch.OutOfMemoryError:
            return 5

    assert in_two(work) == [5, 5]


def test_bad_input_is_one_line_of_the_first_process(capfd, monkeypatch, tmp_path):
    monkeypatch.setattr(errors, "GRACE", 0.0)
    # By then the launcher has ended it.
    monkeypatch.setattr(errors.time, "sleep", lambda seconds: os._exit(0))
    assert in_two(errors.run_safely, ["finetune", str(tmp_path)]) == [2, 0]
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert in_two(errors.run_safely, ["plan"]) == [2, 0]
    assert "use torchrun for qra finetune only" in capfd.readouterr().err
