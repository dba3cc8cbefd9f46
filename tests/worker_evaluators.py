"""Evaluators that misbehave in workers, importable there; shared by the tests of executors and of faults."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fakes import AdditiveEvaluator, make_space

from qra_search import Evaluation, Plan, SearchSpace

WRONG: dict[str, Callable[[], Any]] = {
    "nan": lambda: Evaluation(float("nan"), 1),
    "nothing": lambda: None,
    "unpicklable": lambda: lambda: 0,
    "odd_metrics": lambda: Evaluation(1.0, 1, {"accuracy": object()}),  # type: ignore[dict-item]
}
"""What an evaluator may do instead of returning an evaluation."""
SMALL = {"groups": 3, "bits": (2, 4), "ranks": (4, 8)}


def small_space() -> SearchSpace:
    return make_space(**SMALL)


class Misbehaving(AdditiveEvaluator):
    """Does to plans of given mean bits what its name says; all others are evaluated as usual.

    `notes` is a folder in which every build and every evaluation leaves a file.
    """

    def __init__(self, deed: str = "", notes: str = "", seconds: float = 0.0, victims: int = 10**9):
        super().__init__(small_space(), with_sensitivities=False)
        self.deed, self.notes, self.seconds, self.victims = deed, notes, seconds, victims
        self.note("built")

    def note(self, what: str) -> None:
        if self.notes:
            name = f"{what}-{os.getpid()}-{time.monotonic_ns()}"
            (Path(self.notes) / name).write_text(os.environ.get("QRA_DEVICE", ""))

    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        self.note(f"begun-{plan.key.replace('|', '_')}")
        time.sleep(self.seconds)
        if self.deed and plan.bits[0] == 4 and count_notes(self.notes, "deed") < self.victims:
            self.note("deed")
            return WRONG[self.deed]() if self.deed in WRONG else getattr(self, self.deed)(plan)
        return super().evaluate(plan, fidelity=fidelity, seed=seed)

    def die(self, plan: Plan) -> Evaluation:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

    def start_child(self, plan: Plan) -> Evaluation:
        self.note(f"child-{subprocess.Popen(['sleep', '600']).pid}")
        return super().evaluate(plan)

    def leave(self, plan: Plan) -> Evaluation:
        os._exit(3)

    def hang(self, plan: Plan) -> Evaluation:
        time.sleep(600)
        raise AssertionError("unreachable")

    def exhaust(self, plan: Plan) -> Evaluation:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
        try:
            return Evaluation(float(len(bytearray(1 << 30))), 0)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def raise_surrogates(self, plan: Plan) -> Evaluation:
        raise ValueError("\udcff" + "x" * 100_000)

    def exit_python(self, plan: Plan) -> Evaluation:
        raise SystemExit("an evaluator that wants to leave")


def count_notes(notes: str | Path, what: str) -> int:
    """How many notes of a kind there are."""
    return len(list(Path(notes).glob(f"{what}-*"))) if notes else 0


def has_ended(pid: int) -> bool:
    """Whether a process has ended, within some seconds."""
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def factory(deed: str = "", notes: str | Path = "", seconds: float = 0.0, victims: int = 10**9):
    return partial(Misbehaving, deed, str(notes), seconds, victims)


def unbuildable() -> Misbehaving:
    raise RuntimeError("the model folder is empty")


def doomed() -> Misbehaving:
    os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when one model fills the memory
    raise AssertionError("unreachable")


def refusing() -> Misbehaving:
    raise ValueError("no model of the name 'x'")


def describing_its_worker() -> Misbehaving:
    """An evaluator that describes its worker: threads, device, GPUs."""

    class Telling(Misbehaving):
        def describe(self) -> dict:
            return {
                "threads": os.environ.get("OMP_NUM_THREADS"),
                "device": os.environ.get("QRA_DEVICE"),
                "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
            }

    return Telling()


GOOD, BAD = (small_space().uniform(b, 4) for b in (2, 4))
WAIT = 60
SLOW_START = 300
