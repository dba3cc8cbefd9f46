"""The real evaluator: a short quantized-LoRA fine-tuning under a plan, then the held-out loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from qra_backends import make_backend
from torch import Tensor

from qra_eval import adapters, training
from qra_eval.attention import use_fast_attention
from qra_eval.bank import WEIGHT_CACHE_BYTES, Bank, bank_folder, check_shapes, tensor_bytes
from qra_eval.hopeless import ceiling, is_hopeless
from qra_eval.initialisation import Initialiser, input_components
from qra_eval.loaded import compute_dtype, computed_in
from qra_eval.model_space import ADAPTER_DTYPE, check_bits, levels_of, model_space
from qra_eval.models import find_linears, group_linears, load_model
from qra_eval.prior import kept_or_measured
from qra_eval.rows import Rows
from qra_eval.shared import SharedScores
from qra_eval.tasks import SplitName, make_task
from qra_search.config import QuantizationConfig, RunConfig, SpaceConfig, TaskConfig, TrainingConfig
from qra_search.evaluation import Evaluation, EvaluationFailed, Evaluator, Prior
from qra_search.memory import UNQUANTIZED_BITS
from qra_search.space import Plan

if TYPE_CHECKING:
    from qra_eval.calibration import Hessians
    from qra_eval.finetune import Tuned

Progress = Callable[[str, int, int], None]

FIDELITIES = (0.25, 0.5, 1.0)
CALIBRATION_ROWS = 128
"""Rows whose activations calibrated backends see; their forward pass is charged to the prior."""
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
    """Evaluates plans on a real model.

    The model is loaded once; every linear is quantized once at every bit-width (`Bank`); a plan is put in place by
    setting references. While all dequantized weights fit in `weight_cache_bytes`, linears multiply by these, which
    gives the numbers of dequantize-then-multiply without doing the former at every step. They may then be in another
    dtype (`compute`) than the model is stored in: the weights are the same numbers, only sums are rounded otherwise.

    Args:
        model: `smollm2`, `tiny`, a folder, a GGUF file or a hub id.
        task: a task's name, or a config with its data and options.
        quantization: backend and cache folder.
        space: bits, ranks and granularity.
        training: of one evaluation, and of the final tuning.
        dtype: in which what is not quantized is stored; bytes are counted in it.
        compute: in which evaluations compute; where weights do not fit in the cache, as stored.
        memory_kind: what bytes of a plan are: `resident`, of the tuned model, or `peak`, of training it here (see
            `qra_eval.peak`). Under a limit on the peak no dequantized weights are kept ready.
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
        self.progress = progress
        if memory_kind == "peak":
            weight_cache_bytes = 0
        self.settings, self.task_config = training, task if isinstance(task, TaskConfig) else TaskConfig(name=task)
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.task = make_task(self.task_config.name, data=self.task_config.data, seed=seed, **self.task_config.options)
        backend = make_backend(quantization.backend)
        check_bits(space.bits, backend)
        levels = levels_of(space.bits, backend)
        if progress is not None:
            progress("load model", 0, 1)
        self.loaded = load_model(
            model,
            dtype=None if dtype == "auto" else getattr(torch, dtype),
            device=str(self.device),
            trust_remote_code=trust_remote_code,
            embeddings=quantization.embeddings,
        )
        if progress is not None:
            progress("load model", 1, 1)
        self.model = cast(Any, self.loaded.model)
        use_fast_attention(self.model)
        self.tokenizer = self.loaded.tokenizer
        self.rows = Rows(self.task, self.task_config.name, self.tokenizer, training.max_length)
        self.space_config, self.quantization, self.backend = space, quantization, backend
        found = find_linears(self.model)
        groups = group_linears(found, space.granularity)
        modules = self._linears = {f.name: f.module for f in found}
        self._moments: Hessians | None = None
        dense = sum(m.weight.nbytes for m in modules.values())
        self.dtype: torch.dtype = self.model.dtype
        self.compute = compute_dtype(self.device) if compute == "auto" else getattr(torch, compute)
        if compute == "auto" and self.compute.itemsize < self.dtype.itemsize:
            self.compute = self.dtype  # who keeps a model in float32 wants its digits
        expanded = dense * len(levels) * self.compute.itemsize // self.dtype.itemsize
        self.materialised = expanded <= weight_cache_bytes
        if not self.materialised:
            self.compute = self.dtype
        check_shapes(backend, modules, levels)  # what the backend refuses is said before anything is spent
        self._weight_cache_bytes = weight_cache_bytes
        self.space = model_space(groups, space, backend, fixed_bytes=tensor_bytes(self.model) - dense)
        self._prepared: tuple[Bank, dict[str, adapters.AdaptedLinear]] | None = None
        self._rest: list[Tensor] = []
        self._stored: list[Tensor] | None = None
        if training.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.init: str = training.inits[0]
        self._initialisers: dict[str, Initialiser] = {}
        self._highest: float | None = None
        self.resident = self.space
        if memory_kind == "peak":
            from qra_eval.peak import step_memory

            self.space = step_memory(self).space(self.resident)
        self.shared = SharedScores(self) if training.shared_steps else None
        if self.shared is not None:
            self.fidelities = (self.shared.fidelity, *FIDELITIES)
        self.prior_report: dict[str, Any] = {}

    # -- made at the first call: hours may lie between a look at the space and the first evaluation --------------
    @property
    def bank(self) -> Bank:
        """Every linear at every bit-width; quantized, or read from the cache, at the first call."""
        return self._prepare()[0]

    @property
    def wrapped(self) -> dict[str, adapters.AdaptedLinear]:
        """The model's linears with room for adapters, by name."""
        return self._prepare()[1]

    def _prepare(self) -> tuple[Bank, dict[str, adapters.AdaptedLinear]]:
        if self._prepared is None:
            modules = self._linears
            bank = Bank(
                modules,
                self.backend,
                self.space.bits,
                bank_folder(self.quantization.cache),
                self.bank_identity,
                hessian=self._hessian if self.backend.calibrated else None,
                progress=self.progress,
                weight_cache_bytes=self._weight_cache_bytes,
                compute=self.compute,
            )
            self._moments = None  # as large as the model, and not needed again
            self._prepared = bank, adapters.install(self.model, list(modules))
            searched = {id(t) for m in modules.values() for t in m.parameters()}
            # Buffers, such as rotary frequencies, lose what matters in fewer bits, and cost nothing in more.
            narrower = self.compute.itemsize < self.dtype.itemsize
            tensors = [*self.model.parameters(), *(() if narrower else self.model.buffers())]
            self._rest = [t for t in tensors if t.dtype == self.dtype and id(t) not in searched]
            self._stored = [t.data for t in self._rest] if narrower else None
            self._put_rest_in(self.compute)
        return self._prepared

    def estimate(self) -> dict[str, float]:
        """What a search will take, before anything is quantized; see `qra_eval.estimate`."""
        from qra_eval.estimate import estimate

        return estimate(self)

    # -- the contract --------------------------------------------------------------------------
    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        self._prepare()  # not part of any evaluation's time
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
        """The highest loss at which tuning may plausibly end; see `qra_eval.hopeless`."""
        if self._highest is None:
            self.unquantize()
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
            "model": self.loaded.name,
            "weights": self.loaded.fingerprint,
            "dtype": str(self.dtype).removeprefix("torch."),
            "task": self.task_config.name,
            "rows": self.rows.hash(calibration=self._trained_rows, validation=self.settings.validation_rows),
            "backend": self.backend.spec,
            "granularity": self.space_config.granularity,
            "training": {
                **self.settings.model_dump(exclude={"final_steps", "test_rows", *unnamed}),
                "init": self.settings.inits[0],
            },
        }

    # -- parts, also used by the final tuning ----------------------------------------------------
    def apply(self, plan: Plan, seed: int, *, materialised: bool | None = None, keep_adapters: bool = False) -> None:
        """Put a plan in place: bases from the bank, adapters as their initialisation gives them."""
        start = self.initialiser(self.init)
        fast = self.materialised if materialised is None else materialised
        for group, bits, rank in zip(self.space.groups, plan.bits, plan.ranks, strict=True):
            for linear in group.linears:
                wrapper = self.wrapped[linear.name]
                if fast:
                    wrapper.set_base(weight=start.weight(linear.name, bits, rank))
                else:
                    wrapper.set_base(module=start.module(linear.name, bits, rank))
                if keep_adapters:
                    continue
                if rank == 0:
                    wrapper.set_adapter(None, None, 0.0)
                    continue
                A, B = start.factors(linear.name, bits, rank, seed)
                scaling = self.settings.alpha / rank
                wrapper.set_adapter(A.to(self.device), B.to(self.device), scaling, self.settings.dropout)

    def initialiser(self, kind: str) -> Initialiser:
        """What gives bases and factors by one kind of initialisation; made at the first call.

        Making it may pass calibration rows through the unquantized model, so no plan is in place afterwards.
        """
        from qra_eval.calibration import input_moments

        if kind not in self._initialisers:
            components, hessians, max_rank = None, None, max(self.space.ranks)
            if kind == "eva" or (kind == "pissa" and self.backend.calibrated):
                self.unquantize()
                batches = training.bucketed(self.rows("calibration", CALIBRATION_ROWS), self.settings.batch_size)
                moments, means = input_moments(self.model, self.wrapped, batches, self.device)
                if kind == "eva":
                    components = input_components(moments, means, max_rank)
                else:
                    hessians = moments
            self._initialisers[kind] = Initialiser(
                kind, self.bank, self.backend, alpha=self.settings.alpha, max_rank=max_rank,
                components=components, hessians=hessians,
            )  # fmt: skip
        return self._initialisers[kind]

    def untuned_loss(self) -> float:
        """Validation loss of the model as it was loaded, neither quantized nor tuned; the first figure to be had."""
        if self._prepared is not None:
            self.unquantize()
            return self.held_out("validation", self.settings.validation_rows)
        with computed_in(self.model, self.compute):
            return self.held_out("validation", self.settings.validation_rows)

    def unquantize(self) -> None:
        """The model as it was loaded: no quantization, no adapters."""
        for name, wrapper in self.wrapped.items():
            wrapper.set_base(weight=self.bank.weight(name, UNQUANTIZED_BITS))
            wrapper.set_adapter(None, None, 0.0)

    @contextmanager
    def as_stored(self, plan: Plan) -> Iterator[Any]:
        """The model as a run's folder gives it: quantized modules, stored dtype; for as long as the context lasts."""
        self.apply(plan, 0, materialised=False, keep_adapters=True)
        self._put_rest_in(self.dtype)
        try:
            yield self.model
        finally:
            self._put_rest_in(self.compute)
            self.apply(plan, 0, keep_adapters=True)

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Passes in float32, each quantized weight widened as it is used; for as long as the context lasts."""
        self._prepare()
        self._put_rest_in(torch.float32)
        try:
            yield
        finally:
            self._put_rest_in(self.compute)

    def _put_rest_in(self, dtype: torch.dtype) -> None:
        """All that is not quantized, in a dtype; in its own again it has every digit that it had."""
        kept = self._stored if dtype == self.dtype else None
        for i, tensor in enumerate(self._rest):
            tensor.data = tensor.data.to(dtype) if kept is None else kept[i]

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
            adapters.trainable(self.wrapped),
            self.batches(steps, seed),
            learning_rate=self.settings.learning_rate,
            warmup=self.settings.warmup,
            seed=seed,
            device=self.device,
            progress=progress,
            hopeless=hopeless,
        )
        adapters.round_to(self.wrapped, ADAPTER_DTYPE)
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
        """Tune a plan in full and measure it on test data; see `qra_eval.finetune.tune`."""
        from qra_eval.finetune import tune

        return tune(self, plan, **options)

    def close(self) -> None:
        if self._prepared is not None:
            adapters.uninstall(self.model, self.wrapped)

    @property
    def bank_identity(self) -> str:
        """What the bank is made from: the weights, and for a calibrated backend the rows that it is calibrated on."""
        base = f"{self.loaded.fingerprint}-{self.dtype}"
        return f"{base}-{self.rows.hash(calibration=CALIBRATION_ROWS)}" if self.backend.calibrated else base

    def _hessian(self, name: str) -> Tensor:
        from qra_eval.calibration import Hessians

        if self._moments is None:
            batches = training.bucketed(self.rows("calibration", CALIBRATION_ROWS), self.settings.batch_size)
            self._moments = Hessians(self.model, self._linears, batches, self.device, compute=self.compute)
        return self._moments(name)
