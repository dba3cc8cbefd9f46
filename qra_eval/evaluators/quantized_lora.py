"""The real evaluator: a short quantized-LoRA fine-tuning under a plan, then the held-out loss."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from qra_backends import make_backend

from qra_eval.costs.cards import cards, fit
from qra_eval.costs.time import estimate, seconds_per_token, sensitivities_charge
from qra_eval.evaluators.parts import checked_task, load_on, section
from qra_eval.models.device import resolve_devices
from qra_eval.models.engine import check_engine
from qra_eval.models.loaded import positions
from qra_eval.quantized.model import QuantizedModel
from qra_eval.quantized.space import check_bits
from qra_eval.sensitivities.cache import read_or_measure
from qra_eval.tasks import register_task, rendered_example
from qra_eval.tasks.base import text_hash
from qra_eval.tasks.rows import LongestRows, Rows
from qra_eval.tuning.final import tune, untuned
from qra_eval.tuning.fine_tuner import FineTuner
from qra_eval.tuning.out_of_memory import unless_out_of_memory
from qra_eval.tuning.processes import LaunchedProcesses
from qra_eval.tuning.training import Diverged
from qra_search.allocate.sensitivities import Sensitivities
from qra_search.config import (
    EvaluationConfig,
    FinetuneConfig,
    ModelConfig,
    QuantizationConfig,
    RunConfig,
    SearchConfig,
    SpaceConfig,
    TaskConfig,
    TrainingConfig,
    in_steps,
    make_config,
)
from qra_search.errors import BadInput
from qra_search.evaluation.evaluator import (
    NO_ADAPTER,
    Evaluation,
    EvaluationFailed,
    Evaluator,
    Figures,
    Progress,
    RowCount,
    Tuned,
)
from qra_search.launched import standing
from qra_search.runs.folder import RunFolder
from qra_search.space.budgets import resolve_budgets
from qra_search.space.space import Plan

FIDELITIES = (0.25, 0.5, 1.0)


def build(config: RunConfig, *, progress: Progress | None = None, weights: bool = True) -> QuantizedLoRAEvaluator:
    """The evaluator of a run's config; the plug-in `quantized-lora`.

    Args:
        weights: False: for `space`, `estimate` and `example` alone; the model's weights are neither read nor needed.

    Raises:
        BadInput: settings that cannot be, or a run that does not fit the GPU.
    """
    evaluator = QuantizedLoRAEvaluator.from_config(config, progress=progress, weights=weights)
    if config.engine is not None:
        quantized = evaluator.quantized
        check_engine(
            config.engine, quantized.model.config, linears=quantized.linears, granularity=quantized.granularity
        )
    if config.search.memory:
        evaluator.budget = resolve_budgets(evaluator.space, config.search.memory)[-1]
    fit(evaluator.tuner, evaluator.budget)
    return evaluator


class QuantizedLoRAEvaluator(Evaluator):
    """Evaluates plans on a real model, loaded and quantized once (`QuantizedModel`).

    Args:
        model: `smollm2`, `tiny`, a folder, a GGUF file or a hub id; or a live `PreTrainedModel` with `tokenizer`.
        task: a task's name, or a config with its data and options; or rows or a `Task`, as `make_task` takes them.
        quantization: backend and cache folder.
        space: bits, ranks and granularity.
        training: how adapters are tuned; like the others a config, or a dict of its fields.
        evaluation, finetune: what counts in an evaluation alone, and in a full tuning.
        dtype: in which what is not quantized is stored; bytes are counted in it.
        compute: in which evaluations compute; `auto`: the faster one, or as stored if weights do not fit in the cache.
        dequantized_cache: bytes of dequantized weights to keep (a number, or a text such as `2GiB`); `auto`: by what is
            free. They are kept if all linears of a plan fit.
        metric: what an evaluation's loss is: `loss`, that of the wanted answers, or `task`, the task's own measure,
            with the loss among its metrics.
        seed: of the task's splits.
        weights: False: for `space`, `estimate`, `cards` and `example` alone.

    Attributes:
        budget: bytes of the largest plan that a search may put in place, for estimates; None: the largest there is.

    Raises:
        BadInput: a device, model, task or setting that cannot be; one line says which, and what is allowed.
    """

    fidelities: tuple[float, ...] = FIDELITIES
    budget: int | None = None

    def __init__(
        self,
        model: Any = "smollm2",
        task: Any = "arithmetic",
        *,
        tokenizer: Any = None,
        quantization: QuantizationConfig | Mapping[str, Any] = QuantizationConfig(),  # noqa: B008 - frozen
        space: SpaceConfig | Mapping[str, Any] = SpaceConfig(),  # noqa: B008 - frozen
        training: TrainingConfig | Mapping[str, Any] = TrainingConfig(),  # noqa: B008 - frozen
        evaluation: EvaluationConfig | Mapping[str, Any] = EvaluationConfig(),  # noqa: B008 - frozen
        finetune: FinetuneConfig | Mapping[str, Any] = FinetuneConfig(),  # noqa: B008 - frozen
        device: str = "auto",
        dtype: str = "auto",
        compute: str = "auto",
        trust_remote_code: bool = False,
        metric: str = "loss",
        seed: int = 0,
        dequantized_cache: int | str = "auto",
        progress: Progress | None = None,
        weights: bool = True,
    ):
        quantization = section(QuantizationConfig, "quantization", quantization)
        space = section(SpaceConfig, "space", space)
        training = section(TrainingConfig, "training", training)
        of_model = {"device": device, "dtype": dtype, "compute": compute, "dequantized_cache": dequantized_cache}
        section(ModelConfig, "model", of_model)
        of_search = {"metric": metric, "seed": seed}
        section(SearchConfig, "search", of_search)
        devices = resolve_devices(device)
        place = devices[0]
        self.task, name = checked_task(task, metric=metric, seed=seed)  # before a model is loaded for nothing
        backend = make_backend(quantization.backend)
        check_bits(space.bits, backend)
        loaded = load_on(
            place, model, tokenizer, dtype=dtype, trust_remote_code=trust_remote_code, progress=progress,
            weights=weights,
        )  # fmt: skip
        most = positions(loaded.model)
        if most is not None and training.max_length > most:
            raise BadInput(f"training.max_length is {training.max_length}: {model} has positions for {most} tokens")
        kind = Rows if loaded.tokenizer is not None else LongestRows
        self.rows = kind(self.task, name, loaded.tokenizer, training.max_length)
        self.quantized = QuantizedModel(
            loaded, backend, quantization, space, self.rows, training, device=place, devices=devices, compute=compute,
            dequantized_cache=dequantized_cache, progress=progress,
        )  # fmt: skip
        self.tuner = FineTuner(
            self.quantized,
            self.rows,
            section(EvaluationConfig, "evaluation", evaluation),
            section(FinetuneConfig, "finetune", finetune),
            metric=metric,
        )
        self.space = self.tuner.space
        self._live, self._task = model, task
        self._settings = {
            "model": {"name": loaded.spec, **of_model, "trust_remote_code": trust_remote_code}, "search": of_search,
            "quantization": quantization, "space": space, "training": training,
            "evaluation": self.tuner.evaluation, "finetune": self.tuner.finetune,
        }  # fmt: skip
        self.sensitivities_report: dict[str, Any] = {}

    @classmethod
    def from_config(
        cls, config: RunConfig, *, progress: Progress | None = None, weights: bool = True
    ) -> QuantizedLoRAEvaluator:
        """The evaluator of a run's settings; arguments as `build` takes them."""
        return cls(
            config.model.name,
            config.task,
            **{name: getattr(config, name) for name in ("quantization", "space", "training", "evaluation", "finetune")},
            **config.model.model_dump(exclude={"name"}),
            **config.search.model_dump(include={"metric", "seed"}),
            progress=progress,
            weights=weights,
        )

    @property
    def progress(self) -> Progress | None:
        """Called with all that takes long before the first evaluation; may be set later."""
        return self.quantized.progress

    @progress.setter
    def progress(self, progress: Progress | None) -> None:
        self.quantized.progress = progress

    # -- the contract --------------------------------------------------------------------------
    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        self.space.encode(plan)
        self.tuner.switcher.prepare()  # not part of any evaluation's time
        return unless_out_of_memory(self.tuner, lambda: self._evaluated(plan, fidelity, seed))

    def _evaluated(self, plan: Plan, fidelity: float, seed: int) -> Evaluation:
        start = time.perf_counter()
        settings = self.tuner.evaluation
        steps = math.ceil(fidelity * settings.steps)
        held_out = math.ceil(fidelity * settings.validation_rows)
        try:
            self.tuner.apply(plan, seed)
            swapped = time.perf_counter() - start
            trained = self.tuner.train(steps, seed)
            began = time.perf_counter()
            loss = self.tuner.held_out("validation", held_out)
            by_task = self.tuner.objective("validation", held_out)
        except Diverged as error:
            raise EvaluationFailed(str(error)) from None
        now = time.perf_counter()
        return Evaluation(
            loss=loss if by_task is None else by_task,
            memory_bytes=self.space.memory_bytes(plan),
            metrics={
                **({} if by_task is None else {"loss": loss}),
                "train_loss": trained.loss if steps else 0.0,
                "trained_tokens": trained.tokens,
                "swap_seconds": swapped,
                "train_seconds": trained.seconds,
                "model_seconds": trained.model_seconds + now - began,
            },
            seconds=now - start,
            fidelity=fidelity,
            seed=seed,
        )

    def sensitivities(self) -> Sensitivities:
        """Sensitivity of the groups: as an earlier run of the same content kept it, or measured and kept.

        A search is charged what measuring took, whether or not it was measured again.
        """
        found = unless_out_of_memory(self.tuner, lambda: read_or_measure(self.tuner), training=False)
        sensitivities, self.sensitivities_report = found
        return sensitivities

    def describe(self) -> dict[str, Any]:
        return self.tuner.describe()

    def estimate(self) -> dict[str, Any]:
        """What a search will take, before anything is quantized; see `qra_eval.costs.time`."""
        return estimate(self.tuner, self.budget)

    def sensitivities_charge(self) -> float:
        return sensitivities_charge(self.tuner)

    def evaluation_seconds(self) -> float:
        """Seconds of a full evaluation: those of a layer, timed, times all tokens of one."""
        return seconds_per_token(self.tuner) * self.tuner.evaluation_tokens()

    def row_counts(self) -> Mapping[str, RowCount]:
        """Rows of each split, asked for and had, for evaluations and the full tuning together."""
        return self.tuner.row_counts()

    def cards(self) -> list[dict[str, Any]]:
        """Which graphics cards a run fits, and with which settings; see `qra_eval.costs.cards`."""
        return cards(self.tuner, self.budget)

    def example(self) -> str:
        """The first problem of the validation split, with its answer."""
        example = self.rows.task.split("validation")[0]
        return example.prompt + example.answer

    def rendered(self) -> list[tuple[str, bool]] | None:
        """The first row of the train split, in the tokenizer's template if it has one; None without a tokenizer."""
        if self.rows.tokenizer is None:
            return None
        return rendered_example(self.task, self.rows.tokenizer, self.rows.max_length)

    def untuned_loss(self) -> float:
        """Validation loss of the model as it was loaded, neither quantized nor tuned."""
        return self.tuner.untuned_loss()

    def tune(
        self,
        plan: Plan,
        *,
        seed: int = 0,
        steps: int | None = None,
        folder: str | Path | None = None,
        kept: Path | None = None,
        figures: Figures | None = None,
        progress: Progress | None = None,
    ) -> Tuned:
        """Tune a plan in full and measure it on test data; see `qra_eval.tuning.final.tune`.

        A folder that is no run's becomes one, which `qra show`, `report`, `finetune` and `search` take.
        """
        self.space.of(plan).encode(plan)
        place = None if folder is None else RunFolder(folder)
        config = make_config(self._config().model_dump(), in_steps(steps))
        if place is not None:
            if not any(plan.ranks):
                raise BadInput(NO_ADAPTER)
            if place.has_tuned or place.half_aside:
                place.set_aside()
        kinds: dict[str, Any] = {"seed": seed, "steps": steps, "kept": kept}
        own: dict[str, Any] = {"folder": folder, "figures": figures, "progress": progress}
        if standing()[1] == 1:
            tuned = tune(self.tuner, plan, **kinds, **own)
        else:
            with self._launched.leading({"plan": plan, **kinds}, self.tuner.settings.rows_a_step):
                tuned = tune(self.tuner, plan, **kinds, **own, processes=self._launched)
        if place is not None:
            place.keep_tuned(config, self, tuned)
        return tuned

    def tuning_data(self) -> str:
        tuner = self.tuner
        return text_hash(
            self.task, train=None, validation=tuner.evaluation.validation_rows, test=tuner.finetune.test_rows
        )

    def follow(self) -> NoReturn:
        for asked in self._launched.requests():
            with suppress(EvaluationFailed):  # all fail alike; the first process says so
                tune(self.tuner, **asked, processes=self._launched)
        sys.exit()

    @cached_property
    def _launched(self) -> LaunchedProcesses:
        """Those that a launcher started, joined at the first call."""
        return LaunchedProcesses(self.tuner.device)

    def untuned(self) -> Tuned | None:
        """Test figures of the model as it was loaded; see `qra_eval.tuning.final.untuned`."""
        return untuned(self.tuner)

    def _config(self) -> RunConfig:
        """The settings of a run that has this evaluator."""
        named = isinstance(self._task, (str, TaskConfig)) or (isinstance(self._task, Mapping) and "name" in self._task)
        task = self._task if named else register_task(self._task)
        return RunConfig(task={"name": task} if isinstance(task, str) else task, **self._settings)

    def close(self) -> None:
        self.tuner.switcher.close()
