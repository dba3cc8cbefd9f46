"""A tuned plan kept in a folder: an ordinary PEFT adapter, its quantized base, and the plan; checked to load back."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from qra_eval.quantized import adapters
from qra_eval.quantized.bank import Bank
from qra_eval.quantized.space import ADAPTER_DTYPE
from qra_eval.quantized.tensorfile import write_tensors
from qra_eval.tuning.fine_tuner import FineTuner
from qra_eval.tuning.loading import BASE_DIGEST, NO_ADDRESS, load
from qra_search.app.tuning_folder import ADAPTER_FOLDER, BASE_FILE
from qra_search.errors import RunFailed
from qra_search.files import write_json
from qra_search.schemas import Plan
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.serialization import PLAN_NAME, plan_to_dict, read_plan_file
from qra_search.space.space import SearchSpace

CHECKED_TOKENS = 32
"""Tokens on which a reloaded model is compared with the tuned one, in the stored dtype."""
ROUNDING = 0.05
"""Largest difference of logits that counts as rounding on a GPU, as a share of their deviation; another weight or
adapter makes more than that."""
SCALES_FILE = "scales.safetensors"
"""What training changed of a base that is not saved."""


class ReloadMismatch(RuntimeError):
    """The saved adapter, reloaded, does not compute what the tuned model does."""


def save(tuner: FineTuner, plan: Plan, folder: Path, *, base: bool = True) -> None:
    """Write adapter and plan into a folder, and the quantized base that the adapter belongs on.

    Without `base` only what training changed of it is written; `write_base` makes it again from the bank.
    """
    quantized = tuner.quantized_model
    space = tuner.space.find_space(plan)
    tensors = _collect_base_tensors(tuner, plan)
    folder.mkdir(parents=True, exist_ok=True)
    if base:
        write_tensors(tensors, folder / BASE_FILE)
    else:
        stored = read_bank_tensors(quantized.bank, space, plan)
        changed = {name: t for name, t in tensors.items() if not torch.equal(t.cpu(), stored[name].cpu())}
        if changed:
            write_tensors(changed, folder / SCALES_FILE)
    digest = hash_tensors(tensors)
    if any(plan.ranks):
        write_adapter(tuner, plan, folder / ADAPTER_FOLDER, base=digest)
    made_of = {
        "model": quantized.loaded.spec,
        "weights": quantized.loaded.fingerprint,
        "dtype": str(quantized.dtype).removeprefix("torch."),
        "backend": quantized.backend.spec,
        BASE_DIGEST: digest,
    }
    write_json(folder / PLAN_NAME, plan_to_dict(space, plan) | made_of)


def write_base(tuner: FineTuner, plan: Plan, folder: Path) -> None:
    """Write the quantized base of a tuning that was saved without it, from the bank and what training changed."""
    tuner.switcher.prepare()
    tensors = read_bank_tensors(tuner.quantized_model.bank, tuner.space.find_space(plan), plan)
    if (folder / SCALES_FILE).is_file():
        tensors |= load_file(folder / SCALES_FILE)
    if hash_tensors(tensors) != read_plan_file(folder).get(BASE_DIGEST):
        raise RunFailed(f"weights differ from those that {folder} was tuned on: delete it, and tune again")
    write_tensors(tensors, folder / BASE_FILE)


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """A digest of names, dtypes, shapes and values; in memory is one tensor at a time."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_bank_tensors(bank: Bank, space: SearchSpace, plan: Plan) -> dict[str, Tensor]:
    """What the bank has of a plan's linears and tables, each as `NAME::TENSOR`."""
    return {
        f"{linear.name}::{key}": tensor.contiguous()
        for group, bits in zip(space.groups, plan.bits, strict=True)
        for linear in group.linears
        if bits != UNQUANTIZED_BITS
        for key, tensor in bank.load_tensors(linear.name, bits).items()
    }


def _collect_base_tensors(tuner: FineTuner, plan: Plan) -> dict[str, Tensor]:
    """The same with the scales and offsets that training left."""
    switcher, backend = tuner.switcher, tuner.quantized_model.backend
    tensors = read_bank_tensors(tuner.quantized_model.bank, tuner.space.find_space(plan), plan)
    for group, bits in zip(tuner.space.groups, plan.bits, strict=True):
        for linear in group.linears:
            if linear.name in switcher.trained_groups:
                trained = backend.to_tensors(switcher.get_base_module(linear.name, bits))
                tensors |= {
                    f"{linear.name}::{key}": tensor.cpu().contiguous() for key, tensor in trained.items()
                }
    return tensors


def write_adapter(tuner: FineTuner, plan: Plan, folder: Path, *, base: str) -> None:
    """Write the adapters as a PEFT directory: config with a rank for each linear and the base's digest, and bfloat16
    factors.

    In place of the model's name the config has `NO_ADDRESS`: PEFT alone would put the adapter on the unquantized model,
    for which it was not tuned, and without any name it would ask the hub, in vain.
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
        base_model_name_or_path=NO_ADDRESS,
        auto_mapping={BASE_DIGEST: base},
    )
    config.save_pretrained(str(folder))
    state = adapters.cast_factors(tuner.switcher.wrapped, ADAPTER_DTYPE)
    tensors = {f"base_model.model.{name}": tensor for name, tensor in state.items()}
    write_tensors(tensors, folder / "adapter_model.safetensors")


@torch.no_grad()
def check_reload(tuner: FineTuner, plan: Plan, folder: str | Path) -> float:
    """Largest absolute difference of logits between the tuned model and the one that `load` gives.

    The tuned model is let go, but for its adapters, before the other is loaded: a card that just holds one would not
    hold both. Raises ReloadMismatch if they differ; on a GPU, whose products are summed in no fixed order, by more than
    rounding.
    """
    row = tuner.rows("test", 1)[0].input_ids[:CHECKED_TOKENS].unsqueeze(0)
    with tuner.switcher.use_stored_form(plan) as model:
        model.eval()
        mine = model(input_ids=row.to(tuner.device), use_cache=False).logits.float().cpu()
    with tuner.switcher.release_model():
        devices = ",".join(dict.fromkeys(map(str, [tuner.device, *tuner.quantized_model.blocks.devices])))
        loaded = tuner.quantized_model.loaded
        given = {} if loaded.source is None else {"model": loaded.source, "tokenizer": loaded.tokenizer}
        reloaded, _ = load(folder, device=devices, trust_remote_code=loaded.trust_remote_code, **given)
        # The same kernel on both sides: what is compared is weights and adapters, not the rounding of attention.
        reloaded.get_base_model().set_attn_implementation(tuner.model.config._attn_implementation)
        theirs = reloaded(input_ids=row.to(tuner.device), use_cache=False).logits.float().cpu()
        del reloaded
    difference = float((mine - theirs).abs().max())
    if not difference <= (0.0 if tuner.device.type == "cpu" else ROUNDING * float(mine.std())):
        raise ReloadMismatch(f"the reloaded adapter's logits differ by up to {difference} from those tuned")
    return difference
