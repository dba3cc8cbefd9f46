"""The evaluator of a run: what is asked of one whose plans can be tuned in full, and how it is built, in this process
or in workers."""

from __future__ import annotations

import inspect
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from qra_search import plugins
from qra_search.app.config import RunConfig
from qra_search.errors import BadInput, convert_to_bad_input
from qra_search.evaluator import Evaluator, Progress
from qra_search.executors import (
    Executor,
    ProcessExecutor,
    RayExecutor,
    RemoteEvaluator,
    WorkerExecutor,
    WorkerUnusable,
)
from qra_search.executors.workers import DEVICE_VARIABLE, assign_devices
from qra_search.schemas import Plan, TuningRecord
from qra_search.sections import DEFAULT_STRATEGY
from qra_search.strategies import make_strategy
from qra_search.study.study import Listener

WORKER_KINDS = ("process", "ray")
"""Kinds of workers."""
StepFigures = Mapping[str, float]
"""Figures of a training step: `loss` and, if known, others."""


@dataclass(frozen=True)
class RowCount:
    """Rows of one split.

    Attributes:
        asked: that the settings ask for.
        had: that there are of these.
        cut: of these, rows that are longer than is allowed, and lose a part.
        longest: tokens of the longest one, before it is cut.
        available: rows of the whole split; 0 if they were not counted.
    """

    asked: int
    had: int
    cut: int = 0
    longest: int = 0
    available: int = 0


@dataclass(frozen=True)
class RateTrial:
    """A short tuning at a learning rate.

    Attributes:
        steps: that it was to have; `made` fewer if it diverged or ended early.
        loss: on validation rows; estimated of one that ended early, inf of one that diverged.
        curve: mean training losses of each tenth of the steps.
    """

    rate: float
    steps: int
    made: int
    loss: float
    curve: Sequence[float] = ()


class TunableEvaluator(Evaluator):
    """An evaluator of a model, whose plans can be tuned in full, saved and served."""

    @abstractmethod
    def row_counts(self) -> Mapping[str, RowCount]:
        """Rows asked for and had, by split: `train`, `validation` and `test`."""

    @abstractmethod
    def sensitivity_cost(self) -> float:
        """Full evaluations that measuring the sensitivities is charged as, without measuring it."""

    @abstractmethod
    def evaluation_seconds(self) -> float:
        """Seconds of a full evaluation, roughly, without running one."""

    @abstractmethod
    def estimate_search_cost(self) -> Mapping[str, Any]:
        """What a run will take; `--dry-run` prints it.

        Any of `setup_seconds`, `sensitivities_seconds`, `evaluation_seconds`, `tuning_seconds`; and `phases`: of each
        phase of a run by name, `{"device": bytes, "host": bytes}` at its peak.
        """

    @abstractmethod
    def list_fitting_cards(self) -> Sequence[Mapping[str, Any]]:
        """Which graphics cards a run fits; `qra doctor --model` prints it.

        For each card: its `name` and `bytes`, in `settings` words for those with which a run fits it (None: nothing
        fits), the `phase` that then takes most and its `peak_bytes`.
        """

    @abstractmethod
    def render_row(self) -> Sequence[tuple[str, bool]] | None:
        """One row of tuning as the model sees it: its text in pieces, each with whether it is learnt."""

    @abstractmethod
    def tune(
        self,
        plan: Plan,
        *,
        seed: int = 0,
        steps: int | None = None,
        folder: Path | None = None,
        on_step: Callable[[int, StepFigures], None] | None = None,
        progress: Progress | None = None,
    ) -> TuningRecord:
        """Tune a plan in full and measure it on test rows.

        A tuning that diverges, or whose saved adapter does not load back as it was tuned, has a record that says so.

        Args:
            plan: of `space`, or of its `unquantized`.
            steps: of the optimizer; None: as the settings say.
            folder: of this tuning alone (`qra_search.app.tuning_folder`): for its curve, the checkpoint that it is
                resumed from, its adapter and quantized base; None: nothing is written.
            on_step: called with each step, counted from 1, and its figures.

        Raises:
            EvaluationFailed: the plan could not be tuned this time (`out of memory: ...`).
        """

    @abstractmethod
    def finetune_steps(self) -> int:
        """Steps of a full tuning by the settings."""

    @abstractmethod
    def set_learning_rate(self, rate: float | Literal["auto"]) -> None:
        """From here on `training.learning_rate` is this one."""

    @abstractmethod
    def try_rate(
        self,
        plan: Plan,
        rate: float,
        steps: int,
        *,
        beside: RateTrial | None = None,
        progress: Progress | None = None,
    ) -> RateTrial:
        """Tune a plan at a learning rate for a few steps, and keep nothing but its loss.

        Args:
            beside: another trial of as many steps; one that is far behind it at its middle ends there.
        """

    @abstractmethod
    def tuning_data(self) -> str:
        """Identifies all rows that a full tuning may see, and those of its test; empty if that is not known."""

    @abstractmethod
    def measure_untuned(self) -> TuningRecord | None:
        """Test figures of the model as it was loaded, as a plan of `space.unquantized`; None if it cannot say."""

    @abstractmethod
    def write_base(self, plan: Plan, folder: Path) -> None:
        """Write the quantized base of an untuned plan, and its `plan.json`."""


def count_rows(evaluator: Evaluator) -> Mapping[str, RowCount]:
    """Rows by split; empty if the evaluator does not know them."""
    return evaluator.row_counts() if isinstance(evaluator, TunableEvaluator) else {}


def render_row(evaluator: Evaluator) -> Sequence[tuple[str, bool]]:
    """One row of tuning as the model sees it; empty if there is none."""
    return (evaluator.render_row() or ()) if isinstance(evaluator, TunableEvaluator) else ()


def build_evaluator(
    config: RunConfig, progress: Progress, *, weights: bool = True, objects: Mapping[str, Any] | None = None
) -> Evaluator:
    """The evaluator that a config names; raises BadInput for settings or objects that it refuses.

    Args:
        weights: False: it will only be asked for its space and estimates; one that can then does without weights.
        objects: task and metrics in memory, by these names.
    """
    with convert_to_bad_input():
        search, objects = config.search, objects or {}
        if search.options or search.strategy != DEFAULT_STRATEGY:  # scipy is for no refusal
            make_strategy(search.strategy, **search.options)  # before the model is loaded for nothing
        given = {"model": config.model.name, "task": config.task.name}
        named = {name: value for name, value in given.items() if name not in objects}
        plugins.check_names(config.evaluator, **named)
        factory = plugins.load("evaluators", config.evaluator)
        parameters = inspect.signature(factory).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if refused := [name for name in objects if not takes_all and name not in parameters]:
            what = f"evaluator {config.evaluator!r} takes no {refused[0]} that is an object in memory"
            raise BadInput(f"{what}: give the name or path of one")
        options = {"progress": progress, **({} if weights else {"weights": False})}
        taken = {name: value for name, value in options.items() if takes_all or name in parameters}
        evaluator: Evaluator = factory(config, **taken, **objects)
        return evaluator


def check_can_tune(evaluator: Evaluator, config: RunConfig) -> TunableEvaluator:
    """The evaluator itself; raises BadInput if it cannot tune a plan in full."""
    if not isinstance(evaluator, TunableEvaluator):
        problem = (
            "cannot fine-tune a plan, it only estimates the loss: use a run of the evaluator quantized-lora"
        )
        raise BadInput(f"evaluator {config.evaluator!r} {problem}")
    return evaluator


@dataclass(frozen=True)
class Workers:
    """Where evaluations run, if not in this process; the kind is `process` or `ray`, which may have an address."""

    count: int
    kind: str = "process"
    address: str | None = None


def build_in_worker(config: RunConfig) -> Evaluator:
    """A run's evaluator in a worker.

    In a worker with a device of its own (`QRA_DEVICE`), a config that asks for GPUs or leaves the device open gets that
    one: of the machine's GPUs a worker sees its own only, whatever their numbers are outside.
    """
    device = os.environ.get(DEVICE_VARIABLE)
    if device and config.model.device != "cpu":
        config = config.model_copy(update={"model": config.model.model_copy(update={"device": device})})
    evaluator: Evaluator = plugins.load("evaluators", config.evaluator)(config)
    return evaluator


def make_executor(config: RunConfig, workers: Workers) -> WorkerExecutor:
    """The executor of a run's workers, for a `with` block; raises BadInput if there are too few GPUs, or no cluster."""
    if workers.kind not in WORKER_KINDS:
        raise ValueError(plugins.describe_unknown("executor", workers.kind, WORKER_KINDS))
    device, factory = config.model.device, partial(build_in_worker, config)
    if device.startswith("cuda:"):
        raise BadInput(
            f"--device {device} names one GPU, but each worker needs its own. Use --device cuda, and choose "
            "the GPUs with CUDA_VISIBLE_DEVICES"
        )
    if workers.kind == "ray":
        with_gpus = None if device == "auto" else device == "cuda"
        return RayExecutor(factory, workers.count, address=workers.address, with_gpus=with_gpus)
    if workers.address is not None:
        raise BadInput("--address names a Ray cluster, so it needs --executor ray")
    return ProcessExecutor(factory, devices=assign_devices(device, workers.count))


@contextmanager
def start_workers(
    config: RunConfig, workers: Workers, listener: Listener
) -> Iterator[tuple[Evaluator, Executor]]:
    """An evaluator whose work is done by workers, and their executor; raises BadInput if there cannot be such."""
    stage = f"start {workers.count} workers"
    with convert_to_bad_input():
        executor = make_executor(config, workers)
    with executor:
        listener.progress(stage, 0, 1)
        try:
            evaluator = RemoteEvaluator(executor)
        except WorkerUnusable as error:
            raise BadInput(str(error)) from None
        listener.progress(stage, 1, 1)
        yield evaluator, executor
