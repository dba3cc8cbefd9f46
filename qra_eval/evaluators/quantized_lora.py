"""The real evaluator: a short quantized-LoRA fine-tuning under a plan, then the held-out loss."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from qra_backends import make_backend

from qra_eval.costs.search import (
    check_engine,
    check_fit,
    count_sensitivities_tokens,
    estimate_search,
    list_cards,
    measure_seconds_per_token,
)
from qra_eval.models.attention import use_fast_attention
from qra_eval.models.device import resolve_device
from qra_eval.models.load import load_model
from qra_eval.models.loaded import LoadedModel, get_position_table_size
from qra_eval.quantized.model import QuantizedModel
from qra_eval.quantized.space import check_bits
from qra_eval.sensitivities.cache import read_or_measure
from qra_eval.tasks import SPLITS, Task, make_task, render_example
from qra_eval.tasks.base import Rows
from qra_eval.tasks.scoring import Metric, check_metric, load_metrics
from qra_eval.tuning.final import measure_untuned, tune, write_base
from qra_eval.tuning.fine_tuner import FineTuner, convert_out_of_memory, try_rate
from qra_eval.tuning.loading import generate, load
from qra_eval.tuning.training import Diverged
from qra_search.app.config import RunConfig, make_config
from qra_search.app.evaluator import RateTrial, RowCount, TunableEvaluator
from qra_search.errors import BadInput, EvaluationFailed
from qra_search.evaluator import Progress
from qra_search.schemas import LENGTH_PARAMETER, Evaluation, ExtraParameter, Plan, Sensitivities, TuningRecord
from qra_search.space.budgets import resolve_budgets

LEARNING_RATE = "learning_rate"


class QuantizedLoRAEvaluator(TunableEvaluator):
    """Evaluates plans on a real model, loaded and quantized once (`QuantizedModel`); the plug-in `quantized-lora`.

    Args:
        config: settings of a run, or their sections as plain data.
        task: rows or a `Task` as `make_task` takes them, in place of `config.task.name`.
        metrics: functions of (answer, example) by name, beside those of `config.task.metrics`.
        progress: called with all that takes long before the first evaluation.
        weights: False: for `space`, `estimate_search_cost`, `list_fitting_cards` and `render_row` alone; the model's
            weights are not read.

    Attributes:
        budget: bytes of the largest plan that a search may put in place, for estimates; None: the largest there is.

    Raises:
        BadInput: a device, model, task or setting that cannot be used; one line says which, and what is allowed.
    """

    fidelities: tuple[float, ...] = (0.25, 0.5, 1.0)
    load = staticmethod(load)
    generate = staticmethod(generate)

    def __init__(
        self,
        config: RunConfig | Mapping[str, Any] | None = None,
        *,
        task: Any = None,
        metrics: Mapping[str, Metric] | None = None,
        progress: Progress | None = None,
        weights: bool = True,
    ):
        config = config if isinstance(config, RunConfig) else make_config(dict(config or {}))
        if config.options:
            raise BadInput(
                f"the evaluator 'quantized-lora' has no option {next(iter(config.options))!r}: its "
                "settings are in the sections model, task, quantization, space, training, evaluation and finetune"
            )
        self.config = config.name_objects(task=task, metrics=metrics)
        device = resolve_device(config.model.device)
        self.task = self._make_task(task, metrics or {})  # before a model is loaded for nothing
        backend = make_backend(config.quantization.backend)
        check_bits(config.space.bits, backend)
        loaded = self._load_model(device, weights, progress)
        most = get_position_table_size(loaded.model) or config.training.max_length
        if config.training.max_length > most:
            raise BadInput(
                f"training.max_length is {config.training.max_length}: {loaded.name} supports at most {most} tokens"
            )
        self.rows = Rows(self.task, self.config.task.name, loaded.tokenizer, config.training.max_length)
        self.quantized_model = QuantizedModel(
            loaded,
            backend,
            config.quantization,
            config.space,
            self.rows,
            config.training,
            device=device,
            compute=config.model.compute,
            progress=progress,
            dequantized_cache=config.model.dequantized_cache,
        )
        self.tuner = FineTuner(
            self.quantized_model, self.rows, config.evaluation, config.finetune, metric=config.search.metric
        )
        self.space = self.tuner.space.with_extra(make_extra_parameters(self.config))
        if config.engine is not None:
            quantized = self.quantized_model
            check_engine(config.engine, loaded.model.config, quantized.linears, quantized.granularity)
        self.budget = resolve_budgets(self.space, config.search.memory)[-1] if config.search.memory else None
        check_fit(self.tuner, self.budget)

    def _make_task(self, task: Any, metrics: Mapping[str, Metric]) -> Task:
        given, search = self.config.task, self.config.search
        name = given.name if task is None else task
        if isinstance(name, Task):
            made = copy.copy(name)  # the user's own object keeps its metrics
        else:
            made = make_task(name, data=given.data, seed=search.seed, **given.options)
        for split in SPLITS:
            if not made.split(split):
                raise BadInput(
                    f"task {made.name!r} has no rows in its {split} split: give data that has some"
                )
        own = load_metrics(self.config.task.metrics, metrics)
        for name, metric in own.items():
            check_metric(name, metric, made.split("test")[0])
        made.add_metrics(own)
        if search.metric == "task" and made.judged_by is None:
            raise BadInput(
                f"search.metric is 'task', but task {made.name!r} has no metric: use --set search.metric=loss"
            )
        return made

    def _load_model(self, device: torch.device, weights: bool, progress: Progress | None) -> LoadedModel:
        given = self.config.model
        report = progress or (lambda *_: None)
        if device.type == "cpu":
            # oneDNN keeps 1,024 compiled products of about 0.5 MiB, and makes new ones for every length of rows.
            os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
        report("load model", 0, 1)
        dtype = None if given.dtype == "auto" else getattr(torch, given.dtype)
        loaded = load_model(given.name, dtype=dtype, device=device, stream=True, weights=weights)
        report("load model", 1, 1)
        if device.type == "cpu":
            use_fast_attention(loaded.model)
        return loaded

    @property
    def progress(self) -> Progress | None:
        """Called with all that takes long before the first evaluation; may be set later."""
        return self.quantized_model.progress

    @progress.setter
    def progress(self, progress: Progress | None) -> None:
        self.quantized_model.progress = progress

    # -- the contract --------------------------------------------------------------------------
    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        self.space.encode(plan)
        self.tuner.switcher.quantize_plan(plan)  # not part of any evaluation's time
        return convert_out_of_memory(self.tuner, lambda: self._evaluate_plan(plan, fidelity, seed))

    def _evaluate_plan(self, plan: Plan, fidelity: float, seed: int) -> Evaluation:
        start = time.perf_counter()
        settings = self.tuner.evaluation
        steps = math.ceil(fidelity * plan.length * settings.steps)
        held_out = math.ceil(fidelity * settings.validation_rows)
        by_loss = self.tuner.metric == "loss"
        try:
            self.tuner.switcher.put_plan(plan, seed)
            trained = self.tuner.train(steps, seed, learning_rate=dict(plan.extra).get(LEARNING_RATE))
            nats = self.tuner.measure_loss("validation", held_out)
            loss = nats if by_loss else self.tuner.measure_objective("validation", held_out)
        except Diverged as error:
            raise EvaluationFailed(str(error)) from None
        metrics = {"train_loss": trained.loss if steps else 0.0, "trained_tokens": trained.tokens}
        return Evaluation(
            loss=loss,
            memory_bytes=self.space.memory_bytes(plan),
            metrics=metrics if by_loss else {"loss": nats, **metrics},
            seconds=time.perf_counter() - start,
            fidelity=fidelity,
            seed=seed,
        )

    def sensitivities(self) -> Sensitivities:
        return convert_out_of_memory(self.tuner, lambda: read_or_measure(self.tuner))

    def describe(self) -> dict[str, Any]:
        return self.tuner.describe()

    def estimate_search_cost(self) -> dict[str, Any]:
        return estimate_search(self.tuner, self.budget)

    def sensitivity_cost(self) -> float:
        return count_sensitivities_tokens(self.tuner) / self.tuner.count_evaluation_tokens()

    def evaluation_seconds(self) -> float:
        """Seconds of a full evaluation: those of a layer, timed, times all tokens of one."""
        return measure_seconds_per_token(self.tuner) * self.tuner.count_evaluation_tokens()

    def row_counts(self) -> Mapping[str, RowCount]:
        return self.tuner.row_counts()

    def metric_digests(self) -> Mapping[str, str]:
        return self.task.metric_digests

    def list_fitting_cards(self) -> list[dict[str, Any]]:
        return list_cards(self.tuner, self.budget)

    def render_row(self) -> list[tuple[str, bool]] | None:
        if self.rows.tokenizer is None:
            return None
        return render_example(self.task, self.rows.tokenizer, self.rows.max_length)

    def tune(self, plan: Plan, *, folder: str | Path | None = None, **options: Any) -> TuningRecord:
        """Tune a plan in full and measure it on test rows; for the options see `qra_eval.tuning.final.tune`.

        What is saved with its base is loaded by `qra_eval.load(folder)`.
        """
        self.space.find_space(plan).encode(plan)
        return tune(self.tuner, plan, folder=None if folder is None else Path(folder), **options)

    def write_base(self, plan: Plan, folder: Path) -> None:
        write_base(self.tuner, plan, folder)

    def finetune_steps(self) -> int:
        return self.tuner.finetune_steps

    def set_learning_rate(self, rate: float | Literal["auto"]) -> None:
        settings = self.quantized_model.settings
        self.quantized_model.settings = settings.model_copy(update={LEARNING_RATE: rate})

    def try_rate(self, plan: Plan, rate: float, steps: int, **options: Any) -> RateTrial:
        return try_rate(self.tuner, plan, rate, steps, **options)

    def tuning_data(self) -> str:
        tuner = self.tuner
        digest = hashlib.sha256()
        counts = {"validation": tuner.evaluation.validation_rows, "test": tuner.finetune.test_rows}
        for split in SPLITS:
            for example in self.task.split(split)[: counts.get(split)]:
                digest.update(repr(example).encode())
        return digest.hexdigest()[:16]

    def measure_untuned(self) -> TuningRecord | None:
        return measure_untuned(self.tuner)


def make_extra_parameters(config: RunConfig) -> dict[str, ExtraParameter]:
    """What a search chooses beside bits and ranks by the settings: learning rates, and lengths of evaluations."""
    extra, rate = {}, config.training.rate
    if config.space.learning_rates:
        extra[LEARNING_RATE] = ExtraParameter(tuple(sorted({*config.space.learning_rates, rate})), rate)
    if config.space.lengths:
        extra[LENGTH_PARAMETER] = ExtraParameter(tuple(sorted({*config.space.lengths, 1.0})), 1.0)
    return extra
