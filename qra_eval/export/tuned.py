"""A tuning as exports need it: its quantized base, dequantized weights, adapter and live logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from qra_backends import Backend, make_backend
from safetensors.torch import load_file
from torch import Tensor, nn

from qra_eval.models.embeddings import quantized_tables, uninstall_tables
from qra_eval.models.experts import is_stacked, make_linear
from qra_eval.models.linears import is_conv1d
from qra_eval.tuning import loading
from qra_search.runs.folder import containing_run
from qra_search.runs.tuning_folder import ADAPTER_FOLDER
from qra_search.space.memory import UNQUANTIZED_BITS

SENTENCES = (
    "Question: A baker has 23 trays with 17 rolls each and sells 85 rolls. How many rolls are left? Answer: 306.",
    "The quick brown fox jumps over the lazy dog, and then it sleeps until the evening.",
)
MOST_TOKENS = 64
DEVICE = "cpu"
"""On which exports work: files are written from it, and a card may be less than they need."""


@dataclass(frozen=True)
class Chosen:
    """One linear of a plan: its shape, bits (16: unquantized), rank (0: no adapter), and the group that decided."""

    name: str
    out_features: int
    in_features: int
    bits: float
    rank: int
    group: str


@dataclass(frozen=True)
class Factors:
    """An adapter's factors as saved: the linear computes base(x) + scaling · B (A x)."""

    A: Tensor
    B: Tensor
    scaling: float

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    def delta(self) -> Tensor:
        """What it adds to the weight, float32 (out, in)."""
        return self.scaling * (self.B.float() @ self.A.float())


class TunedRun:
    """What `qra_eval.tuning.saved.save` left in a folder; the model is loaded when it is first needed, and kept.

    Args:
        folder: of a tuning, or of a run: that of its plan.
        model, tokenizer: in memory, if the run was made with these.

    Raises:
        BadInput: there is no tuned plan in the folder, or a file of it is damaged.
    """

    def __init__(self, folder: str | Path, *, model: Any = None, tokenizer: Any = None):
        self.folder, self._given = loading.find_tuning(Path(folder)), {"model": model, "tokenizer": tokenizer}
        self.trusted = containing_run(self.folder).trusts_code
        self.plan = loading.tuned_plan(self.folder)
        loading.check_adapter(self.adapter_folder)

    @classmethod
    def of(cls, run: TunedRun | str | Path) -> TunedRun:
        """The run itself, or that of a folder."""
        return run if isinstance(run, TunedRun) else cls(run)

    # -- the parts -----------------------------------------------------------------------------
    @property
    def adapter_folder(self) -> Path:
        return self.folder / ADAPTER_FOLDER

    @property
    def spec(self) -> str:
        """The model, as `load_model` takes it."""
        return str(self.plan["model"])

    def _load_base(self) -> tuple[Any, Any]:
        return loading.load_base(self.folder, device=DEVICE, trust_remote_code=self.trusted, **self._given)

    @cached_property
    def _base(self) -> tuple[Any, Any, dict[str, nn.Module]]:
        model, tokenizer = self._load_base()
        tables = quantized_tables(model)
        uninstall_tables(model)
        return model.eval(), tokenizer, tables

    @property
    def base(self) -> Any:
        """The model with quantized linears, without adapter."""
        return self._base[0]

    @property
    def tables(self) -> dict[str, nn.Module]:
        """Quantized embeddings and head by path, or the one table of both by the embedding's; `base` has them
        dequantized."""
        return self._base[2]

    @property
    def tokenizer(self) -> Any:
        return self._base[1]

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.base.config

    @property
    def dtype(self) -> torch.dtype:
        """What the tuned model computes in."""
        return getattr(torch, self.plan["dtype"])

    @cached_property
    def backend(self) -> Backend:
        return make_backend(self.plan["backend"])

    @cached_property
    def linears(self) -> tuple[Chosen, ...]:
        """Every searched linear, in the order of the plan."""
        tables = {id(self.base.get_input_embeddings()), id(self.base.get_output_embeddings())}
        found = []
        for group in self.plan["groups"]:
            for name in group["linears"]:
                module: Any = self.module(name)
                if id(module) not in tables:  # a table is written as the base has it
                    shape = (module.out_features, module.in_features)
                    found.append(Chosen(name, *shape, self._width(group["bits"]), group["rank"], group["name"]))
        return tuple(found)

    def _width(self, level: int | str) -> float:
        return UNQUANTIZED_BITS if level == UNQUANTIZED_BITS else self.backend.width(level)

    def module(self, name: str) -> nn.Module:
        """The (quantized) linear of the base."""
        return self.base.get_submodule(name)

    def weight(self, linear: Chosen) -> Tensor:
        """The weight that the base multiplies by, dequantized: (out, in), in the dtype that it computes in."""
        module = self.module(linear.name)
        if linear.bits == UNQUANTIZED_BITS:
            return module.get_parameter("weight").detach()
        return self.backend.dequantize(module).detach()

    @cached_property
    def factors(self) -> dict[str, Factors]:
        """The adapters by linear."""
        config = json.loads((self.adapter_folder / "adapter_config.json").read_text())
        tensors = load_file(self.adapter_folder / "adapter_model.safetensors")
        found = {}
        for key, A in tensors.items():
            name, matched, _ = key.removeprefix("base_model.model.").partition(".lora_A.")
            if not matched:
                continue
            B = tensors[key.replace(".lora_A.", ".lora_B.")]
            found[name] = Factors(A, B, config["lora_alpha"] / A.shape[0])
        return found

    def merged(self, linear: Chosen) -> Tensor:
        """The weight with its adapter added, float32 (out, in)."""
        weight = self.weight(linear).float()
        factors = self.factors.get(linear.name)
        return weight if factors is None else weight + factors.delta()

    # -- what it computes ----------------------------------------------------------------------
    @cached_property
    def input_ids(self) -> list[Tensor]:
        """Token ids (1, n) of a few sentences."""
        return [
            torch.tensor([self.tokenizer(text, add_special_tokens=False)["input_ids"][:MOST_TOKENS]])
            for text in SENTENCES
        ]

    @cached_property
    def live_logits(self) -> list[Tensor]:
        """Logits of the tuned model on `input_ids`, float32, as `qra_eval.load` computes them."""
        tuned, _ = loading.load(self.folder, device=DEVICE, trust_remote_code=self.trusted, **self._given)
        return self.logits(tuned)

    @torch.no_grad()
    def logits(self, model: Any) -> list[Tensor]:
        """Logits of a model on `input_ids`, float32."""
        model.eval()
        return [model(input_ids=ids, use_cache=False).logits.float() for ids in self.input_ids]

    def difference(self, model: Any) -> tuple[float, float, float, float]:
        """How a model's logits differ from the tuned model's: as the figures of `Exported`, in their order.

        The vocabulary of the two may be padded differently; the shorter counts.
        """
        pairs = [
            (mine[..., : theirs.shape[-1]], theirs[..., : mine.shape[-1]])
            for mine, theirs in zip(self.live_logits, self.logits(model), strict=True)
        ]
        mine, theirs = (torch.cat([pair[side].flatten(0, 1) for pair in pairs]) for side in (0, 1))
        gap = (mine - theirs).abs()
        same = (mine.argmax(-1) == theirs.argmax(-1)).float().mean()
        return float(gap.max()), float(mine.abs().max()), float(gap.mean()), float(same)

    def with_weights(self, weight: Callable[[Chosen], Tensor], *, adapter: bool = True) -> Any:
        """The tuned model with other weights (out, in) in the searched linears, and with or without its adapter."""
        from peft import PeftModel

        model, _ = self._load_base()
        for linear in self.linears:
            old = model.get_submodule(linear.name)
            model.set_submodule(linear.name, make_linear(weight(linear).to(self.dtype), old.bias))
        if not adapter:
            return model.eval()
        return PeftModel.from_pretrained(model, str(self.adapter_folder), autocast_adapter_dtype=False).eval()

    # -- the model without this project ----------------------------------------------------------
    def is_plain(self) -> bool:
        """Whether plain transformers has the same linears: none was a transposed Conv1D or stacked with others."""
        skeleton = self.skeleton()
        return all(isinstance(_submodule(skeleton, linear.name), nn.Linear) for linear in self.linears)

    def skeleton(self) -> Any:
        """The model as transformers builds it, on the meta device."""
        from transformers import AutoModelForCausalLM

        config = self.config  # loads the model, which must not come to lie on the meta device
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=self.dtype, trust_remote_code=self.trusted)

    def plain_state(self, weight: Callable[[Chosen], Tensor]) -> dict[str, Tensor]:
        """The state of plain transformers' model with these weights (out, in) for the searched linears.

        Undoes `qra_eval.models.linears.normalise`: Conv1D weights are transposed back, experts stacked again.
        """
        own = {linear.name: linear for linear in self.linears}
        rest = self.base.state_dict()
        state: dict[str, Tensor] = {}

        def value(name: str) -> Tensor:
            return weight(own[name]) if name in own else self.module(name).get_parameter("weight").detach()

        skeleton = self.skeleton()
        for name, module in skeleton.named_modules():
            if is_stacked(module):
                gate_up, down = [], []
                for expert in range(module.gate_up_proj.shape[0]):
                    at = f"{name}.{expert}"
                    gate_up.append(torch.cat([value(f"{at}.gate_proj"), value(f"{at}.up_proj")]))
                    down.append(value(f"{at}.down_proj"))
                state[f"{name}.gate_up_proj"], state[f"{name}.down_proj"] = torch.stack(gate_up), torch.stack(down)
            elif is_conv1d(module):
                state[f"{name}.weight"] = value(name).t().contiguous()
            elif name in own:
                state[f"{name}.weight"] = value(name)
        for key in skeleton.state_dict():
            if key not in state:
                state[key] = rest[key].detach()
        return state


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
