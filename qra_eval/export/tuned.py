"""A tuning as exports need it: its plan, quantized base, adapter and logits, each read or computed once."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from qra_backends import make_backend
from safetensors.torch import load_file
from torch import Tensor, nn

from qra_eval.models.embeddings import find_quantized_embeddings, restore_embeddings
from qra_eval.models.linears import is_conv1d, is_stacked, keep_expert_names
from qra_eval.tuning import loading
from qra_search.app.tuning_folder import ADAPTER_FOLDER
from qra_search.space.memory import UNQUANTIZED_BITS

CHECK_SENTENCES = (
    "Question: A baker has 23 trays with 17 rolls each and sells 85 rolls. How many rolls are left? Answer: 306.",
    "The quick brown fox jumps over the lazy dog, and then it sleeps until the evening.",
)
MAX_TOKENS = 64
EXPORT_DEVICE = "cpu"
"""Device of exports: their files are written from host memory, and a GPU may be too small."""


class TunedRun:
    """The folder of a tuning, or of a run (that of its plan), and its model, which is loaded once.

    Attributes:
        plan: what `plan.json` holds.
        spec: the model, as `load_model` takes it.
        adapter_folder: None of a plan that is exported untuned.
        base: the model with quantized linears, without adapter, its tables dequantized.
        tables: quantized embeddings and head by path, or the one table of both by the embedding's.
        dtype: what the tuned model computes in.
        levels: the level of every searched linear, in the order of the plan; tables are left out.
        input_ids: token ids (1, n) of a few sentences.
        tuned_logits: logits of the tuned model on `input_ids`, float32, as `qra_eval.load` computes them.
    """

    def __init__(self, folder: str | Path):
        self.folder = loading.find_tuning(Path(folder))
        self.plan = loading.read_tuned_plan(self.folder)
        is_tuned = not self.plan.get(loading.UNTUNED_KEY)
        self.adapter_folder = loading.check_adapter(self.folder / ADAPTER_FOLDER) if is_tuned else None
        self.spec = str(self.plan["model"])
        self.dtype: torch.dtype = getattr(torch, self.plan["dtype"])
        self.backend = make_backend(self.plan["backend"])
        self.base, self.tokenizer = loading.load_base(self.folder, plan=self.plan, device=EXPORT_DEVICE)
        self.base.eval()
        self.config = copy.deepcopy(self.base.config)
        self.input_ids = [
            torch.tensor([self.tokenizer(text, add_special_tokens=False)["input_ids"][:MAX_TOKENS]])
            for text in CHECK_SENTENCES
        ]
        if self.adapter_folder is None:
            self.tuned_logits = self.compute_logits(self.base)
        else:  # with the adapter on the base, which is then taken off again
            keep_expert_names(self.base)
            with torch.random.fork_rng(devices=[]):  # peft draws the factors' first values
                tuned = add_adapter(self.base, self.adapter_folder)
            for name, parameter in tuned.named_parameters():
                if ".lora_" in name:
                    parameter.data = parameter.data.to(self.dtype)  # as the tuned model computes
            self.tuned_logits = self.compute_logits(tuned)
            self.base = tuned.unload()
        self.tables = find_quantized_embeddings(self.base)
        restore_embeddings(self.base)
        ends = (self.base.get_input_embeddings(), self.base.get_output_embeddings())
        self.levels = {
            name: level
            for name, level in loading.read_levels(self.plan).items()
            if self.base.get_submodule(name) not in ends
        }

    @property
    def quantized_linears(self) -> dict[str, nn.Module]:
        return {
            name: self.base.get_submodule(name)
            for name, level in self.levels.items()
            if level != UNQUANTIZED_BITS
        }

    def dequantize_weight(self, name: str) -> Tensor:
        """The weight that the base multiplies by, dequantized: (out, in), in the dtype that it computes in."""
        module = self.base.get_submodule(name)
        if self.levels.get(name, UNQUANTIZED_BITS) == UNQUANTIZED_BITS:
            return module.get_parameter("weight").detach()
        return self.backend.dequantize(module).detach()

    @cached_property
    def adapter_config(self) -> dict[str, Any]:
        """PEFT's config of the adapter: a linear of rank r computes base(x) + lora_alpha / r · B (A x)."""
        assert self.adapter_folder is not None, "nothing was tuned"
        config: dict[str, Any] = json.loads((self.adapter_folder / "adapter_config.json").read_text())
        return config

    @cached_property
    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The adapter's A (rank, in) and B (out, rank), as saved, by linear; none if nothing was tuned."""
        if self.adapter_folder is None:
            return {}
        tensors = load_file(self.adapter_folder / "adapter_model.safetensors")
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for key, A in tensors.items():
            if ".lora_A." in key:
                name = key.removeprefix("base_model.model.").partition(".lora_A.")[0]
                found[name] = A, tensors[key.replace(".lora_A.", ".lora_B.")]
        return found

    @torch.no_grad()
    def compute_logits(self, model: Any) -> list[Tensor]:
        model.eval()
        return [model(input_ids=ids, use_cache=False).logits.float() for ids in self.input_ids]

    def compare_logits(self, logits: Sequence[Tensor]) -> dict[str, Any]:
        """How logits (…, n, vocabulary) on `input_ids` differ from the tuned model's: the figures of `Exported`.

        The vocabulary of the two may be padded differently; the shorter counts.
        """
        sides = [torch.cat([each.flatten(0, -2) for each in side]) for side in (self.tuned_logits, logits)]
        shorter = min(side.shape[1] for side in sides)
        mine, theirs = (side[:, :shorter] for side in sides)
        gap = (mine - theirs).abs()
        return {
            "largest_logit_difference": float(gap.max()),
            "largest_logit": float(mine.abs().max()),
            "same_next_token": float((mine.argmax(-1) == theirs.argmax(-1)).float().mean()),
        }

    def build_skeleton(self) -> Any:
        """The model as transformers builds it, on the meta device."""
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.config, dtype=self.dtype)

    def build_merged_state(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The state of plain transformers' model, with its adapter added to the weights.

        Undoes `qra_eval.models.linears.normalize_linears`: Conv1D weights are transposed back, experts stacked again.
        """

        def merge(name: str) -> Tensor:
            weight = self.dequantize_weight(name).float()
            if name in self.factors:
                A, B = self.factors[name]
                weight = weight + self.adapter_config["lora_alpha"] / len(A) * (B.float() @ A.float())
            return weight.to(dtype)

        skeleton = self.build_skeleton()
        rest = self.base.state_dict()
        state: dict[str, Tensor] = {}
        for name, module in skeleton.named_modules():
            if is_stacked(module):
                experts = range(len(module.gate_up_proj))
                stacks = {
                    part: torch.stack([merge(f"{name}.{i}.{part}_proj") for i in experts])
                    for part in ("gate", "up", "down")
                }
                state[f"{name}.gate_up_proj"] = torch.cat([stacks["gate"], stacks["up"]], dim=1)
                state[f"{name}.down_proj"] = stacks["down"]
            elif is_conv1d(module):
                state[f"{name}.weight"] = merge(name).t().contiguous()
            elif name in self.levels:
                state[f"{name}.weight"] = merge(name)
        whole = {key: state[key] if key in state else rest[key].detach() for key in skeleton.state_dict()}
        return {key: value.to(dtype) if value.is_floating_point() else value for key, value in whole.items()}


def add_adapter(model: Any, folder: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False).eval()
