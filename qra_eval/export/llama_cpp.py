"""llama.cpp itself, on the CPU, from the package llama-cpp-py-sync: what it computes of an exported model."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qra_eval.tuning.loading import AnswerMeter, Generation, OnText

F32, NO_FLASH = 0, 0
"""GGML_TYPE_F32 and LLAMA_FLASH_ATTN_TYPE_DISABLED: flash attention would cast keys and values to float16."""


def compute_logits(model: Path, adapter: Path | None, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits float32 (tokens, vocabulary) of every prompt of token ids, each in a context of its own on one thread.

    Keys and values are kept in float32; `llama-server` keeps them in float16 unless it is told otherwise. Raises
    RuntimeError if llama.cpp cannot load or run the files.
    """
    with load_file(model) as (ffi, lib, loaded):
        return [_decode(ffi, lib, loaded, adapter, prompt) for prompt in prompts]


@contextmanager
def load_file(model: Path, **options: Any) -> Iterator[tuple[Any, Any, Any]]:
    """The bindings and a model, with options of `llama_model_params` and without llama.cpp's messages."""
    from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

    ffi = get_ffi()
    lib = get_lib()
    # What fails is seen by what it returns; the callback must live as long as it is set.
    silence = ffi.callback("void(enum ggml_log_level, const char *, void *)", lambda level, text, data: None)
    lib.llama_log_set(silence, ffi.NULL)
    lib.llama_backend_init()
    settings = lib.llama_model_default_params()
    settings.n_gpu_layers = 0
    for name, value in options.items():
        setattr(settings, name, value)
    loaded = lib.llama_model_load_from_file(str(model).encode(), settings)
    try:
        if loaded == ffi.NULL:
            raise RuntimeError(
                f"llama.cpp cannot load {model}: it is damaged, or of a model that this llama.cpp does not know"
            )
        yield ffi, lib, loaded
    finally:
        lib.llama_model_free(loaded)
        lib.llama_log_set(ffi.NULL, ffi.NULL)


@contextmanager
def open_context(ffi: Any, lib: Any, model: Any, adapter: Path | None, **options: Any) -> Iterator[Any]:
    """A context of a loaded model with an adapter, and with options of `llama_context_params`."""
    settings = lib.llama_context_default_params()
    for name, value in options.items():
        setattr(settings, name, value)
    context = lib.llama_init_from_model(model, settings)
    if context == ffi.NULL:
        raise RuntimeError(f"llama.cpp cannot hold {settings.n_ctx} tokens of text in memory: ask for fewer")
    try:
        if adapter is not None:
            lora = lib.llama_adapter_lora_init(model, str(adapter).encode())
            if lora == ffi.NULL:
                raise RuntimeError(
                    f"llama.cpp cannot load the adapter {adapter}: it is damaged, or made for another model"
                )
            loras = ffi.new("struct llama_adapter_lora *[]", [lora])
            scale = ffi.new("float[]", [1.0])
            if lib.llama_set_adapters_lora(context, loras, 1, scale):
                raise RuntimeError(
                    f"llama.cpp cannot apply the adapter {adapter}: was it made for another model?"
                )
        yield context
    finally:
        lib.llama_free(context)


def _decode(ffi: Any, lib: Any, model: Any, adapter: Path | None, prompt: Sequence[int]) -> Tensor:
    count = len(prompt)
    vocabulary = lib.llama_n_vocab(lib.llama_model_get_vocab(model))
    size = max(count, 32)
    options = {"n_ctx": size, "n_batch": size, "n_ubatch": size, "n_threads": 1, "n_threads_batch": 1}
    options |= {"type_k": F32, "type_v": F32, "flash_attn_type": NO_FLASH}
    with open_context(ffi, lib, model, adapter, **options) as context:
        batch = lib.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for place, token in enumerate(prompt):
            batch.token[place] = token
            batch.pos[place] = place
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = 0
            batch.logits[place] = 1
        try:
            if lib.llama_decode(context, batch):
                raise RuntimeError(
                    f"llama.cpp failed on a test row of {count} tokens: lower training.max_length"
                )
            raw = ffi.buffer(lib.llama_get_logits(context), 4 * count * vocabulary)
            return torch.from_numpy(np.frombuffer(raw, dtype=np.float32).copy()).view(count, vocabulary)
        finally:
            lib.llama_batch_free(batch)


def generate(
    model: Path,
    adapter: Path | None,
    prompt: str,
    *,
    tokens: int,
    on_text: OnText | None = None,
    threads: int = 0,
) -> Generation:
    """Answer a prompt greedily, with llama.cpp's own tokenizer and otherwise its defaults.

    Args:
        threads: 0: as many as torch has.

    Raises:
        RuntimeError: llama.cpp cannot load or run the files.
    """
    meter, threads = AnswerMeter(on_text), threads or torch.get_num_threads()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may be several tokens
    with load_file(model) as (ffi, lib, loaded):
        vocabulary = lib.llama_model_get_vocab(loaded)
        text = prompt.encode()
        room = len(text) + 2
        ids = ffi.new("llama_token[]", room)
        count = lib.llama_tokenize(vocabulary, text, len(text), ids, room, True, True)
        options = {"n_ctx": count + tokens, "n_threads": threads, "n_threads_batch": threads}
        with open_context(ffi, lib, loaded, adapter, **options) as context:
            sampler, piece = lib.llama_sampler_init_greedy(), ffi.new("char[]", 256)
            for _ in range(tokens):
                if lib.llama_decode(context, lib.llama_batch_get_one(ids, count)):
                    raise RuntimeError(
                        "llama.cpp failed on the prompt: try a shorter one, or --engine transformers"
                    )
                count, ids[0] = 1, lib.llama_sampler_sample(sampler, context, -1)
                meter.count_token()
                if lib.llama_vocab_is_eog(vocabulary, ids[0]):
                    break
                size = lib.llama_token_to_piece(vocabulary, ids[0], piece, len(piece), 0, False)
                meter.add_text(decoder.decode(bytes(ffi.buffer(piece, size))))
            lib.llama_sampler_free(sampler)
    meter.add_text(decoder.decode(b"", final=True))
    return meter.finish()
