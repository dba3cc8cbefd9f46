"""The loop of a search: propose, evaluate, record, until the budget is spent."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from qra_search.errors import RunFailed, describe_failure, make_type_error, shorten
from qra_search.evaluator import Evaluator, check_evaluation
from qra_search.executors.base import Executor, InProcessExecutor, WorkerUnusable
from qra_search.log.journal import IN_MEMORY_PATH, TrialLog
from qra_search.log.state import StudyState
from qra_search.schemas import Evaluation, Plan, Proposal, Sensitivities, Trial
from qra_search.sections import DEFAULT_EVALUATIONS, DEFAULT_STRATEGY
from qra_search.space.budgets import resolve_budgets
from qra_search.space.serialization import check_sensitivities
from qra_search.space.space import SearchSpace
from qra_search.strategies import Strategy, make_strategy
from qra_search.study.result import SearchResult

SPENT_TOLERANCE = 1e-9
"""Tolerance for sums of fractional evaluations."""
MAX_FIRST_FAILURES = 5
"""A study whose first evaluations all fail stops after so many: the fault is not in the plans."""


class StudyFailed(RunFailed):
    """The search cannot continue."""


class Callback:
    """Called with the events of a study. Every method does nothing by default."""

    def on_start(self, study: Study) -> None:
        """Called before the first evaluation."""

    def on_result(self, study: Study, trial: Trial) -> None:
        """Called after each trial, failed ones too."""


class Listener(Callback, AbstractContextManager[Any]):
    """Called with what a run does. Every method does nothing by default; a terminal's view is one."""

    def __init__(self, progress: Callable[[str, int, int], None] | None = None):
        self._progress = progress

    def __exit__(self, *exc: object) -> None:
        return None

    def say(self, text: str) -> None:
        """Show a line of text."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` steps of a stage, such as `("quantize", 12, 210)`."""
        if self._progress is not None:
            self._progress(stage, done, total)


class Study:
    """One search: an evaluator, a strategy, a trial log, and what may be spent.

    Args:
        strategy: name of an installed strategy, or a `Strategy`.
        options: of the strategy, if it is given by name, such as `{"population": 8}` (see `qra strategies`).
        evaluations: search budget, in full evaluations.
        memory_budget: bytes (or a text such as `108MiB`, `3.5bpw`, `75%`), several, or None for the whole front.
        seed: all randomness of the search follows from it.
        log: path of the trial log, or a `TrialLog`; an existing one is resumed. Default: nothing is kept.
        executor: where evaluations run; default: in this process, one after the other. It stays the caller's to
            shut down.
        batch: None: a free worker gets the next proposal at once. A number: so many proposals at a time, all
            awaited before the next are asked for, which gives the same trials with any number of workers.
        sensitivities: taken in place of the evaluator's own, which are then not measured; a
            log that is resumed keeps those it has.
        charged: count what measuring the sensitivities costs among the evaluations, as fair comparisons of strategies
            do.

    Raises:
        BadInput: an argument cannot be used, no plan fits a budget, or the log is of another search.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        *,
        strategy: str | Strategy = DEFAULT_STRATEGY,
        options: Mapping[str, Any] | None = None,
        evaluations: float = DEFAULT_EVALUATIONS,
        memory_budget: int | str | Sequence[int | str] | None = None,
        seed: int = 0,
        log: str | Path | TrialLog = IN_MEMORY_PATH,
        executor: Executor | None = None,
        batch: int | None = None,
        callbacks: Sequence[Callback] = (),
        sensitivities: Sensitivities | None = None,
        charged: bool = False,
    ):
        self.evaluator = check_evaluator(evaluator)
        self.strategy = make_strategy(strategy, **(options or {}))
        whole = evaluator.space
        self.space: SearchSpace = whole if self.strategy.searches_extra else whole.without_extra
        self.memory_budgets = resolve_budgets(self.space, () if memory_budget is None else memory_budget)
        self.evaluations = float(evaluations)
        self.seed = int(seed)
        self.batch = batch
        self.callbacks = tuple(callbacks)
        self.log = log if isinstance(log, TrialLog) else TrialLog(log)
        self.log.bind(
            {"study": {"strategy": self.strategy.name, "evaluations": self.evaluations}},
            space=self.space.to_dict(),
            evaluator=evaluator.describe(),
            budgets=list(self.memory_budgets),
            seed=self.seed,
        )
        self.executor: Executor = executor or InProcessExecutor(evaluator)
        self.design = list_initial_plans(self.space, self.memory_budgets)
        self._given_sensitivities = sensitivities
        self._charged = charged
        self.stopping = False

    @property
    def state(self) -> StudyState:
        sensitivities = self.sensitivities
        charge = sensitivities.cost if self._charged and sensitivities is not None else 0.0
        return StudyState(
            self.space,
            self.log.trials,
            sensitivities,
            self.memory_budgets,
            self.seed,
            self.evaluations,
            self.evaluator.fidelities,
            charge,
        )

    @property
    def sensitivities(self) -> Sensitivities | None:
        """The sensitivities in the log, else those given; `run` measures them if there are neither."""
        data = self.log.get_meta("sensitivities")
        return Sensitivities.from_dict(data) if data else self._given_sensitivities

    def run(self) -> SearchResult:
        """Search until the budget is spent, the strategy has nothing left to ask, or `stop` is called.

        However it ends, the log is free for another process, and names what was in flight as running.
        """
        flying: dict[Future[Evaluation], Trial] = {}
        try:
            self._measure_sensitivities()
            for callback in self.callbacks:
                callback.on_start(self)
            waiting = list(self.log.running_trials)
            while True:
                while asked := self._propose_next(len(flying) + len(waiting)):
                    waiting += self.log.propose_all(asked)
                while waiting and len(flying) < self.executor.slots and not self.stopping:
                    trial = waiting.pop(0)
                    flying[self.executor.submit(trial.proposal)] = trial
                if not flying:
                    break
                # All that ended is recorded before anything is raised: an unusable worker comes last.
                futures = list(self.executor.wait(flying))
                outcomes = [(flying.pop(f), f.exception() or f.result()) for f in futures]
                outcomes.sort(key=lambda pair: (isinstance(pair[1], WorkerUnusable), pair[0].id))
                for asked_trial, outcome in outcomes:
                    trial = self._record(asked_trial, outcome)
                if self.batch is not None and (flying or waiting):
                    continue  # what a batch comes to may not depend on the order of its results
                ended = [t for t in self.log if t.status != "running"]
                if len(ended) >= MAX_FIRST_FAILURES and all(t.status == "failed" for t in ended):
                    raise StudyFailed(
                        f"the first {len(ended)} evaluations all failed, the last with: {trial.reason}"
                    )
            return self.result()
        finally:
            for future in flying:
                future.cancel()
            self.log.close()

    def stop(self) -> None:
        """Begin nothing more; `run` returns once the running evaluations have ended."""
        self.stopping = True

    def result(self) -> SearchResult:
        return SearchResult.from_state(self.state, self.strategy)

    def _propose_next(self, flying: int) -> list[Proposal]:
        state = self.state
        room = self.executor.slots - flying
        if self.batch is not None:
            room = 0 if flying else self.batch
        room = min(
            room, math.ceil(self.evaluations - state.spent - SPENT_TOLERANCE)
        )  # each takes one at most
        if self.stopping or room <= 0 or state.spent >= self.evaluations:
            return []
        due = [p for p in self.design if p not in state.seen]
        if due:
            return [Proposal(plan, seed=self.seed, origin="uniform") for plan in due[:room]]
        return check_proposals(self.strategy.propose(state, room), state)[:room]

    def _record(self, trial: Trial, outcome: Evaluation | BaseException) -> Trial:
        """Write what came of a trial: whatever an evaluator returns or raises, the search continues."""
        try:
            if isinstance(outcome, BaseException):
                raise outcome
            evaluation = check_evaluation(outcome, self.space, trial.plan)
        except WorkerUnusable as error:
            raise StudyFailed(f"{error}. Resume the search to run trial {trial.id} again") from error
        except (Exception, SystemExit) as error:
            trial = self.log.fail(trial.id, describe_failure(error))
        else:
            trial = self.log.finish(trial.id, evaluation)
        for callback in self.callbacks:
            callback.on_result(self, trial)
        return trial

    def _measure_sensitivities(self) -> None:
        self.log.bind()  # reads what others may have written since `close`
        is_due = len(self.log) == 0 or self._given_sensitivities is not None
        if self.log.get_meta("sensitivities") is None and is_due:
            sensitivities = self._given_sensitivities or self.evaluator.sensitivities()
            if sensitivities is not None:
                check_sensitivities(self.space, sensitivities)
                self.log.bind({"sensitivities": sensitivities.to_dict()})


def list_initial_plans(space: SearchSpace, budgets: Sequence[int]) -> list[Plan]:
    """The uniform plans that every study evaluates first, cheapest first.

    For each budget, and each level of the two largest widths that fit it, the largest rank that fits: the
    strongest opponents that a user would pick by hand. Without a budget, every level at its middle rank.
    """
    uniform = space.uniform_by_choice()
    if not budgets:
        ranks = space.uniform_ranks
        middle = ranks[len(ranks) // 2] if ranks else 0
        return [plan for (_, rank), plan in uniform.items() if rank == middle]
    chosen: list[Plan] = []
    for budget in budgets:
        # Of the plans of a level that of the largest rank comes last.
        best = {level: p for (level, _), p in uniform.items() if space.memory_bytes(p) <= budget}
        widths = sorted({space.level(level).width for level in best})[-2:]
        chosen += [plan for level, plan in best.items() if space.level(level).width in widths]
    return sorted(dict.fromkeys(chosen), key=space.memory_bytes)


def check_proposals(proposals: Sequence[Proposal], state: StudyState) -> list[Proposal]:
    """The proposals themselves; raises StudyFailed if a strategy breaks its contract: what is no proposal, is over the
    budget, or repeats an evaluation."""
    if not isinstance(proposals, Sequence) or not all(isinstance(p, Proposal) for p in proposals):
        raise StudyFailed(
            f"the strategy breaks its contract, it proposed {shorten(proposals)} instead of a list of Proposal"
        )
    known = {t.proposal.key for t in state.trials}
    for proposal in proposals:
        size = state.space.memory_bytes(proposal.plan)
        fault = ""
        if size > state.largest_budget:
            fault = f"a plan of {size} bytes, and state.largest_budget is {state.largest_budget}"
        elif proposal.key in known:
            fault = f"{proposal.plan} with seed {proposal.seed} again: see state.seen, or give another seed"
        elif proposal.fidelity not in state.fidelities:
            fault = f"fidelity {proposal.fidelity}, and state.fidelities are {state.fidelities}"
        if fault:
            raise StudyFailed(f"the strategy breaks its contract, it proposed {fault}")
        known.add(proposal.key)
    return list(proposals)


def check_evaluator(evaluator: Any) -> Evaluator:
    if isinstance(evaluator, Evaluator):
        return evaluator
    raise make_type_error("evaluator", evaluator, "an Evaluator is needed; qra_search.plan takes names")


@contextmanager
def handle_interrupt(first: Callable[[], None]) -> Iterator[None]:
    """While it lasts the first Ctrl-C calls `first`, and any further one raises KeyboardInterrupt as ever.

    Outside the main thread, which alone receives Ctrl-C, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def call_first(signum: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        first()

    before = signal.signal(signal.SIGINT, call_first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
