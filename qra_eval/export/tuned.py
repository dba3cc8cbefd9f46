"""A tuning as exports need it: its quantized base, dequantized weights, adapter and live logits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from qra_backends import make_backend
from safetensors.torch import load_file
from torch import Tensor, nn

from qra_eval.models.embeddings import find_quantized_tables, uninstall_tables
from qra_eval.models.experts import is_stacked
from qra_eval.models.linears import is_conv1d
from qra_eval.tuning import loading
from qra_search.app.folder import is_code_trusted
from qra_search.app.tuning_folder import ADAPTER_FOLDER
from qra_search.space.memory import UNQUANTIZED_BITS

SENTENCES = (
    "Question: A baker has 23 trays with 17 rolls each and sells 85 rolls. How many rolls are left? Answer: 306.",
    "The quick brown fox jumps over the lazy dog, and then it sleeps until the evening.",
)
MOST_TOKENS = 64
DEVICE = "cpu"
"""Device of exports: their files are written from host memory, and a GPU may be too small."""


class TunedRun:
    """A tuning's folder and its model.

    Args:
        folder: of a tuning, or of a run: that of its plan.
        model, tokenizer: in memory, if the run was made with these.

    Attributes:
        plan: what `plan.json` holds.
        spec: the model, as `load_model` takes it.
        trusted: whether code that comes with the model is run.
        base: the model with quantized linears, without adapter, its tables dequantized.
        tables: quantized embeddings and head by path, or the one table of both by the embedding's.
        config: the model's configuration.
        dtype: what the tuned model computes in.
        levels: the level of every searched linear, in the order of the plan; tables are left out.

    Raises:
        BadInput: there is no tuned plan in the folder, or a file of it is damaged.
    """

    def __init__(self, folder: str | Path, *, model: Any = None, tokenizer: Any = None):
        self.folder = loading.find_tuning(Path(folder))
        self.trusted = is_code_trusted(self.folder)
        self.plan = loading.read_tuned_plan(self.folder)
        self.adapter_folder = loading.check_adapter(self.folder / ADAPTER_FOLDER)
        self.spec, self.dtype = str(self.plan["model"]), getattr(torch, self.plan["dtype"])
        self.backend = make_backend(self.plan["backend"])
        self._options: Any = {
            "device": DEVICE,
            "trust_remote_code": self.trusted,
            "model": model,
            "tokenizer": tokenizer,
        }
        self.base, self.tokenizer = loading.load_base(self.folder, **self._options)
        self.config, self.tables = self.base.config, find_quantized_tables(self.base)
        uninstall_tables(self.base)
        self.base.eval()
        ends = (self.base.get_input_embeddings(), self.base.get_output_embeddings())
        levels = loading.read_levels(self.plan)
        self.levels = {
            name: level for name, level in levels.items() if self.base.get_submodule(name) not in ends
        }

    # -- the parts -----------------------------------------------------------------------------
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
    def alpha(self) -> float:
        """The adapter's: a linear of rank r computes base(x) + alpha / r · B (A x)."""
        return float(json.loads((self.adapter_folder / "adapter_config.json").read_text())["lora_alpha"])

    @cached_property
    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The adapter's A (rank, in) and B (out, rank), as saved, by linear."""
        tensors = load_file(self.adapter_folder / "adapter_model.safetensors")
        return {
            key.removeprefix("base_model.model.").partition(".lora_A.")[0]: (
                A,
                tensors[key.replace(".lora_A.", ".lora_B.")],
            )
            for key, A in tensors.items()
            if ".lora_A." in key
        }

    @property
    def largest_rank(self) -> int:
        return max(len(A) for A, _ in self.factors.values())

    def merge_weight(self, name: str) -> Tensor:
        """The weight with its adapter added, float32 (out, in)."""
        weight = self.dequantize_weight(name).float()
        if name not in self.factors:
            return weight
        A, B = self.factors[name]
        return weight + self.alpha / len(A) * (B.float() @ A.float())

    # -- what it computes ----------------------------------------------------------------------
    @cached_property
    def input_ids(self) -> list[Tensor]:
        """Token ids (1, n) of a few sentences."""
        return [
            torch.tensor([self.tokenizer(text, add_special_tokens=False)["input_ids"][:MOST_TOKENS]])
            for text in SENTENCES
        ]

    @cached_property
    def tuned_logits(self) -> list[Tensor]:
        """Logits of the tuned model on `input_ids`, float32, as `qra_eval.load` computes them."""
        return self.compute_logits(loading.load(self.folder, **self._options)[0])

    @torch.no_grad()
    def compute_logits(self, model: Any) -> list[Tensor]:
        model.eval()
        return [model(input_ids=ids, use_cache=False).logits.float() for ids in self.input_ids]

    def compare_logits(self, logits: Sequence[Tensor]) -> dict[str, float]:
        """How logits (…, n, vocabulary) on `input_ids` differ from the tuned model's: the figures of `Exported`.

        The vocabulary of the two may be padded differently; the shorter counts.
        """
        mine, theirs = (
            torch.cat([each.flatten(0, -2) for each in side]) for side in (self.tuned_logits, logits)
        )
        shorter = min(mine.shape[1], theirs.shape[1])
        mine, theirs = mine[:, :shorter], theirs[:, :shorter]
        gap = (mine - theirs).abs()
        return {
            "largest_logit_difference": float(gap.max()),
            "largest_logit": float(mine.abs().max()),
            "mean_logit_difference": float(gap.mean()),
            "same_next_token": float((mine.argmax(-1) == theirs.argmax(-1)).float().mean()),
        }

    # -- the model without this project ----------------------------------------------------------
    def is_plain(self) -> bool:
        """Whether plain transformers has the same linears: none was a transposed Conv1D or stacked with others."""
        modules = dict(self.build_skeleton().named_modules())
        return all(isinstance(modules.get(name), nn.Linear) for name in self.levels)

    def build_skeleton(self) -> Any:
        """The model as transformers builds it, on the meta device."""
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                self.config, dtype=self.dtype, trust_remote_code=self.trusted
            )

    def build_plain_state(self, weight: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The state of plain transformers' model with these weights (out, in) for its linears.

        Undoes `qra_eval.models.linears.normalise`: Conv1D weights are transposed back, experts stacked again.
        """
        skeleton, rest = self.build_skeleton(), self.base.state_dict()
        state: dict[str, Tensor] = {}
        for name, module in skeleton.named_modules():
            if is_stacked(module):
                experts = [f"{name}.{expert}" for expert in range(len(module.gate_up_proj))]
                state[f"{name}.gate_up_proj"] = torch.stack(
                    [
                        torch.cat([weight(f"{expert}.gate_proj"), weight(f"{expert}.up_proj")])
                        for expert in experts
                    ]
                )
                state[f"{name}.down_proj"] = torch.stack(
                    [weight(f"{expert}.down_proj") for expert in experts]
                )
            elif is_conv1d(module):
                state[f"{name}.weight"] = weight(name).t().contiguous()
            elif name in self.levels:
                state[f"{name}.weight"] = weight(name)
        return {key: state[key] if key in state else rest[key].detach() for key in skeleton.state_dict()}


def add_adapter(model: Any, folder: Path) -> Any:
    """A model with the PEFT adapter of a folder on top."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False).eval()
