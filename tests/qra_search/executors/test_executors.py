"""Executors: workers build once, dead ones are replaced, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # workers import the module below by its bare name
import worker_evaluators as workers  # noqa: E402
from worker_evaluators import BAD, GOOD, WAIT, has_ended  # noqa: E402

from qra_search import Proposal, Study, TrialLog, search  # noqa: E402
from qra_search.executors import (  # noqa: E402
    InProcessExecutor,
    ProcessExecutor,
    RemoteEvaluator,
    WorkerDied,
    WorkerUnusable,
)
from qra_search.executors.base import identify_evaluator  # noqa: E402
from qra_search.study.study import StudyFailed  # noqa: E402


def pids(notes: Path, what: str = "built") -> list[int]:
    return [
        int(f.name.split("-")[-2])
        for f in sorted(notes.glob(f"{what}-*"), key=lambda f: f.name.split("-")[-1])
    ]


def test_workers_run_at_the_same_time_and_none_is_left_after_shutdown(notes):
    with ProcessExecutor(workers.factory(notes=notes, seconds=1.0), 2) as executor:
        futures = [executor.submit(Proposal(GOOD, seed=s)) for s in range(2)]
        [f.result(WAIT) for f in futures]
    both = pids(notes)
    assert len(set(both)) == 2
    assert all(has_ended(pid) for pid in both)


def test_what_an_evaluation_started_ends_with_its_worker(notes):
    with ProcessExecutor(workers.factory("start_child", notes), 1) as executor:
        assert executor.submit(Proposal(BAD)).result(WAIT).loss > 0
    (note,) = notes.glob("child-*")
    assert has_ended(int(note.name.split("-")[1]))


def test_a_killed_worker_is_replaced_and_its_evaluation_run_again(notes):
    with ProcessExecutor(workers.factory("die", notes, victims=1), 1) as executor:
        assert executor.submit(Proposal(BAD)).result(WAIT).loss > 0
    assert workers.count_notes(notes, "deed") == 1 and workers.count_notes(notes, "built") == 2


@pytest.mark.parametrize(("deed", "how"), [("die", "SIGKILL"), ("leave", "exit status 3")])
def test_a_plan_that_kills_two_workers_fails_with_how_they_ended(notes, deed, how):
    with ProcessExecutor(workers.factory(deed, notes), 1) as executor:
        with pytest.raises(WorkerDied, match=f"{how}.*and so did the worker started in its place"):
            executor.submit(Proposal(BAD)).result(WAIT)
        assert executor.submit(Proposal(GOOD)).result(WAIT).loss > 0
    assert workers.count_notes(notes, "deed") == 2


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        (workers.unbuildable, "cannot build its evaluator: the model folder is empty"),
        (workers.doomed, "a worker cannot be started .*SIGKILL.*: if memory is short, use fewer"),
        (workers.refusing, "cannot build its evaluator: no model of the name 'x'"),
    ],
)
def test_an_evaluator_that_cannot_be_built_stops_the_study_with_its_reason_and_no_plan_fails(
    tmp_path, factory, reason
):
    with ProcessExecutor(factory, 2) as executor:
        study = Study(workers.Misbehaving(), strategy="random", executor=executor, log=tmp_path / "log")
        with pytest.raises(StudyFailed, match=reason):
            study.run()
    assert {t.status for t in study.log} == {"running"}


def test_ctrl_c_while_a_worker_starts_is_none_of_its_business(notes):
    with ProcessExecutor(workers.factory(notes=notes), 1) as executor:
        future = executor.submit(Proposal(GOOD))
        while not executor._workers:
            time.sleep(0.001)
        os.kill(executor._workers[0]._process.pid, signal.SIGINT)
        assert future.result(WAIT).loss > 0
    assert workers.count_notes(notes, "built") == 1


def test_an_evaluator_that_leaves_the_program_fails_its_trial_in_this_process_too(tmp_path):
    evaluator = workers.Misbehaving("exit_python", tmp_path)
    executor = InProcessExecutor(evaluator)
    assert isinstance(executor.submit(Proposal(BAD)).exception(), SystemExit)


def test_a_factory_that_cannot_be_sent_to_a_worker_is_named():
    with (
        ProcessExecutor(lambda: workers.Misbehaving(), 1) as executor,
        pytest.raises(WorkerUnusable, match="a worker cannot be started.*[Pp]ickle"),
    ):
        executor.submit(Proposal(GOOD)).result(WAIT)


def test_shutdown_gives_up_what_runs_without_calling_it_failed(notes):
    executor = ProcessExecutor(workers.factory("hang", notes), 1)
    future = executor.submit(Proposal(BAD))
    waiting = executor.submit(Proposal(GOOD))
    ends = time.monotonic() + WAIT
    while not workers.count_notes(notes, "deed") and time.monotonic() < ends:
        time.sleep(0.02)
    executor.shutdown()
    for given_up in (future, waiting):
        with pytest.raises(WorkerUnusable, match="shut down"):
            given_up.result(0)
    with pytest.raises(WorkerUnusable, match="shut down"):
        executor.submit(Proposal(GOOD))
    assert has_ended(pids(notes)[0])


@pytest.mark.parametrize("deed", ["nan", "nothing", "odd_metrics"])
def test_a_failure_has_the_same_reason_in_a_worker_as_in_this_process_and_the_log_keeps_it(deed, tmp_path):
    options, reasons = {"strategy": "random", "evaluations": 6, "batch": 2, "seed": 3}, []
    with ProcessExecutor(workers.factory(deed), 1) as processes:
        for name, executor in (("a", processes), ("b", InProcessExecutor(workers.Misbehaving(deed)))):
            result = search(workers.Misbehaving(), **options, executor=executor, log=tmp_path / name)
            assert TrialLog(tmp_path / name).trials == result.trials
            reasons.append([(t.proposal.key, t.status, t.reason) for t in result.trials])
            failed = [t for t in result.trials if t.plan.bits[0] == 4]
            assert failed and all(t.status == "failed" for t in failed)
            assert all(t.done for t in result.trials if t.plan.bits[0] == 2)
    assert reasons[0] == reasons[1]


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        pytest.param(
            "exhaust",
            "MemoryError",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="sets RLIMIT_AS"),
        ),
        ("exit_python", "wants to leave"),
        ("unpicklable", "returned a function"),
    ],
)
def test_a_worker_fails_the_trial_for_what_python_can_catch_and_evaluates_the_next(notes, deed, reason):
    with ProcessExecutor(workers.factory(deed, notes), 1) as executor:
        assert reason in repr(executor.submit(Proposal(BAD)).exception(WAIT))
        assert executor.submit(Proposal(GOOD)).result(WAIT).loss > 0
    assert workers.count_notes(notes, "built") == 1


def test_a_worker_that_is_replaced_leaves_its_device_to_the_next(notes):
    with ProcessExecutor(workers.factory("die", notes), devices=["cuda:0", "cpu"]) as executor:
        assert executor.slots == 2
        assert executor.submit(Proposal(BAD)).exception(WAIT) is not None
    assert [file.read_text() for file in notes.glob("built-*")] == ["cuda", "cuda"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux to ask for a process's cores")
def test_a_worker_on_the_cpu_gets_its_share_of_the_threads_and_sees_no_gpu():
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    with ProcessExecutor(workers.describing_its_worker, 2) as executor:
        description = executor.call(identify_evaluator).result(WAIT)[-1]
    assert description == {"threads": str(share), "device": "cpu", "gpus": ""}


def test_an_evaluator_in_a_worker_stands_for_one_here():
    with ProcessExecutor(workers.factory(), 1) as executor:
        remote, local = RemoteEvaluator(executor), workers.Misbehaving()
        assert remote.space.signature == local.space.signature
        assert (remote.fidelities, remote.describe()) == (local.fidelities, local.describe())
        assert remote.sensitivities() is None
        result = search(remote, strategy="random", evaluations=5, executor=executor, batch=2)
    assert [t.loss for t in result.trials] == [local.evaluate(t.plan).loss for t in result.trials]


SCRIPT = """
import sys
from contextlib import nullcontext
sys.path[:0] = {paths!r}
import worker_evaluators as workers
from qra_search import Proposal
from qra_search.executors import ProcessExecutor
if __name__ == "__main__":
    executor = ProcessExecutor(workers.factory({deed!r}, {notes!r}), 2)
    with {block}:
        futures = [executor.submit(Proposal(workers.small_space().uniform(4, 4), seed=s)) for s in range(2)]
        [f.result() for f in futures]
"""


@pytest.mark.parametrize("end", ["killed", "forgets shutdown", "interrupted"])
def test_no_worker_outlives_its_study(notes, tmp_path, end):
    deed = "hang" if end != "forgets shutdown" else ""
    block = "executor" if end != "forgets shutdown" else "nullcontext()"
    script = tmp_path / "study.py"
    paths = [str(Path(__file__).parents[2])]
    script.write_text(SCRIPT.format(paths=paths, deed=deed, notes=str(notes), block=block))
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    ends = time.monotonic() + WAIT
    while workers.count_notes(notes, "begun") < 2 and time.monotonic() < ends:
        time.sleep(0.02)
    if end == "killed":
        process.kill()
    elif end == "interrupted":
        process.send_signal(signal.SIGINT)
    process.wait(WAIT)
    assert workers.count_notes(notes, "built") == 2
    assert all(has_ended(pid) for pid in pids(notes))
