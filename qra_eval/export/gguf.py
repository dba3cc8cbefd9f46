"""Format `gguf`: the model for llama.cpp in its own block types, its tokenizer, and its adapter as a GGUF LoRA."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from qra_backends.ggml import library
from qra_backends.ggml.backend import GGMLLinear
from torch import Tensor

from qra_eval.export import Exported, Exporter, llama_cpp
from qra_eval.export.tuned import TunedRun
from qra_eval.models.from_gguf import read_value
from qra_eval.models.gguf_families import (
    add_hyperparameters,
    compute_rope_factors,
    find_family,
    list_family_issues,
)
from qra_eval.models.linears import ROUTER_KINDS
from qra_eval.models.load import find_model_path
from qra_eval.tuning.loading import Generation
from qra_search.engines import advise_replan
from qra_search.errors import BadInput

MODEL_FILE, ADAPTER_FILE, OLLAMA_FILE = "model.gguf", "adapter.gguf", "Modelfile"
EXPERT_PATTERN = re.compile(r"\bexperts\.(\d+)\.")
"""The number of an expert in a linear's name: llama.cpp has those of a layer in one tensor."""
FileTensor = tuple[str, np.ndarray, str]
"""A tensor as a file holds it: its name, and bytes of a block type, or floats, with the name of their type."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE_PIECE = "\u2581"
"""What a space is in pieces."""
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


class GGUFExporter(Exporter):
    """`model.gguf`, whose searched weights are copies of the plan's own blocks, `adapter.gguf`, and Ollama's Modelfile.

    Args:
        pre: llama.cpp's name of the pre-tokenizer, where it is not known.
    """

    name = "gguf"
    needs_adapter = False

    def __init__(self, pre: str | None = None):
        self.pre = pre

    def list_issues(self, run: TunedRun) -> list[str]:
        reasons = [*list_family_issues(run.config), *list_expert_issues(run), *list_tokenizer_issues(run)]
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
        command = f"llama-server -m {out / MODEL_FILE}"
        adapter = None
        ollama = f"FROM ./{MODEL_FILE}\n"
        if run.adapter_folder is not None:
            adapter = out / ADAPTER_FILE
            write_lora(run, adapter)
            # The prompt as it comes, as in tuning.
            ollama += f"ADAPTER ./{ADAPTER_FILE}\nTEMPLATE {{{{ .Prompt }}}}\n"
            command += f" --lora {adapter}"
        (out / OLLAMA_FILE).write_text(ollama)
        notes += [command, f"ollama create NAME -f {out / OLLAMA_FILE}"]
        if library.get_missing_reason() is not None:
            return Exported(out, (*notes, "not compared: llama.cpp is not installed (llama-cpp-py-sync)"))
        prompts = [ids[0].tolist() for ids in run.input_ids]
        logits = llama_cpp.compute_logits(out / MODEL_FILE, adapter, prompts)
        notes.append("compared in llama.cpp: on the CPU it rounds the inputs of quantized weights to 8 bits")
        return Exported(out, tuple(notes), **run.compare_logits(logits))

    @staticmethod
    def generate(out: Path, prompt: str, **options: Any) -> Generation:
        """Answer a prompt by an export, in llama.cpp; takes what `llama_cpp.generate` does."""
        if library.get_missing_reason() is not None:
            raise BadInput("llama.cpp is not installed: pip install llama-cpp-py-sync")
        return llama_cpp.generate(out / MODEL_FILE, out / ADAPTER_FILE, prompt, **options)


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
    notes = write_tokenizer(writer, run, pre)
    _write_tensors(writer, list_model_tensors(run))
    blocks: list[Any] = [*run.quantized_linears.values(), *run.tables.values()]
    count = len(run.levels) + len(run.tables)
    copied = f"{len(blocks)} of {count} searched weights are copies of the plan's own blocks"
    return [f"{copied}: {sum(module.blocks.nbytes for module in blocks)} bytes", *notes]


def write_lora(run: TunedRun, path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, find_family(run.config).architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", run.adapter_config["lora_alpha"])
    _write_tensors(writer, list_lora_tensors(run))


def _write_tensors(writer: Any, tensors: Iterable[FileTensor]) -> None:
    from gguf import GGMLQuantizationType

    for name, data, kind in tensors:
        writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def list_model_tensors(run: TunedRun) -> Iterator[FileTensor]:
    """Every tensor of the model's file; what was searched is a copy of the plan's own blocks."""
    config = run.config
    experts = group_experts(run)
    translate_name = make_tensor_namer(config)
    stacks = {EXPERT_PATTERN.split(names[0])[0] + "experts" for names in experts}
    state = run.base.state_dict()
    for key in run.build_skeleton().state_dict():
        tied = getattr(config, "tie_word_embeddings", False) and key == "lm_head.weight"
        if not tied and key.rpartition(".")[0] not in stacks:
            yield translate_name(key), *_encode_tensor(run, key, state)
    for names in experts:
        parts = [_encode_tensor(run, f"{name}.weight", state) for name in names]
        yield f"{translate_name(names[0])}.weight", np.stack([data for data, _ in parts]), parts[0][1]
    factors = compute_rope_factors(config)
    if factors is not None:
        yield "rope_freqs.weight", factors.numpy(), "F32"


def _encode_tensor(run: TunedRun, key: str, state: dict[str, Tensor]) -> tuple[np.ndarray, str]:
    """What the file holds of a tensor: a searched weight's own blocks, or floats.

    llama.cpp wants one-dimensional tensors in full precision, and what chooses experts.
    """
    owner, _, what = key.rpartition(".")
    module = run.tables.get(owner) or run.base.get_submodule(owner)
    if what == "weight" and isinstance(module, GGMLLinear):
        return reorder_rows(run.config, key, module.blocks.cpu()).contiguous().numpy(), module.kind.name
    value = reorder_rows(run.config, key, state[key].detach())
    if find_family(run.config).shifted_norms and owner.endswith("norm"):
        value = value.float() + 1
    full = value.ndim == 1 or owner.rpartition(".")[2] in ROUTER_KINDS
    kind = "F32" if full else choose_float_kind(run.dtype)
    return cast_floats(value, kind), kind


def list_lora_tensors(run: TunedRun) -> Iterator[FileTensor]:
    """The adapter as llama.cpp reads it: `<tensor>.lora_a` (rank, in) and `<tensor>.lora_b` (out, rank).

    It scales by alpha over the rank of each tensor, as the adapter does.
    """
    translate_name = make_tensor_namer(run.config)
    in_stack = {name for names in group_experts(run) for name in names}
    parts: dict[str, list[Tensor]] = {}
    for name in filter(run.factors.__contains__, run.levels):  # experts by their number
        A, B = run.factors[name]
        for part, factor in (("a", A), ("b", reorder_rows(run.config, name, B))):
            own = factor[None] if name in in_stack else factor
            parts.setdefault(f"{translate_name(name)}.weight.lora_{part}", []).append(own)
    for name, factors in parts.items():
        kind = choose_float_kind(factors[0].dtype)
        yield name, cast_floats(torch.cat(factors), kind), kind


def make_tensor_namer(config: Any) -> Callable[[str], str]:
    """From a name in transformers (`model.layers.0.self_attn.q_proj`, with or without `.weight`) to the one in GGUF."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = find_family(config).architecture
    kind = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(kind, config.num_hidden_layers)

    def translate_name(name: str) -> str:
        found = names.get_name(EXPERT_PATTERN.sub("experts.", name), try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ValueError(
                f"llama.cpp has no name for the tensor {name} of a {config.model_type} model: export to another engine"
            )
        return found

    return translate_name


def reorder_rows(config: Any, name: str, rows: Tensor) -> Tensor:
    """Rows of a weight in the order in which llama.cpp keeps those of q and k for its rotary embedding.

    A head's rows are the first halves of its pairs and then the second halves; llama.cpp wants pair after pair.
    """
    parts = name.split(".")
    if not find_family(config).permuted or not {"q_proj", "k_proj"} & set(parts):
        return rows
    heads = config.num_attention_heads if "q_proj" in parts else config.num_key_value_heads
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def group_experts(run: TunedRun) -> list[list[str]]:
    """The linears that llama.cpp has in one tensor: those of one kind in a layer, in the order of the experts."""
    stacks: dict[str, list[str]] = {}
    for name in filter(EXPERT_PATTERN.search, run.levels):
        stacks.setdefault(EXPERT_PATTERN.sub("experts.", name), []).append(name)
    return list(stacks.values())


def list_expert_issues(run: TunedRun) -> list[str]:
    ranks = {name: len(A) for name, (A, _) in run.factors.items()}
    uneven = [
        names[0] for names in group_experts(run) if len({(run.levels[n], ranks.get(n, 0)) for n in names}) > 1
    ]
    if not uneven:
        return []
    return [
        f"llama.cpp stores the experts of a layer in one tensor of one type and rank, but those of this plan differ in "
        f"{len(uneven)} cases, such as {uneven[0]}: search with --granularity fused or layer"
    ]


def choose_float_kind(dtype: torch.dtype) -> str:
    return "F32" if dtype == torch.float32 else "BF16"


def cast_floats(value: Tensor, kind: str) -> np.ndarray:
    from gguf import GGMLQuantizationType, quantize

    return quantize(value.float().contiguous().numpy(), GGMLQuantizationType[kind])


# -- tokenizers: byte-level BPE, or the pieces of SentencePiece, which llama.cpp merges by score ---
def write_tokenizer(writer: Any, run: TunedRun, splits: str | None) -> list[str]:
    """Write the tokenizer, one without `list_tokenizer_issues`, and give notes.

    `splits` is llama.cpp's name of the pre-tokenizer of a byte-level BPE; None: that of the GGUF file of the model.
    """
    model = _get_tokenizer_model(run)
    tokenizer = run.tokenizer
    # A token may have been added that the model has no row for, and ids may have gaps.
    count = min(max(tokenizer.get_vocab().values()) + 1, run.config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(list(range(count)))
    added = tokenizer.added_tokens_decoder
    kinds = [UNUSED if token is None else NORMAL for token in tokens]
    for index, token in added.items():
        if index < count:
            kinds[index] = CONTROL if token.special else USER_DEFINED
    missing = range(count, run.config.vocab_size)
    tokens = [f"[UNUSED{i}]" if token is None else token for i, token in enumerate(tokens)]
    tokens += [f"[PAD{i}]" for i in missing]
    kinds += [UNUSED] * len(missing)
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    pieces = bool(model.get("byte_fallback"))
    notes = []
    if pieces:
        for i, token in enumerate(tokens):
            if BYTE_PIECE.fullmatch(token):
                kinds[i] = BYTE
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id < count:
            kinds[tokenizer.unk_token_id] = UNKNOWN
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(compute_piece_scores(tokens, merges))
        first = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).tokens[0]
        writer.add_add_space_prefix(first.startswith(SPACE_PIECE))
    else:
        if splits is None and (run.spec == "smollm2" or run.spec.lower().endswith(".gguf")):
            file = find_model_path(run.spec)
            splits = None if file is None else read_value(file, "tokenizer.ggml.pre")
        if splits is None:
            notes.append(
                "the pre-tokenizer is not known, so `default` was written. Give llama.cpp's name for it "
                "(--option pre=...), since numbers and spaces may otherwise be split differently than in tuning"
            )
        writer.add_tokenizer_pre(splits or "default")
        writer.add_tokenizer_model("gpt2")
        # llama.cpp wants some: of two special tokens, which are taken out of a text before anything is merged.
        special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
        writer.add_token_merges([" ".join(pair) for pair in merges] or [" ".join((special or tokens)[:2])])
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    for kind in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{kind}_token_id")
        if index is not None and index < count:
            getattr(writer, f"add_{kind}_token_id")(index)
    writer.add_add_bos_token(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.get_chat_template())
    return notes


def compute_piece_scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """llama.cpp merges the two neighbours whose piece has the highest score: the sooner merged, the higher.

    A piece that no merge makes, such as a single character or a byte, has the lowest.
    """
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def list_tokenizer_issues(run: TunedRun) -> list[str]:
    """Why the tokenizer cannot be written: it is no BPE of bytes, nor of characters with bytes to fall back on."""
    model = _get_tokenizer_model(run)
    backend = getattr(run.tokenizer, "backend_tokenizer", None)
    of_bytes = backend is not None and '"ByteLevel"' in backend.to_str()
    if model.get("type") == "BPE" and (model.get("byte_fallback") or of_bytes):
        return []
    return [
        "the tokenizer is neither a byte-level BPE nor a SentencePiece tokenizer with byte fallback. Export as merged, "
        "and convert that with llama.cpp's convert_hf_to_gguf.py"
    ]


def _get_tokenizer_model(run: TunedRun) -> dict[str, Any]:
    backend = getattr(run.tokenizer, "backend_tokenizer", None)
    return {} if backend is None else json.loads(backend.to_str())["model"]
