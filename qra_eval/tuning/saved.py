"""A tuned plan kept in a folder: an ordinary PEFT adapter, its quantized base, and the plan; checked to load back."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from qra_eval.quantized import adapters
from qra_eval.quantized.space import ADAPTER_DTYPE
from qra_eval.quantized.switcher import PlanSwitcher
from qra_eval.quantized.tensorfile import write_tensors
from qra_eval.tuning.fine_tuner import FineTuner
from qra_eval.tuning.loading import ADAPTER_FOLDER, BASE_DIGEST, BASE_FILE, NO_ADDRESS, PLAN_FILE, load
from qra_search.errors import BadInput
from qra_search.evaluation.evaluator import NO_ADAPTER
from qra_search.files import digest_file, write_json
from qra_search.space.levels import LevelName
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.serialization import plan_to_dict
from qra_search.space.space import Plan

CHECKED_TOKENS = 32
"""On which a reloaded model is compared, in the stored dtype, which may be emulated; each meets every weight."""
ROUNDING = 0.05
"""Largest difference of logits that counts as rounding on a GPU, as a share of their deviation; another weight or
adapter makes more than that."""
ADAPTER_README = "README.md"
README = """---
library_name: peft
tags: [lora, qra]
---
An adapter for the quantized base, not for the model that this was made from. It has no address: only `qra_eval.load`
on the folder above this one makes it, which `adapter_config.json` says in place of one. `qra export` writes base and
adapter for other tools.
"""


class ReloadMismatch(RuntimeError):
    """The saved adapter, reloaded, does not compute what the tuned model does."""


def save(tuner: FineTuner, plan: Plan, folder: str | Path) -> None:
    """Write `adapter/` (an ordinary PEFT directory), `quantized.safetensors` (its base's searched weights) and
    `plan.json` (how the two go together)."""
    folder, quantized = Path(folder), tuner.quantized
    tensors = {
        f"{linear.name}::{key}": tensor
        for group, bits in zip(tuner.space.groups, plan.bits, strict=True)
        for linear in group.linears
        for key, tensor in _base_tensors(tuner.switcher, linear.name, bits).items()
    }
    write_tensors(tensors, folder / BASE_FILE)
    digest = digest_file(folder / BASE_FILE).read_text().split()[0]
    write_adapter(tuner, plan, folder / ADAPTER_FOLDER, base=digest)
    data = plan_to_dict(tuner.space, plan)
    data["model"] = quantized.loaded.spec
    data["weights"] = quantized.loaded.fingerprint
    data["dtype"] = str(quantized.dtype).removeprefix("torch.")
    data["backend"] = quantized.backend.spec
    data[BASE_DIGEST] = digest
    write_json(folder / PLAN_FILE, data)


def write_adapter(tuner: FineTuner, plan: Plan, folder: Path, *, base: str) -> None:
    """Write the adapters as a PEFT directory: config with a rank for each linear, and bfloat16 factors.

    The config names the model, if others can find it: a folder, or a model of the hub. For a name of this project, or
    none, PEFT would ask the hub, in vain and for half a minute where there is no network.

    Args:
        base: digest of the quantized base.
    """
    from peft import LoraConfig

    folder.mkdir(parents=True, exist_ok=True)
    ranks = {
        linear.name: rank
        for group, rank in zip(tuner.space.groups, plan.ranks, strict=True)
        for linear in group.linears
        if rank > 0
    }
    if not ranks:
        raise BadInput(NO_ADAPTER)
    alpha = tuner.settings.alpha
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    # peft matches a pattern's key against the end of a linear's name: full names, escaped, match one linear each.
    others = {re.escape(name): rank for name, rank in ranks.items() if rank != common}
    config = LoraConfig(
        r=common,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=sorted(ranks),
        rank_pattern=others,
        lora_dropout=tuner.settings.dropout,
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=NO_ADDRESS,
        auto_mapping={BASE_DIGEST: base},
    )
    config.save_pretrained(str(folder))
    (folder / ADAPTER_README).write_text(README)
    state = adapters.state(tuner.switcher.wrapped, ADAPTER_DTYPE)
    tensors = {f"base_model.model.{name}": tensor for name, tensor in state.items()}
    write_tensors(tensors, folder / "adapter_model.safetensors")


@torch.no_grad()
def check_reload(tuner: FineTuner, plan: Plan, folder: str | Path) -> float:
    """Largest absolute difference of logits between the tuned model and the one that `load` gives.

    The tuned model is let go, but for its adapters, before the other is loaded: a card that just holds one would not
    hold both.

    Raises:
        ReloadMismatch: they differ; on a GPU, whose products are summed in no fixed order, by more than rounding.
    """
    row = tuner.rows("test", 1)[0].input_ids[:CHECKED_TOKENS].unsqueeze(0)
    with tuner.switcher.as_stored(plan) as model:
        model.eval()
        mine = model(input_ids=row.to(tuner.device), use_cache=False).logits.float().cpu()
    with tuner.switcher.released():
        devices = ",".join(dict.fromkeys(map(str, [tuner.device, *tuner.quantized.blocks.devices])))
        loaded = tuner.quantized.loaded
        given = {} if loaded.source is None else {"model": loaded.source, "tokenizer": loaded.tokenizer}
        reloaded, _ = load(folder, device=devices, trust_remote_code=loaded.trust_remote_code, **given)
        # The same kernel on both sides: what is compared is weights and adapters, not the rounding of attention.
        reloaded.get_base_model().set_attn_implementation(tuner.model.config._attn_implementation)
        theirs = reloaded(input_ids=row.to(tuner.device), use_cache=False).logits.float().cpu()
        del reloaded
    difference = float((mine - theirs).abs().max())
    if not difference <= (0.0 if tuner.device.type == "cpu" else ROUNDING * float(mine.std())):
        raise ReloadMismatch(f"the reloaded adapter's logits differ by up to {difference} from the tuned model's")
    return difference


def _base_tensors(switcher: PlanSwitcher, name: str, bits: LevelName) -> dict[str, torch.Tensor]:
    """What a linear's base adds to the run's folder; nothing if it is the model's own weight."""
    if name in switcher.wrapped and switcher.wrapped[name].groups is not None:
        return switcher.quantized.backend.to_tensors(switcher.base_module(name, bits))
    return {} if bits == UNQUANTIZED_BITS else switcher.quantized.bank.tensors(name, bits)
