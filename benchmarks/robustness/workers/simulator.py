"""Many asynchronous workers in virtual time: how a search would go on them, without waiting for it."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future

import numpy as np

from qra_search.evaluator import Evaluator
from qra_search.executors import Executor
from qra_search.schemas import Evaluation, Proposal

Duration = Callable[[Proposal, Evaluation], float]
"""Virtual seconds that an evaluation takes; a pure function, so that a simulation can be repeated."""


class SimulatedExecutor(Executor):
    """An executor for the ordinary `Study` whose evaluations end in virtual time.

    An evaluation is made at once, when it is submitted, and given back when its virtual seconds are over. The real
    time that passes between the executor's calls, from when it is made, is what the search itself took (to propose,
    to write its log): it is added to the virtual clock, during which workers go on and may fall idle.

    Args:
        evaluator: says what a plan is worth.
        workers: evaluations at a time.
        duration: virtual seconds of each evaluation.
        timer: measures that time. `time.process_time` counts the processor's alone, which is what an idle machine
            would have taken where this one is shared (of one thread, and without the disk's part).
    """

    def __init__(
        self,
        evaluator: Evaluator,
        workers: int,
        duration: Duration,
        *,
        timer: Callable[[], float] = time.perf_counter,
    ):
        if workers < 1:
            raise ValueError(f"at least one worker is needed, got {workers}")
        self.evaluator, self.slots = evaluator, workers
        self.clock = 0.0
        self.overheads: list[float] = []
        self.ends: list[float] = []
        self._duration, self._timer = duration, timer
        self._events: list[tuple[float, int, Future[Evaluation], Evaluation | Exception]] = []
        self._submitted = 0
        self._busy = 0.0
        self._unspent, self._together = 0.0, 0
        self._since = timer()

    def submit(self, proposal: Proposal) -> Future[Evaluation]:
        self._pass_real_time()
        future: Future[Evaluation] = Future()
        outcome: Evaluation | Exception
        try:
            outcome = self.evaluator.evaluate(proposal.plan, fidelity=proposal.fidelity, seed=proposal.seed)
            seconds = self._duration(proposal, outcome)
        except Exception as error:  # as any executor: the future ends with it, and the study records it
            outcome, seconds = error, 0.0
        heapq.heappush(self._events, (self.clock + seconds, self._submitted, future, outcome))
        self._submitted += 1
        self._busy += seconds
        self._together += 1
        self._since = self._timer()
        return future

    def wait(self, futures: Iterable[Future[Evaluation]]) -> list[Future[Evaluation]]:
        """Let virtual time pass until an evaluation ends; all that end at that moment are returned."""
        self._pass_real_time()
        if self._together:  # what was proposed together shares what it took
            self.overheads += [self._unspent / self._together] * self._together
            self._unspent, self._together = 0.0, 0
        ended: list[Future[Evaluation]] = []
        self.clock = max(self.clock, self._events[0][0])
        while self._events and self._events[0][0] <= self.clock:
            at, _, future, outcome = heapq.heappop(self._events)
            self.ends.append(at)
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
            ended.append(future)
        self._since = self._timer()
        return ended

    @property
    def utilisation(self) -> float:
        """Share of the workers' virtual time that they were busy for."""
        return self._busy / (self.slots * self.clock) if self.clock > 0 else 1.0

    def steady_utilisation(self) -> float:
        """The same up to the moment when the last evaluation was begun, leaving out the end when work runs out."""
        last_begun = sorted(self.ends)[-self.slots :][0] if len(self.ends) > self.slots else self.clock
        left = sum(max(0.0, end - last_begun) for end in self.ends)
        return (self._busy - left) / (self.slots * last_begun) if last_begun > 0 else 1.0

    def _pass_real_time(self) -> None:
        passed = self._timer() - self._since
        self._unspent += passed
        self.clock += passed


def lognormal_duration(mean: float, spread: float = 0.3, seed: int = 0) -> Duration:
    """Durations around `mean` seconds a full evaluation, in proportion to the fidelity, with a log-normal spread.

    The draw is a function of the plan and seeds alone.
    """

    def duration(proposal: Proposal, evaluation: Evaluation) -> float:
        key = np.frombuffer(proposal.plan.key.encode(), np.uint8).astype(np.uint32)
        rng = np.random.default_rng([seed, proposal.seed, *key.tolist()])
        return mean * proposal.fidelity * float(np.exp(rng.normal(-(spread**2) / 2, spread)))

    return duration


def peak_memory() -> int:
    """The most memory that this process has had, bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # not POSIX
        return 0
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
