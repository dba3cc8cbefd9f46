"""Evaluators that misbehave in workers, importable there; shared by the tests of executors and of faults."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

from fakes import AdditiveEvaluator, make_space

from qra_search import Evaluation, Plan, SearchSpace
from qra_search.evaluation.evaluator import RowCount

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

    def sensitivities_charge(self) -> float:
        return 1.5

    def evaluation_seconds(self) -> float:
        return 2.5

    def row_counts(self) -> dict[str, RowCount]:
        return {"train": RowCount(9, 5, cut=2, longest=300)}

    def note(self, what: str) -> None:
        if self.notes:
            name = f"{what}-{os.getpid()}-{time.monotonic_ns()}"
            (Path(self.notes) / name).write_text(os.environ.get("QRA_DEVICE", ""))

    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        self.note(f"begun-{plan.key.replace('|', '_')}")
        time.sleep(self.seconds)
        bad = plan.bits[0] == 4 and noted(self.notes, "deed") < self.victims if self.deed else False
        if bad:
            self.note("deed")
            return getattr(self, self.deed)(plan)
        return super().evaluate(plan, fidelity=fidelity, seed=seed)

    def die(self, plan: Plan) -> Evaluation:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

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

    def nan(self, plan: Plan) -> Evaluation:
        return Evaluation(float("nan"), self.space.memory_bytes(plan))

    def infinite(self, plan: Plan) -> Evaluation:
        return Evaluation(float("inf"), self.space.memory_bytes(plan))

    def nothing(self, plan: Plan) -> Evaluation:
        return None  # type: ignore[return-value]

    def unpicklable(self, plan: Plan) -> Evaluation:
        return lambda: 0  # type: ignore[return-value]

    def words(self, plan: Plan) -> Evaluation:
        return Evaluation("low", self.space.memory_bytes(plan))  # type: ignore[arg-type]

    def odd_metrics(self, plan: Plan) -> Evaluation:
        return Evaluation(1.0, self.space.memory_bytes(plan), {"accuracy": object()})  # type: ignore[dict-item]

    def no_share(self, plan: Plan) -> Evaluation:
        return Evaluation(1.0, self.space.memory_bytes(plan), fidelity=float("nan"))

    def raise_surrogates(self, plan: Plan) -> Evaluation:
        raise ValueError("\udcff" + "x" * 100_000)

    def exit_python(self, plan: Plan) -> Evaluation:
        raise SystemExit("an evaluator that wants to leave")


def noted(notes: str | Path, what: str) -> int:
    """How many notes of a kind there are."""
    return len(list(Path(notes).glob(f"{what}-*"))) if notes else 0


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
