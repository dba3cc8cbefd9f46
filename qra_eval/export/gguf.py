"""Format `gguf`: the model for llama.cpp in its own block types, and its adapter as a GGUF LoRA."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qra_backends.ggml.backend import GGMLLinear

from qra_eval.export import gguf_tensors, llama_cpp
from qra_eval.export.base import Exported, Exporter
from qra_eval.export.gguf_tokenizer import add_tokenizer, list_tokenizer_issues
from qra_eval.export.tuned import TunedRun
from qra_eval.models.gguf_families import (
    add_hyperparameters,
    find_family,
    list_family_issues,
    list_family_notes,
)
from qra_search.engines import advise_replan
from qra_search.errors import BadInput

MODEL_FILE, ADAPTER_FILE, OLLAMA_FILE = "model.gguf", "adapter.gguf", "Modelfile"


class GGUFExporter(Exporter):
    """`model.gguf`, whose searched weights are copies of the plan's own blocks, `adapter.gguf`, and Ollama's Modelfile.

    Args:
        pre: llama.cpp's name of the pre-tokenizer, where it is not known.
    """

    name = "gguf"

    def __init__(self, pre: str | None = None):
        self.pre = pre

    def check(self, run: TunedRun) -> list[str]:
        reasons = [
            *list_family_issues(run.config),
            *gguf_tensors.list_expert_issues(run),
            *list_tokenizer_issues(run),
        ]
        searched = {**run.quantized_linears, **run.tables}
        others = [name for name, module in searched.items() if not isinstance(module, GGMLLinear)]
        if others:
            reasons.append(
                f"{len(others)} weights are not stored in llama.cpp's types, such as {others[0]}: "
                + advise_replan("llama.cpp")
            )
        return reasons

    def write(self, run: TunedRun, out: Path) -> Exported:
        notes = write_model(run, out / MODEL_FILE, self.pre)
        write_lora(run, out / ADAPTER_FILE)
        # The prompt as it comes, as in tuning.
        (out / OLLAMA_FILE).write_text(
            f"FROM ./{MODEL_FILE}\nADAPTER ./{ADAPTER_FILE}\nTEMPLATE {{{{ .Prompt }}}}\n"
        )
        notes += [
            f"llama-server -m {out / MODEL_FILE} --lora {out / ADAPTER_FILE}",
            f"ollama create NAME -f {out / OLLAMA_FILE}",
        ]
        if not llama_cpp.is_installed():
            return Exported(out, (*notes, "not compared: llama.cpp is not installed (llama-cpp-py-sync)"))
        prompts = [ids[0].tolist() for ids in run.input_ids]
        try:
            logits = llama_cpp.compute_logits(out / MODEL_FILE, out / ADAPTER_FILE, prompts)
        except RuntimeError as error:
            if self.pre is None:
                raise
            raise BadInput(
                f"llama.cpp does not load the file: does it know the pre-tokenizer {self.pre!r}?"
            ) from error
        notes.append("compared in llama.cpp: on the CPU it rounds the inputs of quantized weights to 8 bits")
        return Exported(out, tuple(notes), **run.compare_logits(logits))


def write_model(run: TunedRun, path: Path, pre: str | None) -> list[str]:
    """Write the model's file; notes on what is in it."""
    from gguf import GGUFWriter, LlamaFileType

    writer = GGUFWriter(path, find_family(run.config).architecture)
    writer.add_type("model")
    # transformers 5.24 takes a llama file for one of architecture `mistral`, which GGUF has not, if its name says so.
    name = Path(run.spec).name
    writer.add_name("model" if "mistral" in name.lower() else name)
    add_hyperparameters(writer, run.config)
    writer.add_file_type(LlamaFileType.GUESSED)
    writer.add_quantization_version(2)
    notes = [*add_tokenizer(writer, run, pre), *list_family_notes(run.config)]
    _write_tensors(writer, gguf_tensors.list_model_tensors(run))
    blocks: list[Any] = [*run.quantized_linears.values(), *run.tables.values()]
    count = len(run.levels) + len(run.tables)
    types = Counter(module.kind.name for module in blocks)
    types[gguf_tensors.choose_float_kind(run.dtype)] += count - len(blocks)
    return [
        "types written: " + ", ".join(f"{number} {kind}" for kind, number in sorted(types.items()) if number),
        f"{len(blocks)} of {count} searched weights are copies of the plan's own blocks: "
        f"{sum(module.blocks.nbytes for module in blocks)} bytes, the numbers that were tuned on",
        *notes,
    ]


def write_lora(run: TunedRun, path: Path) -> None:
    """Write the adapter's file; see `gguf_tensors.list_lora_tensors`."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, find_family(run.config).architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", run.alpha)
    _write_tensors(writer, gguf_tensors.list_lora_tensors(run))


def _write_tensors(writer: Any, tensors: Iterable[gguf_tensors.FileTensor]) -> None:
    """Write a file's header and tensors, and close it."""
    from gguf import GGMLQuantizationType

    for name, data, kind in tensors:
        writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
