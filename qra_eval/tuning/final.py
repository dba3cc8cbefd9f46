"""The chosen plan, tuned in full: adapter, quantized base and plan saved, reloaded, and checked to compute the same."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from qra_eval.quantized import adapters
from qra_eval.quantized.space import ADAPTER_DTYPE
from qra_eval.quantized.tensorfile import open_tensors, write_tensors
from qra_search.evaluation.evaluator import EvaluationFailed
from qra_search.files import write_json
from qra_search.space.levels import LevelName
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.serialization import plan_to_dict
from qra_search.space.space import Plan

if TYPE_CHECKING:
    from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator

SCORED_ROWS = 64
"""Test rows that the task's own figures are of, at most."""
SHORT_ANSWER = 64
"""Tokens of the longest answer that is scored."""
CHECKED_TOKENS = 32
"""On which a reloaded model is compared, in the stored dtype, which may be emulated; each meets every weight."""
ADAPTER_FOLDER = "adapter"
BASE_FILE = "quantized.safetensors"
PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Tuned:
    """A plan after its full tuning.

    Attributes:
        test_loss: nats a labelled token on test rows that the search never saw.
        metrics: the task's own figures on the first `SCORED_ROWS` test rows, where its answers are short.
        memory_bytes: exact resident bytes.
        folder: where the adapter and the plan were saved; None where they were not.
        reload_difference: largest absolute difference of logits between the tuned model and the reloaded one.
        init: where the adapters started.
        init_losses: validation loss of a full evaluation from each start, where there was a choice.
    """

    plan: Plan
    seed: int
    steps: int
    test_loss: float
    memory_bytes: int
    seconds: float
    train_loss: float
    metrics: dict[str, float] = field(default_factory=dict)
    folder: str | None = None
    reload_difference: float | None = None
    init: str = "default"
    init_losses: dict[str, float] = field(default_factory=dict)


class ReloadMismatch(RuntimeError):
    """The saved adapter, reloaded, does not compute what the tuned model does."""


def tune(
    evaluator: QuantizedLoRAEvaluator,
    plan: Plan,
    *,
    seed: int = 0,
    steps: int | None = None,
    folder: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Tuned:
    """Tune a plan on the calibration split, measure it on the test split, and save it where a folder is given.

    Where the training settings name several initialisations, each is first tried in a full evaluation of the plan, and
    the one of least validation loss is taken.

    Args:
        steps: optimizer steps; default: the `final_steps` of the training settings.
        progress: told `("tune", done, total)`.

    Raises:
        ReloadMismatch: what was saved does not load back to the same logits.
    """
    start = time.perf_counter()
    settings = evaluator.settings
    steps = settings.final_steps if steps is None else steps
    usual, init_losses = evaluator.init, try_inits(evaluator, plan, seed, progress)
    init = min(init_losses, key=init_losses.__getitem__) if init_losses else usual
    told = None if progress is None else (lambda done, total, loss: progress("tune", done, total))
    saved, difference = None, None
    evaluator.init = init
    try:
        evaluator.apply(plan, seed)
        trained = evaluator.train(steps, seed, told)
        loss = evaluator.held_out("test", settings.test_rows)
        metrics = score(evaluator, min(settings.test_rows, SCORED_ROWS))
        if folder is not None:
            saved = str(folder)
            save(evaluator, plan, folder)
            difference = check_reload(evaluator, plan, folder)
    finally:
        evaluator.init = usual
    return Tuned(
        plan=plan,
        seed=seed,
        steps=steps,
        test_loss=loss,
        memory_bytes=evaluator.space.memory_bytes(plan),
        seconds=time.perf_counter() - start,
        train_loss=trained.loss,
        metrics=metrics,
        folder=saved,
        reload_difference=difference,
        init=init,
        init_losses=init_losses,
    )


def try_inits(
    evaluator: QuantizedLoRAEvaluator,
    plan: Plan,
    seed: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, float]:
    """Validation loss of a full evaluation of a plan from each initialisation of the settings, inf where it failed;
    empty where there is only one."""
    inits = evaluator.settings.inits
    if len(inits) == 1:
        return {}
    losses: dict[str, float] = {}
    usual = evaluator.init
    try:
        for done, init in enumerate(inits):
            evaluator.init = init
            try:
                losses[init] = evaluator.evaluate(plan, seed=seed).loss
            except EvaluationFailed:
                losses[init] = math.inf
            if progress is not None:
                progress("try initialisations", done + 1, len(inits))
    finally:
        evaluator.init = usual
    return losses


def score(evaluator: QuantizedLoRAEvaluator, rows: int) -> dict[str, float]:
    """The task's own figures on the first test rows, for the plan and adapters in place; empty where answers are long.

    An answer is written token by token, each as dear as a row's whole loss: scoring long ones takes longer than tuning.
    """
    longest = max(int((row.labels >= 0).sum()) for row in evaluator.rows("test", rows))
    if longest > SHORT_ANSWER:
        return {}
    settings = evaluator.settings
    return evaluator.task.metrics(
        evaluator.model, evaluator.tokenizer, evaluator.task.split("test")[:rows], batch_size=4 * settings.batch_size,
        max_length=settings.max_length + SHORT_ANSWER,
    )  # fmt: skip


def save(evaluator: QuantizedLoRAEvaluator, plan: Plan, folder: str | Path) -> None:
    """Write `adapter/` (an ordinary PEFT directory), `quantized.safetensors` (its base's searched weights) and
    `plan.json` (how the two go together)."""
    folder, quantized = Path(folder), evaluator.quantized
    start = quantized.initialiser(evaluator.init)
    write_adapter(evaluator, plan, folder / ADAPTER_FOLDER)
    tensors = {
        f"{linear.name}::{key}": tensor.cpu()
        for group, bits, rank in zip(evaluator.space.groups, plan.bits, plan.ranks, strict=True)
        for linear in group.linears
        for key, tensor in _base_tensors(evaluator, start.module(linear.name, bits, rank), linear.name, bits).items()
    }
    write_tensors(tensors, folder / BASE_FILE)
    data = plan_to_dict(evaluator.space, plan)
    data["model"] = quantized.loaded.spec
    data["weights"] = quantized.loaded.fingerprint
    data["dtype"] = str(quantized.dtype).removeprefix("torch.")
    data["embeddings"] = quantized.quantization.embeddings
    data["backend"] = quantized.backend.spec
    data["init"] = evaluator.init
    write_json(folder / PLAN_FILE, data)


def write_adapter(evaluator: QuantizedLoRAEvaluator, plan: Plan, folder: Path) -> None:
    """Write the adapters as a PEFT directory: config with a rank for each linear, and bfloat16 factors."""
    from peft import LoraConfig

    folder.mkdir(parents=True, exist_ok=True)
    ranks = {
        linear.name: rank
        for group, rank in zip(evaluator.space.groups, plan.ranks, strict=True)
        for linear in group.linears
        if rank > 0
    }
    if not ranks:
        raise ValueError("the plan has rank 0 everywhere: there is no adapter to save")
    alpha = evaluator.settings.alpha
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    # peft matches a pattern's key against the end of a linear's name: full names, escaped, match one linear each.
    others = {re.escape(name): rank for name, rank in ranks.items() if rank != common}
    config = LoraConfig(
        r=common,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=sorted(ranks),
        rank_pattern=others,
        lora_dropout=evaluator.settings.dropout,
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=evaluator.quantized.loaded.spec,
    )
    config.save_pretrained(str(folder))
    state = adapters.state(evaluator.quantized.wrapped, ADAPTER_DTYPE)
    tensors = {f"base_model.model.{name}": tensor.cpu() for name, tensor in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def load(folder: str | Path, *, device: str = "cpu") -> Any:
    """The tuned model of a run's folder: (peft model, tokenizer), on its quantized base.

    Raises:
        ValueError: no plan or adapter there, a damaged file, or the model's weights are not those that the plan was
            made for.
    """
    from peft import PeftModel

    from qra_eval.models.linears import named_as_it_is

    folder = Path(folder)
    model, tokenizer = load_base(folder, device=device)
    with named_as_it_is(model):
        tuned = PeftModel.from_pretrained(model, str(folder / ADAPTER_FOLDER), autocast_adapter_dtype=False)
    # The factors are saved in bfloat16, or made float32 by peft on a base whose codes are integers: peft would compute
    # in their dtype, and the tuned model did in its own.
    dtype = getattr(torch, json.loads((folder / PLAN_FILE).read_text())["dtype"])
    for name, parameter in tuned.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(dtype)
    tuned.eval()
    return tuned, tokenizer


def load_base(folder: str | Path, *, device: str = "cpu") -> tuple[Any, Any]:
    """The quantized base of a tuned run, and its tokenizer; raises as `load` does."""
    from qra_backends import make_backend

    from qra_eval.models.load import find_linears, load_model

    folder = Path(folder)
    missing = [name for name in (PLAN_FILE, BASE_FILE, ADAPTER_FOLDER) if not (folder / name).exists()]
    if missing:
        raise ValueError(f"{folder} holds no tuned plan, it lacks {', '.join(missing)}: run `qra finetune` on it first")
    data = json.loads((folder / PLAN_FILE).read_text())
    dtype = getattr(torch, data["dtype"])
    loaded = load_model(data["model"], dtype=dtype, device=device, embeddings=data.get("embeddings", 16))
    if loaded.fingerprint != data["weights"]:
        raise ValueError(
            f"the plan was made for weights {data['weights']}, {data['model']} now has {loaded.fingerprint}"
        )
    backend = make_backend(data["backend"])
    chosen = {name: group["bits"] for group in data["groups"] for name in group["linears"]}
    model: Any = loaded.model
    file = open_tensors(folder / BASE_FILE, device=device)
    keys: dict[str, list[str]] = {}
    for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
        keys.setdefault(key.rpartition("::")[0], []).append(key)
    for found in find_linears(model):
        bits = chosen[found.name]
        if bits == UNQUANTIZED_BITS:
            if found.name in keys:
                found.module.weight.data = file.get_tensor(f"{found.name}::weight")
            continue
        module = backend.from_tensors(
            {key.rpartition("::")[2]: file.get_tensor(key) for key in keys[found.name]},
            bits=bits,
            out_features=found.out_features,
            in_features=found.in_features,
            bias=found.module.bias,
            dtype=found.module.weight.dtype,
        )
        model.set_submodule(found.name, module)
    model.requires_grad_(False)
    return model, loaded.tokenizer


@torch.no_grad()
def check_reload(evaluator: QuantizedLoRAEvaluator, plan: Plan, folder: str | Path) -> float:
    """Largest absolute difference of logits between the tuned model and the one that `load` gives."""
    row = evaluator.rows("test", 1)[0].input_ids[:CHECKED_TOKENS].unsqueeze(0)
    with evaluator.quantized.as_stored(plan, evaluator.init) as model:
        model.eval()
        mine = model(input_ids=row.to(evaluator.device), use_cache=False).logits.float().cpu()
    reloaded, _ = load(folder, device=str(evaluator.device))
    # The same kernel on both sides: what is compared is weights and adapters, not the rounding of attention.
    reloaded.get_base_model().set_attn_implementation(evaluator.model.config._attn_implementation)
    theirs = reloaded(input_ids=row.to(evaluator.device), use_cache=False).logits.float().cpu()
    difference = float((mine - theirs).abs().max())
    if difference > 0:
        raise ReloadMismatch(f"the reloaded adapter's logits differ by up to {difference} from the tuned model's")
    return difference


def _base_tensors(
    evaluator: QuantizedLoRAEvaluator, module: torch.nn.Module, name: str, bits: LevelName
) -> dict[str, torch.Tensor]:
    """What a linear's base adds to the run's folder; nothing where it is the model's own weight."""
    if bits != UNQUANTIZED_BITS:
        return evaluator.quantized.backend.to_tensors(module)
    if module is evaluator.quantized.bank.linears[name]:
        return {}
    assert isinstance(module, torch.nn.Linear)
    return {"weight": module.weight.detach()}
