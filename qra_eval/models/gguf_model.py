"""Turns a GGUF file into an ordinary model folder: safetensors, config and tokenizer.

Does in about a second what transformers' own loading does in fifteen, for the families in `FAMILIES`; any other
family that transformers knows goes through its loader.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qra_eval.models.gguf_reader import BadGGUF, GGUFFile, read_gguf

if TYPE_CHECKING:
    import torch

CONVERSION = 1
"""Raised whenever the folder that `convert_gguf` writes changes, so that cached ones are made again."""

FAMILIES = ("llama", "qwen2", "qwen3")
"""Architectures (under the same name in GGUF and in transformers) whose weights are read by our own reader."""

PERMUTED = ("llama",)
"""Families whose q and k rows llama.cpp reorders for its rotary embedding."""

BYTE_LEVEL_SPLITS = ("gpt-2", "smollm")
"""Pre-tokenizers that transformers gives GPT-2's byte-level splitting; the others go through its conversion."""

_CONFIG = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "vocab_size": "vocab_size",
}
_TOKEN_IDS = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
_CONTROL, _USER_DEFINED = 3, 4
_LARGEST = 1 << 31


def convert_gguf(path: str | Path, folder: str | Path, dtype: torch.dtype) -> None:
    """Write the model of a GGUF file into a folder, its weights dequantized to `dtype`.

    Raises:
        BadGGUF: the file is broken, or holds another model than it says, or one that is not known.
    """
    file = read_gguf(path)
    family = file.metadata.get("general.architecture")
    if not isinstance(family, str):
        raise BadGGUF(f"{path}: metadata has no general.architecture")
    own = family in FAMILIES and not file.metadata.get(f"{family}.expert_count")
    if own:
        _write_model(file, family, Path(folder), dtype)
    else:
        _write_with_transformers(file, family, Path(folder), dtype)
    tokenizer = _one_line(file, "tokenizer", lambda: _byte_level_tokenizer(file)) if own else None
    if tokenizer is None:
        from transformers import AutoTokenizer

        tokenizer = _one_line(
            file, "tokenizer", lambda: AutoTokenizer.from_pretrained(file.path.parent, gguf_file=file.path.name)
        )
    tokenizer.save_pretrained(folder)


def gguf_config(file: GGUFFile, family: str) -> Any:
    """The transformers config that the metadata describes, checked against the shapes of the tensors."""
    from transformers import AutoConfig

    values: dict[str, Any] = {name: file.metadata.get(f"{family}.{key}") for key, name in _CONFIG.items()}
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise BadGGUF(f"{file.path}: there is no tensor token_embd.weight of two dimensions")
    values["vocab_size"] = values["vocab_size"] or embedding.shape[0]
    heads, width = values["num_attention_heads"], values["hidden_size"]
    values["num_key_value_heads"] = values["num_key_value_heads"] or heads
    for key, name in _CONFIG.items():
        value = values[name]
        if name != "head_dim" and (type(value) is not int or not 0 < value < _LARGEST):
            raise BadGGUF(f"{file.path}: {family}.{key} is {value!r}, a positive number is needed")
    if type(values["head_dim"]) is not int:
        values["head_dim"] = file.metadata.get(f"{family}.rope.dimension_count") or width // heads
    expected = {
        "token_embd.weight": (values["vocab_size"], width),
        "blk.0.attn_q.weight": (heads * values["head_dim"], width),
        "blk.0.attn_k.weight": (values["num_key_value_heads"] * values["head_dim"], width),
        "blk.0.ffn_gate.weight": (values["intermediate_size"], width),
    }
    for name, shape in expected.items():
        found = file.tensors[name].shape if name in file.tensors else None
        if found != shape:
            raise BadGGUF(f"{file.path}: tensor {name} has shape {found}, its metadata say {shape}")
    if values["num_hidden_layers"] > len(file.tensors):
        raise BadGGUF(f"{file.path}: {values['num_hidden_layers']} blocks in {len(file.tensors)} tensors")
    values["rms_norm_eps"] = file.metadata.get(f"{family}.attention.layer_norm_rms_epsilon", 1e-6)
    values["rope_theta"] = file.metadata.get(f"{family}.rope.freq_base", 10000.0)
    values["tie_word_embeddings"] = "output.weight" not in file.tensors
    if family == "llama":
        values["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    for ours, theirs in _TOKEN_IDS.items():
        values[f"{theirs}_token_id"] = file.metadata.get(f"tokenizer.ggml.{ours}_token_id")
    scaling = file.metadata.get(f"{family}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in file.tensors:
        warnings.warn(f"{file.path}: its rotary scaling is left out, as by transformers", stacklevel=2)
    return _one_line(file, "config", lambda: AutoConfig.for_model(family, **values))


def _write_model(file: GGUFFile, family: str, folder: Path, dtype: torch.dtype) -> None:
    import torch
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    config = gguf_config(file, family)
    with torch.device("meta"):
        model = _one_line(file, "model", lambda: AutoModelForCausalLM.from_config(config, dtype=dtype))
    arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == family)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    tensors = {}
    missing = dict.fromkeys(file.tensors)
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, suffix = name.rpartition(".")
        stored = f"{names.get_name(stem)}.{suffix}"
        if stored not in file.tensors:
            raise BadGGUF(f"{file.path}: tensor {stored!r} (for {name}) is missing")
        missing.pop(stored, None)
        values = file.read(stored)
        if values.shape != tuple(parameter.shape):
            raise BadGGUF(f"{file.path}: tensor {stored!r} has shape {values.shape}, {name} {tuple(parameter.shape)}")
        if family in PERMUTED and (".attn_q." in stored or ".attn_k." in stored):
            heads = config.num_attention_heads if ".attn_q." in stored else config.num_key_value_heads
            values = unpermute(values, heads)
        tensors[name] = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
    unknown = [name for name in missing if name != "rope_freqs.weight"]
    if unknown:
        raise BadGGUF(f"{file.path}: tensor {unknown[0]!r} has no place in a {family} model")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.architectures = [type(model).__name__]
    config.dtype = dtype
    config.save_pretrained(folder)


def unpermute(values: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's interleaving of the two halves of every head's rows; values is (heads * head_dim, ...)."""
    paired = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return paired.swapaxes(1, 2).reshape(values.shape)


def _write_with_transformers(file: GGUFFile, family: str, folder: Path, dtype: torch.dtype) -> None:
    from transformers import AutoModelForCausalLM

    model = _one_line(
        file,
        f"{family!r} model",
        lambda: AutoModelForCausalLM.from_pretrained(file.path.parent, gguf_file=file.path.name, dtype=dtype),
    )
    # A model read from GGUF is marked as quantized although it is not, and so refuses to be saved.
    model.hf_quantizer.remove_quantization_config(model)
    model.save_pretrained(folder)


def _byte_level_tokenizer(file: GGUFFile) -> Any | None:
    """The tokenizer, where it is byte-level BPE split like GPT-2's; None where it is another."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    data = {key.removeprefix("tokenizer."): value for key, value in file.metadata.items()}
    tokens, merges = data.get("ggml.tokens"), data.get("ggml.merges")
    if data.get("ggml.model") != "gpt2" or data.get("ggml.pre") not in BYTE_LEVEL_SPLITS or not tokens or not merges:
        return None
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    kinds = data.get("ggml.token_type") or [0] * len(tokens)
    if len(kinds) != len(tokens) or not all(set(token) <= alphabet for token in tokens):
        return None
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs: list[Any] = [tuple(merge.split(" ")) for merge in merges]
    rows = file.tensors["token_embd.weight"].shape[0]
    if len(tokens) > rows:
        raise ValueError(f"{len(tokens)} tokens, but an embedding of {rows} rows")
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=pairs, continuing_subword_prefix="", end_of_word_suffix="")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marked = list(zip(tokens, kinds, strict=True))
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, k in marked if k == _CONTROL])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t, k in marked if k == _USER_DEFINED])
    named = {}
    for ours, theirs in _TOKEN_IDS.items():
        index = data.get(f"ggml.{ours}_token_id")
        if type(index) is int and index < len(tokens):
            named[f"{theirs}_token"] = tokens[index]
    start = [named["bos_token"]] if data.get("ggml.add_bos_token") and "bos_token" in named else []
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*start, "$A"],
        pair=[*start, "$A", *(f"{token}:1" for token in start), "$B:1"],
        special_tokens=[(token, vocabulary[token]) for token in start],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=data.get("chat_template"), **named)


def _one_line(file: GGUFFile, what: str, build: Callable[[], Any]) -> Any:
    """Result of `build`; a library's complaint about the file's content becomes a BadGGUF of one line."""
    try:
        return build()
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadGGUF(f"{file.path}: no {what} can be made of it ({first})") from error
