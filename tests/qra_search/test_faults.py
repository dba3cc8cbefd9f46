"""Faults really done to a search, kills and a full disk among them: no result is lost and none counts twice."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # workers import the module below by its bare name
import worker_evaluators as workers  # noqa: E402
from logs import run_in_child  # noqa: E402

from qra_search import Callback, TrialLog, search  # noqa: E402
from qra_search.errors import RunFailed  # noqa: E402
from qra_search.executors import ProcessExecutor  # noqa: E402

PATHS = [str(Path(__file__).parents[1])]
OPTIONS = {"strategy": "random", "evaluations": 14, "batch": 2, "seed": 5}

SEARCH = f"""
import sys
sys.path[:0] = {PATHS!r}
import worker_evaluators as workers
from qra_search import Callback, search
from qra_search.executors import ProcessExecutor

class Tell(Callback):
    def on_result(self, study, trial):
        print(trial.id, repr(trial.loss), flush=True)

if __name__ == "__main__":
    log, notes = sys.argv[1:]
    with ProcessExecutor(workers.factory(notes=notes, seconds=0.02), 2) as executor:
        search(workers.Misbehaving(), **{OPTIONS!r}, log=log, executor=executor, callbacks=[Tell()])
"""


def facts(trials) -> list:
    return [(t.proposal, t.status, t.loss if t.done else t.reason) for t in trials]


def test_a_search_killed_at_random_moments_loses_and_doubles_no_result(tmp_path, notes):
    """Each life of the search prints what it has recorded; every line must be in the log, once, at the end."""
    log, rng, script = tmp_path / "log", random.Random(1), tmp_path / "run.py"
    script.write_text(SEARCH)
    told: dict[int, str] = {}
    for life in range(3):
        process = subprocess.Popen(
            [sys.executable, str(script), str(log), str(notes)], stdout=subprocess.PIPE, text=True
        )
        stop_after = rng.randint(1, 4) if life < 2 else 10**9
        for count, line in enumerate(process.stdout, start=1):
            number, loss = line.split()
            assert told.setdefault(int(number), loss) == loss
            if count >= stop_after:
                time.sleep(rng.random() * 0.03)
                process.kill()
        process.wait(60)
        process.stdout.close()
    with TrialLog(log) as after:
        assert {t.id: repr(t.loss) for t in after if t.id in told} == told
        assert facts(after.trials) == facts(search(workers.Misbehaving(), **OPTIONS).trials)


def test_workers_killed_at_random_moments_cost_no_trial(tmp_path, notes):
    class Assassin(Callback):
        kills = 0

        def on_result(self, study, trial):
            if trial.id % 5 == 2:
                victims = [int(f.name.split("-")[1]) for f in notes.glob("built-*")]
                for pid in victims:
                    try:
                        os.kill(pid, signal.SIGKILL)
                        self.kills += 1
                    except ProcessLookupError:
                        continue

    assassin = Assassin()
    with ProcessExecutor(workers.factory(notes=notes, seconds=0.01), 2) as executor:
        result = search(workers.Misbehaving(), **OPTIONS, executor=executor, callbacks=[assassin])
    assert assassin.kills >= 2
    assert facts(result.trials) == facts(search(workers.Misbehaving(), **OPTIONS).trials)


def test_a_reason_that_no_file_can_hold_is_stored_as_far_as_it_can_be(tmp_path):
    result = search(workers.Misbehaving("raise_surrogates"), **OPTIONS, log=tmp_path / "log")
    reason = result.failures()[0].reason
    assert reason.startswith("ValueError: ?xxx") and len(reason) < 5000
    assert TrialLog(tmp_path / "log").trials == result.trials


@pytest.mark.parametrize("limit", [3_000, 5_001, 9_002])
def test_a_full_disk_stops_the_search_and_what_was_recorded_is_kept(tmp_path, limit):
    """No file may grow beyond `limit` bytes, as on a full disk."""
    log, options = tmp_path / "log", {**OPTIONS, "evaluations": 60}
    for _ in range(2):  # the second time it is resumed, and the disk is still full
        told = run_in_child(
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
            lambda: search(workers.Misbehaving(), **options, log=log),
        )
        assert told.startswith(RunFailed.__name__) and "fix the cause, and resume with the same log" in told
        TrialLog(log)
    resumed = search(workers.Misbehaving(), **options, log=log)
    assert facts(resumed.trials) == facts(search(workers.Misbehaving(), **options).trials)


@pytest.mark.parametrize("interrupted", [False, True], ids=["stopped", "interrupted"])
def test_what_is_stopped_or_interrupted_is_resumed_as_if_it_had_never_ended(tmp_path, notes, interrupted):
    """What runs is finished; the rest of a batch is left for later."""

    class End(Callback):
        def on_result(self, study, trial):
            if interrupted and trial.id == 4:
                raise KeyboardInterrupt
            if not interrupted:
                study.stop()

    options = {**OPTIONS, "log": tmp_path / "log", "batch": 2 if interrupted else 4}
    with ProcessExecutor(workers.factory(notes=notes, seconds=0.01), 2) as executor:
        own = {"executor": executor} if interrupted else {}
        with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
            search(workers.Misbehaving(), **options, **own, callbacks=[End()])
        with TrialLog(tmp_path / "log") as log:
            assert interrupted or [t.status for t in log] == ["done"] + ["running"] * (len(log) - 1)
        resumed = search(workers.Misbehaving(), **options, **own)
    del options["log"]
    assert facts(resumed.trials) == facts(search(workers.Misbehaving(), **options).trials)
