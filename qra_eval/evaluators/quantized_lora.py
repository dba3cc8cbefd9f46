"""The real evaluator: a short quantized-LoRA fine-tuning under a plan, then the held-out loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from qra_backends import make_backend

from qra_eval.models.attention import use_fast_attention
from qra_eval.models.load import load_model
from qra_eval.prior.kept import kept_or_measured
from qra_eval.quantized import adapters
from qra_eval.quantized.bank import WEIGHT_CACHE_BYTES
from qra_eval.quantized.model import QuantizedModel
from qra_eval.quantized.space import ADAPTER_DTYPE, check_bits
from qra_eval.tasks import SplitName, make_task
from qra_eval.tuning import training
from qra_eval.tuning.early_stop import ceiling, is_hopeless
from qra_eval.tuning.rows import Rows
from qra_eval.tuning.shared_adapter import SharedScores
from qra_search.config import QuantizationConfig, RunConfig, SpaceConfig, TaskConfig, TrainingConfig
from qra_search.evaluation.evaluator import Evaluation, EvaluationFailed, Evaluator
from qra_search.evaluation.prior import Prior
from qra_search.space.space import Plan

if TYPE_CHECKING:
    from qra_eval.tuning.final import Tuned

Progress = Callable[[str, int, int], None]

FIDELITIES = (0.25, 0.5, 1.0)
LATER = {"hopeless": 0.5, "shared_steps": 0}
"""Settings, and their defaults, that older logs do not name: named by `describe` only where they are otherwise."""


def build(config: RunConfig, *, progress: Progress | None = None) -> QuantizedLoRAEvaluator:
    """The evaluator of a run's config; the plug-in `quantized-lora`."""
    return QuantizedLoRAEvaluator(
        model=config.model.name,
        task=config.task,
        quantization=config.quantization,
        space=config.space,
        training=config.training,
        device=config.model.device,
        dtype=config.model.dtype,
        compute=config.model.compute,
        trust_remote_code=config.model.trust_remote_code,
        memory_kind=config.search.memory_kind,
        seed=config.search.seed,
        progress=progress,
    )


class QuantizedLoRAEvaluator(Evaluator):
    """Evaluates plans on a real model, loaded and quantized once (`QuantizedModel`).

    Args:
        model: `smollm2`, `tiny`, a folder, a GGUF file or a hub id.
        task: a task's name, or a config with its data and options.
        quantization: backend and cache folder.
        space: bits, ranks and granularity.
        training: of one evaluation, and of the final tuning.
        dtype: in which what is not quantized is stored; bytes are counted in it.
        compute: in which evaluations compute; where weights do not fit in the cache, as stored.
        memory_kind: what bytes of a plan are: `resident`, of the tuned model, or `peak`, of training it here (see
            `qra_eval.costs.peak_memory`). Under a limit on the peak no dequantized weights are kept ready.
        seed: of the task's splits.
    """

    fidelities: tuple[float, ...] = FIDELITIES

    def __init__(
        self,
        model: str = "smollm2",
        task: str | TaskConfig = "arithmetic",
        *,
        quantization: QuantizationConfig = QuantizationConfig(),  # noqa: B008 - frozen
        space: SpaceConfig = SpaceConfig(),  # noqa: B008 - frozen
        training: TrainingConfig = TrainingConfig(),  # noqa: B008 - frozen
        device: str = "auto",
        dtype: str = "auto",
        compute: str = "auto",
        trust_remote_code: bool = False,
        memory_kind: str = "resident",
        seed: int = 0,
        weight_cache_bytes: int = WEIGHT_CACHE_BYTES,
        progress: Progress | None = None,
    ):
        if memory_kind == "peak":
            weight_cache_bytes = 0
        self.task_config = task if isinstance(task, TaskConfig) else TaskConfig(name=task)
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.task = make_task(self.task_config.name, data=self.task_config.data, seed=seed, **self.task_config.options)
        backend = make_backend(quantization.backend)
        check_bits(space.bits, backend)
        if progress is not None:
            progress("load model", 0, 1)
        loaded = load_model(
            model,
            dtype=None if dtype == "auto" else getattr(torch, dtype),
            device=str(self.device),
            trust_remote_code=trust_remote_code,
            embeddings=quantization.embeddings,
        )
        if progress is not None:
            progress("load model", 1, 1)
        self.model = cast(Any, loaded.model)
        use_fast_attention(self.model)
        self.tokenizer = loaded.tokenizer
        self.rows = Rows(self.task, self.task_config.name, self.tokenizer, training.max_length)
        self.space_config = space
        self.quantized = QuantizedModel(
            loaded, backend, quantization, space, self.rows, training, device=self.device, compute=compute,
            weight_cache_bytes=weight_cache_bytes, progress=progress,
        )  # fmt: skip
        if training.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.init: str = training.inits[0]
        self._highest: float | None = None
        self.space = self.quantized.space
        if memory_kind == "peak":
            from qra_eval.costs.peak_memory import step_memory

            self.space = step_memory(self).space(self.space)
        self.shared = SharedScores(self) if training.shared_steps else None
        if self.shared is not None:
            self.fidelities = (self.shared.fidelity, *FIDELITIES)
        self.prior_report: dict[str, Any] = {}

    @property
    def settings(self) -> TrainingConfig:
        """Of training; may be set later, the model in place follows them too."""
        return self.quantized.settings

    @settings.setter
    def settings(self, training: TrainingConfig) -> None:
        self.quantized.settings = training

    @property
    def progress(self) -> Progress | None:
        """Told of all that takes long before the first evaluation; may be set later."""
        return self.quantized.progress

    @progress.setter
    def progress(self, told: Progress | None) -> None:
        self.quantized.progress = told

    def estimate(self) -> dict[str, float]:
        """What a search will take, before anything is quantized; see `qra_eval.costs.time`."""
        from qra_eval.costs.time import estimate

        return estimate(self)

    # -- the contract --------------------------------------------------------------------------
    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        self.space.encode(plan)
        self.quantized.prepare()  # not part of any evaluation's time
        start = time.perf_counter()
        settings, cost = self.settings, None
        steps = math.ceil(fidelity * settings.steps)
        held_out = math.ceil(fidelity * settings.validation_rows)
        try:
            if self.shared is not None and fidelity == self.shared.fidelity:
                return self.shared.score(plan, seed)
            highest = self._highest_end() if settings.hopeless and steps else math.inf
            self.apply(plan, seed)
            swapped = time.perf_counter() - start
            trained = self.train(steps, seed, hopeless=lambda losses, of: is_hopeless(losses, of, highest))
            if trained.cut_at is not None:
                held_out = math.ceil(fidelity * FIDELITIES[0] * settings.validation_rows)
                spent = (1 + training.BACKWARD) * trained.tokens + sum(map(len, self.rows("validation", held_out)))
                cost = spent / self.evaluation_tokens()
            began = time.perf_counter()
            loss = self.held_out("validation", held_out)
        except training.Diverged as error:
            raise EvaluationFailed(str(error)) from None
        except torch.cuda.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise EvaluationFailed(f"out of memory: {str(error).splitlines()[0]}") from None
        now = time.perf_counter()
        return Evaluation(
            loss=loss,
            memory_bytes=self.space.memory_bytes(plan),
            metrics={
                "train_loss": trained.loss if steps else 0.0,
                "trained_tokens": trained.tokens,
                "swap_seconds": swapped,
                "train_seconds": trained.seconds,
                "model_seconds": trained.model_seconds + now - began,
                **({} if trained.cut_at is None else {"cut_short_at_step": trained.cut_at}),
            },
            seconds=now - start,
            fidelity=fidelity,
            seed=seed,
            cost=cost,
        )

    def _highest_end(self) -> float:
        """The highest loss at which tuning may plausibly end; see `qra_eval.tuning.early_stop`."""
        if self._highest is None:
            self.quantized.unquantize()
            size = self.settings.batch_size
            batches = training.bucketed(self.rows("calibration", size), size)
            untuned = training.held_out_loss(self.model, batches, self.device)
            self._highest = ceiling(untuned, self.model.config.get_text_config().vocab_size, self.settings.hopeless)
        return self._highest

    def prior(self) -> Prior:
        """Sensitivity of the groups: as an earlier run of the same content kept it, or measured and kept.

        A search is charged what measuring took, whether or not it was measured again.
        """
        prior, self.prior_report = kept_or_measured(self)
        if self.shared is not None:
            self.shared.adapter()
            prior = replace(prior, cost=prior.cost + self.shared.due())
        return prior

    def describe(self) -> dict[str, Any]:
        unnamed = {name for name, default in LATER.items() if getattr(self.settings, name) == default}
        return {
            "model": self.quantized.loaded.name,
            "weights": self.quantized.loaded.fingerprint,
            "dtype": str(self.quantized.dtype).removeprefix("torch."),
            "task": self.task_config.name,
            "rows": self.rows.hash(calibration=self._trained_rows, validation=self.settings.validation_rows),
            "backend": self.quantized.backend.spec,
            "granularity": self.space_config.granularity,
            "training": {
                **self.settings.model_dump(exclude={"final_steps", "test_rows", *unnamed}),
                "init": self.settings.inits[0],
            },
        }

    # -- parts, also used by the final tuning ----------------------------------------------------
    def apply(self, plan: Plan, seed: int) -> None:
        """Put a plan in place, with adapters as `init` begins them."""
        self.quantized.apply(plan, seed, self.init)

    def untuned_loss(self) -> float:
        """Validation loss of the model as it was loaded, neither quantized nor tuned; the first figure to be had."""
        with self.quantized.unquantized():
            return self.held_out("validation", self.settings.validation_rows)

    def train(
        self,
        steps: int,
        seed: int,
        progress: Callable[[int, int, float], None] | None = None,
        hopeless: Callable[[Sequence[float], int], bool] | None = None,
    ) -> training.Trained:
        """Tune the adapters in place for `steps` steps, then round them to what is saved."""
        trained = training.train(
            self.model,
            adapters.trainable(self.quantized.wrapped),
            self.batches(steps, seed),
            learning_rate=self.settings.learning_rate,
            warmup=self.settings.warmup,
            seed=seed,
            device=self.device,
            progress=progress,
            hopeless=hopeless,
        )
        adapters.round_to(self.quantized.wrapped, ADAPTER_DTYPE)
        return trained

    def batches(self, steps: int, seed: int) -> list[training.Batch]:
        """The batches of a training: those of fewer steps than a full evaluation are the first of its batches."""
        size, whole = self.settings.batch_size, max(steps, self.settings.steps)
        if steps == 0:
            return []
        return training.schedule(self.rows("calibration", whole * size), whole, size, seed)[:steps]

    def held_out(self, split: SplitName, rows: int) -> float:
        """Loss in nats a labelled token on the first rows of a split."""
        return training.held_out_loss(
            self.model, training.bucketed(self.rows(split, rows), 2 * self.settings.batch_size), self.device
        )

    def evaluation_tokens(self) -> float:
        """Tokens of a full evaluation in units of one forward pass, a backward pass counted as two."""
        settings = self.settings
        rows = self.rows("calibration", self._trained_rows)
        trained = sum(map(len, rows)) * (settings.steps * settings.batch_size) / len(rows)
        held_out = sum(map(len, self.rows("validation", settings.validation_rows)))
        return (1 + training.BACKWARD) * trained + held_out

    @property
    def _trained_rows(self) -> int:
        """Rows that a full evaluation trains on; one, of which only the length matters, where it trains on none."""
        return max(1, self.settings.steps * self.settings.batch_size)

    def tune(self, plan: Plan, **options: Any) -> Tuned:
        """Tune a plan in full and measure it on test data; see `qra_eval.tuning.final.tune`."""
        from qra_eval.tuning.final import tune

        self.space.encode(plan)
        return tune(self, plan, **options)

    def close(self) -> None:
        self.quantized.close()
