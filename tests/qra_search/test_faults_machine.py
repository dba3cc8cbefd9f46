"""Faults of the machine itself, done with root's rights: the kernel kills for memory, a disk is really full."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # workers import the module below by its bare name
import worker_evaluators as workers  # noqa: E402

from qra_search import search  # noqa: E402
from qra_search.executors import ProcessExecutor  # noqa: E402
from qra_search.log.errors import LogReadOnly, LogUnwritable  # noqa: E402
from qra_search.log.trial_log import TrialLog  # noqa: E402

OPTIONS = {"strategy": "random", "evaluations": 40, "batch": 2, "seed": 5}
GROUP_BYTES = 64 << 20
GROUPS = {"/sys/fs/cgroup/memory": "memory.limit_in_bytes", "/sys/fs/cgroup": "memory.max"}
"""Where control groups of version 1 and 2 are, and what their limit is called."""


@pytest.fixture
def memory_group(monkeypatch) -> Iterator[Path]:
    """A control group of little memory, named by QRA_TEST_GROUP for the workers."""
    for root, limit in GROUPS.items():
        group = Path(root) / f"qra-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / limit).exists():
            (group / limit).write_text(str(GROUP_BYTES))
            swap = group / "memory.swap.max"
            if swap.exists():
                swap.write_text("0")
            monkeypatch.setenv("QRA_TEST_GROUP", str(group))
            yield group
            group.rmdir()
            return
        group.rmdir()
    pytest.skip("no control group of memory can be made here (it needs root, and cgroups with the memory controller)")


def test_a_worker_that_the_kernel_kills_for_memory_fails_its_trials_and_no_others(memory_group, tmp_path):
    with ProcessExecutor(workers.factory("overrun"), 2) as executor:
        result = search(workers.Misbehaving(), **{**OPTIONS, "evaluations": 5}, executor=executor, log=tmp_path / "log")
    for trial in result.trials:
        if trial.plan.bits[0] == 4:
            assert trial.status == "failed"
            assert "SIGKILL, as the kernel does when memory is full, and so did the one before" in trial.reason
        else:
            assert trial.done
    assert {t.status for t in result.trials} == {"failed", "done"}
    assert not TrialLog(tmp_path / "log").damage


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of its own of 16 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path, spare: int = 0) -> None:
    """Leave no byte free, but for `spare`."""
    with (folder / "filler").open("ab", buffering=0) as file:
        size = 4096
        while size:
            try:
                file.write(b"x" * size)
            except OSError:
                size //= 2
        file.truncate(file.tell() - spare)


def facts(trials) -> list:
    return [(t.proposal, t.status, t.loss if t.done else t.reason) for t in trials]


def test_a_disk_that_fills_up_stops_the_search_and_room_lets_it_go_on_as_if_nothing_had_been(small_disk):
    log = small_disk / "log"
    with pytest.raises(LogUnwritable, match="make room on its disk and resume with the same log"):
        search(workers.Misbehaving(), **{**OPTIONS, "evaluations": 400, "batch": 20}, log=log)
    with TrialLog(log) as kept:
        done = sum(t.done for t in kept)
    assert done > 10 and not TrialLog(log).damage
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    resumed = search(workers.Misbehaving(), **{**OPTIONS, "evaluations": 400, "batch": 20}, log=log)
    unbroken = search(workers.Misbehaving(), **{**OPTIONS, "evaluations": 400, "batch": 20})
    assert facts(resumed.trials) == facts(unbroken.trials)


@pytest.mark.parametrize("spare", [0, 3_000])
def test_a_log_on_a_full_disk_is_still_read_and_a_new_one_is_refused_in_one_line(small_disk, spare):
    log = small_disk / "log"
    trials = search(workers.Misbehaving(), **{**OPTIONS, "evaluations": 8}, log=log).trials
    fill(small_disk, spare)
    with TrialLog(log) as opened:
        assert opened.trials == trials
    with pytest.raises((LogReadOnly, LogUnwritable)) as caught:
        search(workers.Misbehaving(), **OPTIONS, log=small_disk / "new")
    assert "\n" not in str(caught.value)


def test_a_search_that_is_resumed_on_a_full_disk_is_refused_and_the_log_stays_whole(small_disk):
    log = small_disk / "log"
    trials = search(workers.Misbehaving(), **{**OPTIONS, "evaluations": 8}, log=log).trials
    fill(small_disk)
    assert not TrialLog(log).damage
    with pytest.raises((LogReadOnly, LogUnwritable), match="cannot be written.*make room on its disk"):
        search(workers.Misbehaving(), **OPTIONS, log=log)
    assert not TrialLog(log).damage and TrialLog(log).trials[: len(trials)] == trials
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    assert facts(search(workers.Misbehaving(), **OPTIONS, log=log).trials[: len(trials)]) == facts(trials)
