"""Format `gguf`: the model for llama.cpp, its adapter as a GGUF LoRA, and the recipe for llama.cpp's own quantizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from qra_backends.ggml.linear import GGMLLinear
from torch import Tensor

from qra_eval.export import llama_cpp
from qra_eval.export.base import Exported, Exporter, compared
from qra_eval.export.gguf_blocks import TYPES, own_blocks, rounded_blocks, takes
from qra_eval.export.gguf_experts import expert_reasons, stacked_experts
from qra_eval.export.gguf_files import (
    ADAPTER_FILE,
    MODEL_FILE,
    OLLAMA_FILE,
    finish,
    narrow_linears,
    write_lora,
    write_modelfile,
    write_recipe,
)
from qra_eval.export.gguf_names import row_order, tensor_namer
from qra_eval.export.gguf_tokenizer import add_tokenizer, has_tokenizer
from qra_eval.export.grids import Affine
from qra_eval.export.tuned import Chosen, TunedRun
from qra_eval.models.gguf_families import (
    add_hyperparameters,
    family_notes,
    family_of,
    family_reasons,
    rope_factors,
)
from qra_eval.models.linears import ROUTERS
from qra_eval.models.rope import rope
from qra_search.space.memory import UNQUANTIZED_BITS

QWEN3_HEAD = 128
"""transformers 5.24 does not read `attention.key_length` for qwen3."""
READ_BACK = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose files transformers reads as llama.cpp does."""
WEIGHTS = ("plan", "f16", "bf16", "f32")


class GGUFExporter(Exporter):
    """`model.gguf`, `adapter.gguf`, and `tensor-types.txt` with `quantize.sh` for llama.cpp's quantizer.

    Up to 4 bits an evenly spaced grid is kept as it is, as Q4_1 (4.5 bits or more a weight: GGUF has no narrower type
    with an offset that Python can write). Narrower files come from llama.cpp's quantizer, by the recipe.

    Args:
        weights: `plan` for quantized weights; `f16`, `bf16` or `f32` for the unquantized input of the recipe.
        merge: add the adapter to the weights, instead of writing it beside them.
        types: type by bit-width, such as {2: "Q4_0"} or "2=Q4_0,8=Q8_0", instead of the layers' own grids.
        k_quants: refuse where the recipe cannot use K-quants throughout, instead of taking other types there.
        pre: llama.cpp's name of the pre-tokenizer, where it is not known.
    """

    name = "gguf"
    summary = "model and LoRA for llama.cpp, and per-tensor types for its quantizer"

    def __init__(
        self,
        weights: str = "plan",
        merge: bool = False,
        types: Mapping[Any, str] | str | None = None,
        k_quants: bool = False,
        pre: str | None = None,
    ):
        if weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
        self.weights, self.merge, self.k_quants, self.pre = weights, merge, k_quants, pre
        self.types = _types(types)

    def check(self, run: TunedRun) -> list[str]:
        reasons = [*family_reasons(run.config), *expert_reasons(run)]
        narrow = narrow_linears(run)
        if self.k_quants and narrow:
            reasons.append(
                f"K-quants need rows that are multiples of 256: {len(narrow)} linears have others, such as "
                f"{narrow[0].name} with {narrow[0].in_features}. Without k_quants these get Q4_0 to Q8_0"
            )
        for linear in run.linears:
            kind = self.types.get(linear.bits)
            if kind is not None and not takes(kind, linear.in_features):
                reasons.append(
                    f"{linear.name} has rows of {linear.in_features}, no multiple of 32: {kind} cannot hold it"
                )
        return reasons

    def write(self, run: TunedRun, out: Path) -> Exported:
        notes, used = self.write_model(run, out / MODEL_FILE)
        notes.insert(0, "types written: " + ", ".join(f"{count} {kind}" for kind, count in sorted(used.items())))
        if not self.merge:
            write_lora(run, out / ADAPTER_FILE)
            notes.append(f"llama-server -m {out / MODEL_FILE} --lora {out / ADAPTER_FILE}")
        write_modelfile(out, adapter=not self.merge)
        notes.append(f"ollama create NAME -f {out / OLLAMA_FILE}")
        if any(stored_blocks(run, linear) for linear in run.linears):
            notes += in_llama_cpp(run, out, adapter=not self.merge)
        else:
            notes += write_recipe(run, out)
        reason = _not_read_back(run)
        if reason is not None:
            return Exported(out, (*notes, f"not compared: {reason}"))
        return compared(out, notes, run, load_gguf(run, out, adapter=not self.merge))

    def write_model(self, run: TunedRun, path: Path) -> tuple[list[str], Counter[str]]:
        from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

        config = run.config
        family = family_of(config)
        writer = GGUFWriter(path, family.architecture)
        writer.add_type("model")
        # transformers 5.24 takes a llama file for one of architecture `mistral`, which GGUF has not, if its name says
        # so.
        name = Path(run.spec).name
        writer.add_name("model" if "mistral" in name.lower() else name)
        add_hyperparameters(writer, config)
        writer.add_file_type(LlamaFileType.GUESSED)
        writer.add_quantization_version(2)
        notes = [*add_tokenizer(writer, run, self.pre), *family_notes(config)]
        name_of, searched = tensor_namer(config), {linear.name: linear for linear in run.linears}
        used: Counter[str] = Counter()
        rest = run.base.state_dict()
        tied = getattr(config, "tie_word_embeddings", False)
        experts = stacked_experts(run)
        for key in run.skeleton().state_dict():
            owner, _, what = key.rpartition(".")
            if owner in experts or (tied and key == "lm_head.weight"):
                continue
            table = run.tables.get(owner) if self.weights == "plan" else None
            if owner in searched and what == "weight":
                data, kind = self._tensor(run, searched[owner])
                used[kind] += 1
            elif isinstance(table, GGMLLinear):
                data, kind = table.blocks.cpu().numpy(), table.kind.name
                used[kind] += 1
            else:
                value = rest[key].detach()
                order = row_order(config, key, value.shape[0])
                value = value if order is None else value[order]
                if family.shifted_norms and owner.endswith("norm"):
                    value = value.float() + 1
                # llama.cpp wants one-dimensional tensors in full precision, and what chooses experts.
                full = value.ndim == 1 or owner.rpartition(".")[2] in ROUTERS or run.dtype == torch.float32
                kind = "F32" if full else "BF16"
                data = rounded_blocks(value, kind)
            writer.add_tensor(name_of(key), np.ascontiguousarray(data), raw_dtype=GGMLQuantizationType[kind])
        for linears in (each for kinds in experts.values() for each in kinds):
            parts = [self._tensor(run, linear) for linear in linears]
            (kind,) = {kind for _, kind in parts}
            used[kind] += len(parts)
            data = np.stack([data for data, _ in parts])
            writer.add_tensor(f"{name_of(linears[0].name)}.weight", data, raw_dtype=GGMLQuantizationType[kind])
        factors = rope_factors(config)
        if factors is not None:
            writer.add_tensor("rope_freqs.weight", factors.numpy())
        finish(writer)
        if self.weights == "plan":
            notes += _type_notes(run)
        return notes, used

    def _tensor(self, run: TunedRun, linear: Chosen) -> tuple[np.ndarray, str]:
        order = row_order(run.config, linear.name, linear.out_features)
        weight = run.merged(linear) if self.merge else run.weight(linear).float()
        weight = weight if order is None else weight[order]
        if self.weights != "plan":
            return rounded_blocks(weight, self.weights.upper()), self.weights.upper()
        stored = None if self.merge or linear.bits in self.types else stored_blocks(run, linear)
        if stored is not None:
            blocks, kind = stored
            return (blocks if order is None else blocks[order]).numpy(), kind
        if linear.bits == UNQUANTIZED_BITS or not takes("Q8_0", linear.in_features):
            kind = "F32" if run.dtype == torch.float32 else "BF16"
            return rounded_blocks(weight, kind), kind
        if linear.bits in self.types:
            return rounded_blocks(weight, self.types[linear.bits]), self.types[linear.bits]
        own = None if self.merge else run.affine(linear)
        if own is not None:
            if order is not None:
                own = Affine(own.codes[order], own.scale[order], own.offset[order], own.group_size)
            kept = own_blocks(own)
            if kept is not None:
                return kept
        return rounded_blocks(weight, "Q8_0"), "Q8_0"


def stored_blocks(run: TunedRun, linear: Chosen) -> tuple[Tensor, str] | None:
    """Blocks uint8 (out, bytes of a row) of a linear that is stored as llama.cpp does, and their type; else None."""
    module = run.module(linear.name)
    return (module.blocks.cpu(), module.kind.name) if isinstance(module, GGMLLinear) else None


def in_llama_cpp(run: TunedRun, out: Path, *, adapter: bool) -> list[str]:
    """How llama.cpp itself computes the written files, in a note; none if it, or a tokenizer, is missing.

    Raises:
        RuntimeError: it does not load them.
    """
    if not llama_cpp.installed() or not has_tokenizer(run):
        return []
    prompts = [ids[0].tolist() for ids in run.input_ids]
    theirs = torch.cat(llama_cpp.logits(out / MODEL_FILE, out / ADAPTER_FILE if adapter else None, prompts))
    mine = torch.cat([logits[0] for logits in run.live_logits])
    same = float((mine.argmax(-1) == theirs[:, : mine.shape[1]].argmax(-1)).float().mean())
    return [
        f"loaded in llama.cpp, which finds the same likeliest token at {same:.0%} of {len(mine)} positions: on the CPU "
        "it rounds the inputs of quantized weights to 8 bits"
    ]


def _not_read_back(run: TunedRun) -> str | None:
    """Why transformers 5.24 would compute another model from the file; None if it would not."""
    config, kind = run.config, rope(run.config).get("rope_type", "default")
    if config.model_type not in READ_BACK:
        return f"transformers does not read every {config.model_type} GGUF file as llama.cpp does"
    if config.model_type == "qwen3" and config.head_dim != QWEN3_HEAD:
        return (
            f"transformers takes the heads of a qwen3 GGUF file to be {QWEN3_HEAD} wide, and these are "
            f"{config.head_dim}"
        )
    if kind != "default":
        return f"transformers does not read the scaled rotary embedding ({kind}) of a GGUF file, as llama.cpp does"
    return None


def load_gguf(run: TunedRun, folder: Path, *, adapter: bool) -> Any:
    """The file as transformers reads it, with the PEFT adapter on top where wanted."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=MODEL_FILE, dtype=run.dtype, local_files_only=True
    )
    model.hf_quantizer.remove_quantization_config(model)
    return PeftModel.from_pretrained(model, str(run.adapter_folder), autocast_adapter_dtype=False) if adapter else model


def _type_notes(run: TunedRun) -> list[str]:
    notes = []
    others = [linear for linear in run.linears if stored_blocks(run, linear) is None]
    tables = [table.blocks for table in run.tables.values() if isinstance(table, GGMLLinear)]
    copied = [*(found[0] for linear in run.linears if (found := stored_blocks(run, linear)) is not None), *tables]
    if copied:
        size = sum(blocks.nbytes for blocks in copied)
        notes.append(
            f"{len(copied)} of {len(run.linears) + len(run.tables)} searched weights are copies of the plan's own "
            f"blocks: {size} bytes, the numbers that were tuned on"
        )
    if any(linear.bits < 4 for linear in others):
        notes.append("2 and 3 bits are stored as Q4_1 (5 bits a weight): the same weights in a larger file")
    uneven = sum(linear.bits == 4 and run.affine(linear) is None for linear in others)
    if uneven:
        notes.append(f"{uneven} 4-bit linears have unevenly spaced levels (nf4), which GGUF lacks: stored as Q8_0")
    return notes


def _types(types: Mapping[Any, str] | str | None) -> dict[int, str]:
    if isinstance(types, str):
        types = dict(part.partition("=")[::2] for part in types.split(","))
    try:
        found = {int(bits): str(kind).upper() for bits, kind in (types or {}).items()}
    except ValueError:
        found = {0: str(types)}
    if not set(found.values()) <= set(TYPES):
        raise ValueError(f"types give one of {', '.join(TYPES)} for a bit-width, such as 2=Q4_0, got {types!r}")
    return found
