"""Format `gguf`: the model for llama.cpp in its own block types, and its adapter as a GGUF LoRA."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from qra_eval.export import llama_cpp
from qra_eval.export.base import Exported, Exporter, compared
from qra_eval.export.gguf_tensors import FileTensor, expert_reasons, lora_tensors, model_tensors, stored_blocks
from qra_eval.export.gguf_tokenizer import add_tokenizer, tokenizer_reasons
from qra_eval.export.merged import load_plain
from qra_eval.export.tuned import TunedRun
from qra_eval.models.gguf_families import add_hyperparameters, family_notes, family_of, family_reasons, rope
from qra_search.errors import BadInput
from qra_search.space.memory import UNQUANTIZED_BITS

MODEL_FILE, ADAPTER_FILE, OLLAMA_FILE = "model.gguf", "adapter.gguf", "Modelfile"
QWEN3_HEAD = 128
"""transformers 5.24 does not read `attention.key_length` for qwen3."""
READ_BACK = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose files transformers reads as llama.cpp does."""


class GGUFExporter(Exporter):
    """`model.gguf`, whose searched weights are copies of the plan's own blocks, `adapter.gguf`, and Ollama's Modelfile.

    Args:
        pre: llama.cpp's name of the pre-tokenizer, where it is not known.
    """

    name = "gguf"
    summary = "model and LoRA for llama.cpp"

    def __init__(self, pre: str | None = None):
        if not isinstance(pre, str | None):
            raise BadInput(f"pre is llama.cpp's name of a pre-tokenizer, got {pre!r}")
        self.pre = pre

    def check(self, run: TunedRun) -> list[str]:
        reasons = [*family_reasons(run.config), *expert_reasons(run), *tokenizer_reasons(run)]
        others = [
            linear.name
            for linear in run.linears
            if linear.bits != UNQUANTIZED_BITS and stored_blocks(run.module(linear.name)) is None
        ]
        others += [name for name, table in run.tables.items() if stored_blocks(table) is None]
        if others:
            reasons.append(
                f"{len(others)} weights are not stored in llama.cpp's types, such as {others[0]}: search with --engine "
                "llama.cpp, or export as merged"
            )
        return reasons

    def write(self, run: TunedRun, out: Path) -> Exported:
        notes = write_model(run, out / MODEL_FILE, self.pre)
        write_lora(run, out / ADAPTER_FILE)
        # The prompt as it comes, as in tuning.
        (out / OLLAMA_FILE).write_text(f"FROM ./{MODEL_FILE}\nADAPTER ./{ADAPTER_FILE}\nTEMPLATE {{{{ .Prompt }}}}\n")
        notes += [
            f"llama-server -m {out / MODEL_FILE} --lora {out / ADAPTER_FILE}",
            f"ollama create NAME -f {out / OLLAMA_FILE}",
            *self._in_llama_cpp(run, out),
        ]
        reason = not_read_back(run)
        if reason is not None:
            return Exported(out, (*notes, f"not compared: {reason}"))
        return compared(out, notes, run, load_gguf(run, out))

    def _in_llama_cpp(self, run: TunedRun, out: Path) -> list[str]:
        try:
            return in_llama_cpp(run, out)
        except RuntimeError as error:
            if self.pre is None:
                raise
            raise BadInput(f"llama.cpp does not load the file: does it know the pre-tokenizer {self.pre!r}?") from error


def write_model(run: TunedRun, path: Path, pre: str | None = None) -> list[str]:
    """The model's file; notes on what is in it."""
    from gguf import GGUFWriter, LlamaFileType

    writer = GGUFWriter(path, family_of(run.config).architecture)
    writer.add_type("model")
    # transformers 5.24 takes a llama file for one of architecture `mistral`, which GGUF has not, if its name says so.
    name = Path(run.spec).name
    writer.add_name("model" if "mistral" in name.lower() else name)
    add_hyperparameters(writer, run.config)
    writer.add_file_type(LlamaFileType.GUESSED)
    writer.add_quantization_version(2)
    notes = [*add_tokenizer(writer, run, pre), *family_notes(run.config)]
    kinds: Counter[str] = Counter()
    copied = size = 0
    for tensor in _written(writer, model_tensors(run)):
        kinds[tensor.kind] += tensor.searched
        if tensor.searched and tensor.kind not in ("F32", "BF16"):
            copied, size = copied + tensor.searched, size + tensor.data.nbytes
    types = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()) if count)
    return [
        f"types written: {types}",
        f"{copied} of {len(run.linears) + len(run.tables)} searched weights are copies of the plan's own blocks: "
        f"{size} bytes, the numbers that were tuned on",
        *notes,
    ]


def write_lora(run: TunedRun, path: Path) -> None:
    """The adapter's file; see `lora_tensors`."""
    from gguf import GGUFWriter

    ranks = [factors.rank for factors in run.factors.values()]
    common = max(set(ranks), key=ranks.count)
    alpha = next(f.scaling * f.rank for f in run.factors.values() if f.rank == common)
    writer = GGUFWriter(path, family_of(run.config).architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    _written(writer, lora_tensors(run, alpha))


def _written(writer: Any, tensors: Iterable[FileTensor]) -> list[FileTensor]:
    """The tensors, once they and the file's header are on disk."""
    from gguf import GGMLQuantizationType

    done = list(tensors)
    for tensor in done:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=GGMLQuantizationType[tensor.kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return done


def in_llama_cpp(run: TunedRun, out: Path) -> list[str]:
    """How llama.cpp itself computes the written files, in a note; none if it is missing.

    Raises:
        RuntimeError: it does not load them.
    """
    if not llama_cpp.installed():
        return []
    prompts = [ids[0].tolist() for ids in run.input_ids]
    theirs = torch.cat(llama_cpp.logits(out / MODEL_FILE, out / ADAPTER_FILE, prompts))
    mine = torch.cat([logits[0] for logits in run.live_logits])
    same = float((mine.argmax(-1) == theirs[:, : mine.shape[1]].argmax(-1)).float().mean())
    return [
        f"loaded in llama.cpp, which finds the same likeliest token at {same:.0%} of {len(mine)} positions: on the CPU "
        "it rounds the inputs of quantized weights to 8 bits"
    ]


def not_read_back(run: TunedRun) -> str | None:
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


def load_gguf(run: TunedRun, folder: Path) -> Any:
    """The file as transformers reads it, with the PEFT adapter on top."""
    from peft import PeftModel

    model: Any = load_plain(folder, run.dtype, gguf_file=MODEL_FILE)
    model.hf_quantizer.remove_quantization_config(model)
    return PeftModel.from_pretrained(model, str(run.adapter_folder), autocast_adapter_dtype=False)
