"""The chosen plan, tuned in full, measured on test data, and saved."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qra_eval.quantized import adapters
from qra_eval.quantized.bank import write_tensors
from qra_eval.quantized.space import ADAPTER_DTYPE, list_plan_levels
from qra_eval.tasks.batches import Batch, measure_row_losses
from qra_eval.tasks.example import Example
from qra_eval.tuning.fine_tuner import FineTuner, convert_out_of_memory
from qra_eval.tuning.loading import BASE_DIGEST, NO_BASE_MODEL, UNTUNED_KEY
from qra_eval.tuning.training import Diverged, FullTuning
from qra_search.app.evaluator import StepFigures
from qra_search.app.tuning_folder import ADAPTER_FOLDER, BASE_FILE
from qra_search.evaluator import Progress
from qra_search.files import write_json
from qra_search.schemas import Plan, TuningRecord
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.serialization import PLAN_NAME, plan_to_dict

log = logging.getLogger(__name__)

SAMPLE_TOKENS = 64
"""Tokens of a sample answer, at most."""


def tune(
    tuner: FineTuner,
    plan: Plan,
    *,
    seed: int = 0,
    steps: int | None = None,
    folder: Path | None = None,
    on_step: Callable[[int, StepFigures], None] | None = None,
    progress: Progress | None = None,
) -> TuningRecord:
    """Tune a plan on the training split, measure it on the test split, and save it if a folder is given.

    An interrupted tuning is resumed from the checkpoint in its folder. Arguments and errors are those of
    `Evaluator.tune`; `progress` is called with `("tune", done, total)`, where the name says if it was resumed.
    """
    start = time.perf_counter()
    finetune = tuner.finetune
    steps = tuner.finetune_steps if steps is None else steps
    size = tuner.space.find_space(plan).memory_bytes(plan)
    batches = tuner.get_final_batches(steps, seed)
    rows = tuner.evaluation.validation_rows
    task = tuner.rows.task
    samples = select_samples(tuner, finetune.sample_answers if folder is not None else 0)
    room = min(SAMPLE_TOKENS, tuner.count_answer_tokens(samples))
    most = tuner.compute_max_length(room)

    def validate() -> float:
        loss = tuner.measure_loss("validation", rows)
        tuner.model.train()
        return loss

    def answer_samples() -> list[str]:
        if not samples:
            return []
        return task.answer_examples(tuner.model, tuner.tokenizer, samples, room, max_length=most)

    def work() -> TuningRecord:
        tuner.switcher.put_plan(plan, seed)
        before = answer_samples()
        identity = _make_identity(tuner, plan, seed, steps, batches)

        def finish_step(step: int, figures: StepFigures) -> None:
            if on_step is not None:
                on_step(step, figures)
            if progress is not None:
                resumed = f", resumed after step {full.resumed_after}" if full.resumed_after else ""
                progress(f"tune{resumed}", step, steps)

        full = FullTuning(finetune, validate, identity, folder, finish_step)
        with full.save_on_interrupt():
            tuner.train(steps, seed, callback=full, batches=batches)
        nats, tokens = _measure_test_rows(tuner)
        if not math.isfinite(sum(nats)):
            raise Diverged(f"the test loss is {sum(nats)} after step {steps}: lower the learning rate")
        validation_loss = tuner.measure_loss("validation", rows)
        after = answer_samples()
        scores: Any = tuner.score_rows("test", tuner.scored_rows)
        if folder is not None:
            save_tuning(tuner, plan, folder)
        seconds = time.perf_counter() - start + full.earlier_seconds
        shown = []
        for example, old, new in zip(samples, before, after, strict=True):
            prompt = task.make_prompt(example, tuner.tokenizer)
            shown.append({"prompt": prompt, "wanted": example.answer, "before": old, "after": new})
        figures: dict[str, Any] = {
            "validation_loss": validation_loss,
            "commonest_scores": task.score_commonest(task.split("test")[: tuner.scored_rows]),
            "metric_digests": task.metric_digests,
        }
        return TuningRecord(plan, seed, steps, size, seconds, nats, tokens, scores, tuple(shown), **figures)

    try:
        return convert_out_of_memory(tuner, work)
    except Diverged as error:
        return TuningRecord(plan, seed, steps, size, time.perf_counter() - start, failed=f"diverged: {error}")


def measure_untuned(tuner: FineTuner) -> TuningRecord | None:
    """The model as it was loaded, measured on the test split as what is tuned is.

    The task's own figures only if weights are kept ready: else layers are on the device in turn, for every token.
    """
    start = time.perf_counter()
    space = tuner.space.unquantized
    plan = space.uniform(UNQUANTIZED_BITS, 0)
    if plan is None:
        return None

    def work() -> TuningRecord:
        with tuner.switcher.use_unquantized():
            nats, tokens = _measure_test_rows(tuner)
            keeps_weights = tuner.quantized_model.keeps_dequantized
            scores: Any = tuner.score_rows("test", tuner.scored_rows) if keeps_weights else {}
        unscored = ""
        if tuner.finetune.scored_rows and tuner.rows.task.judged_by and not scores:
            unscored = "answers of the untuned model are not scored: its weights do not fit into memory"
            log.warning(unscored)
        seconds = time.perf_counter() - start
        size = space.memory_bytes(plan)
        return TuningRecord(plan, 0, 0, size, seconds, nats, tokens, scores, unscored=unscored)

    return convert_out_of_memory(tuner, work)


def _make_identity(
    tuner: FineTuner, plan: Plan, seed: int, steps: int, batches: Sequence[Batch]
) -> dict[str, Any]:
    """What a tuning follows from: a checkpoint with another identity is of another tuning."""
    finetune = tuner.finetune
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(batch.input_ids.numpy().tobytes() + batch.positions.numpy().tobytes())
    return {
        **tuner.describe(),
        "plan": plan.to_dict(),
        "seed": seed,
        "steps": steps,
        "batches": digest.hexdigest(),
        "evaluate_every": finetune.evaluate_every,
    }


def _measure_test_rows(tuner: FineTuner) -> tuple[Any, Any]:
    rows = tuner.rows("test", tuner.finetune.test_rows)
    return measure_row_losses(tuner.model, rows, 2 * tuner.settings.batch_size, tuner.device)


def select_samples(tuner: FineTuner, count: int) -> list[Example]:
    """So many test rows, no two with one wanted answer."""
    rows = [row for row in tuner.rows.task.split("test")[: tuner.finetune.test_rows] if row.prompt.strip()]
    rows = list({row.answer: row for row in reversed(rows)}.values())[::-1]
    shown = min(count, len(rows))
    return [rows[i * len(rows) // shown] for i in range(shown)]


# -- what is saved -----------------------------------------------------------------------------
def save_tuning(tuner: FineTuner, plan: Plan, folder: Path, *, is_tuned: bool = True) -> None:
    """Write the quantized base of a plan in place and its `plan.json`, and if it is tuned its adapter.

    Tensors of the base are `NAME::TENSOR`: those of the bank, but for the scales and offsets that training left.
    """
    quantized, switcher, space = tuner.quantized_model, tuner.switcher, tuner.space.find_space(plan)
    tensors: dict[str, Tensor] = {}
    for name, bits in list_plan_levels(space, plan):
        if bits == UNQUANTIZED_BITS:
            continue
        stored = quantized.bank.load_tensors(name, bits)
        if is_tuned and name in switcher.trained_scales:
            stored = {**stored, **quantized.backend.to_tensors(switcher.get_base_module(name, bits))}
        tensors |= {f"{name}::{key}": tensor.cpu().contiguous() for key, tensor in stored.items()}
    write_tensors(tensors, folder / BASE_FILE)
    digest = hash_tensors(tensors)
    if is_tuned and any(plan.ranks):
        write_adapter(tuner, plan, folder / ADAPTER_FOLDER, base=digest)
    made_of = {
        "model": quantized.loaded.spec,
        "weights": quantized.loaded.fingerprint,
        "dtype": str(quantized.dtype).removeprefix("torch."),
        "backend": quantized.backend.spec,
        BASE_DIGEST: digest,
    }
    untuned = {} if is_tuned else {UNTUNED_KEY: True}
    write_json(folder / PLAN_NAME, {**plan_to_dict(space, plan), **made_of, **untuned})


def write_base(tuner: FineTuner, plan: Plan, folder: Path) -> None:
    """Write the quantized base of an untuned plan, and its `plan.json`."""
    tuner.switcher.quantize_plan(plan)
    save_tuning(tuner, plan, folder, is_tuned=False)


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """A digest of names, dtypes, shapes and values; in memory is one tensor at a time."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_adapter(tuner: FineTuner, plan: Plan, folder: Path, *, base: str) -> None:
    """Write the adapters as a PEFT directory: config with a rank for each linear and the base's digest, and bfloat16
    factors.

    In place of the model's name the config has `NO_BASE_MODEL`: PEFT alone would put the adapter on the unquantized
    model, for which it was not tuned, and without any name it would ask the hub, in vain.
    """
    from peft import LoraConfig

    folder.mkdir(parents=True, exist_ok=True)
    ranks = {
        linear.name: rank
        for group, rank in zip(tuner.space.groups, plan.ranks, strict=True)
        for linear in group.linears
        if rank > 0
    }
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    # peft matches a pattern's key against the end of a linear's name: full names, escaped, match one linear each.
    others = {re.escape(name): rank for name, rank in ranks.items() if rank != common}
    config = LoraConfig(
        r=common,
        lora_alpha=tuner.settings.alpha,  # type: ignore[arg-type]
        target_modules=sorted(ranks),
        rank_pattern=others,
        lora_dropout=tuner.settings.dropout,
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=NO_BASE_MODEL,
        auto_mapping={BASE_DIGEST: base},
    )
    config.save_pretrained(str(folder))
    state = adapters.cast_factors(tuner.switcher.wrapped, ADAPTER_DTYPE)
    tensors = {f"base_model.model.{name}": tensor for name, tensor in state.items()}
    write_tensors(tensors, folder / "adapter_model.safetensors")
