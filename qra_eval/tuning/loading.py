"""The model of a tuning's folder: its quantized base, and the PEFT adapter on it; and one prompt answered by it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import torch
from qra_backends import make_backend
from safetensors import SafetensorError, safe_open

from qra_eval.models.device import resolve_device
from qra_eval.models.embeddings import place_embeddings, replace_embeddings
from qra_eval.models.linears import find_linears, keep_expert_names
from qra_eval.models.load import load_model
from qra_eval.quantized.bank import open_tensors
from qra_eval.quantized.generation import prepare_generate
from qra_eval.tasks.encoding import encode_prompt
from qra_eval.tasks.scoring import generate_answers
from qra_search.app.folder import RunFolder
from qra_search.app.tuning_folder import ADAPTER_FOLDER, BASE_FILE
from qra_search.errors import BadInput
from qra_search.files import read_json
from qra_search.schemas import LevelName
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.serialization import PLAN_NAME, read_plan_file

BASE_DIGEST = "qra_base"
"""Name of the digest of the quantized base, in PEFT's config (among what it keeps for others) and in the plan."""
UNTUNED_KEY = "untuned"
"""Set in the plan of a folder that has a quantized base alone, as `qra export --untuned` makes one to read."""
NO_BASE_MODEL = (
    "the base of this adapter is quantized by qra. Load both with qra_eval.load, or write them for "
    "other tools with qra export"
)
"""In place of the model's name, on which the adapter would load without a word, and compute something else: refused by
the hub's client at once, as no name of a model, and shown."""

OnText = Callable[[str], None]
LAZY_LIBRARIES = ("peft", "numba")
"""Imported when they are first needed, 320 MiB that are not the model's."""


def load(
    folder: str | Path,
    *,
    tuning: str | None = None,
    adapter: str | Path | None = None,
    device: str = "auto",
    weights: str = "auto",
) -> Any:
    """A tuned model, exactly as it was after tuning: (peft model, tokenizer).

    Args:
        folder: of a run, or of one tuning.
        tuning: of a run: an id, `uniform`, `shuffled` or `16-bit`; default: what is to be deployed.
        adapter: folder of another adapter for the same base, such as one that `Trainer` went on with.
        device: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:1`.
        weights: what `generate` multiplies by. `codes`: those as they are stored, with no weight decoded whole if its
            level has a product of its own (trellis codes). `decoded`: 16-bit weights, kept from its first call on.
            `auto`: codes, but levels without a product of their own are kept decoded if memory allows.

    Raises:
        ValueError: no plan or adapter there, a damaged file, or the model's weights are not those that the plan was
            made for.
    """
    from peft import PeftModel

    folder = find_tuning(Path(folder), tuning)
    plan = read_tuned_plan(folder)
    adapter = check_adapter(folder / ADAPTER_FOLDER if adapter is None else Path(adapter))
    model, tokenizer = load_base(folder, device=device, weights=weights)
    keep_expert_names(model)
    tuned = PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=False)
    config = tuned.peft_config["default"]
    base = (config.auto_mapping or {}).get(BASE_DIGEST)
    if base is not None and base != plan.get(BASE_DIGEST, base):
        warnings.warn(
            f"the adapter in {adapter} was trained on another base model than the one in {folder}: its answers may "
            "be worse",
            stacklevel=2,
        )
    if config.base_model_name_or_path == NO_BASE_MODEL:
        config.base_model_name_or_path = None  # PEFT warns of a name that it does not find, whenever it saves
    # The factors are saved in bfloat16, or made float32 by peft on a base whose codes are integers: peft would compute
    # in their dtype, and the tuned model did in its own.
    dtype = getattr(torch, plan["dtype"])
    for name, parameter in tuned.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(dtype)
    tuned.eval()
    return tuned, tokenizer


def load_base(
    folder: str | Path,
    *,
    plan: Mapping[str, Any] | None = None,
    device: str = "auto",
    weights: str = "auto",
) -> tuple[Any, Any]:
    """The quantized base of a tuned plan, and its tokenizer; takes and raises what `load` does.

    Args:
        plan: what the folder's `plan.json` holds, if it was read.
    """
    folder, place = find_tuning(Path(folder)), resolve_device(device)
    data = read_tuned_plan(folder) if plan is None else plan
    loaded = load_model(data["model"], dtype=getattr(torch, data["dtype"]), device=place, stream=True)
    if loaded.fingerprint != data["weights"]:
        raise ValueError(
            f"the weights of {data['model']} (digest {loaded.fingerprint}) are not those the plan was made for "
            f"({data['weights']}): restore them, or plan again"
        )
    model = loaded.model
    levels = read_levels(data)
    tables = levels.keys() - {found.name for found in find_linears(model)}
    place_embeddings(model, place, {name for name in tables if levels[name] != UNQUANTIZED_BITS})
    install_quantized_weights(model, data["backend"], levels, [folder / BASE_FILE], place, weights)
    return model, loaded.tokenizer


def find_tuning(folder: Path, tuning: str | None = None) -> Path:
    """The folder of a run's tuning, or, if it is no run's, the folder itself."""
    run = RunFolder(folder)
    return (
        run.read().find_tuning(tuning).path if tuning is not None or run.tunings_folder.is_dir() else folder
    )


def read_tuned_plan(folder: Path) -> dict[str, Any]:
    """What the `plan.json` of a tuning holds; raises BadInput if the folder holds nothing tuned."""
    data = read_plan_file(folder) if folder.is_dir() else {}
    needed = (PLAN_NAME, BASE_FILE) if data.get(UNTUNED_KEY) else (PLAN_NAME, BASE_FILE, ADAPTER_FOLDER)
    missing = [name for name in needed if not (folder / name).exists()]
    if missing or not {"dtype", "backend", "model", "weights"} <= data.keys():
        raise BadInput(f"{folder} has no tuned plan ({', '.join(missing)}): run `qra finetune` first")
    return data


def check_adapter(folder: Path) -> Path:
    """A folder that holds an adapter of PEFT. Raises BadInput if it holds none, or one of its files is damaged."""
    config, tensors = read_json(folder / "adapter_config.json"), folder / "adapter_model.safetensors"
    if not isinstance(config, dict) or "peft_type" not in config:
        raise BadInput(
            f"{folder} has no PEFT adapter (adapter_config.json): give the folder that PEFT saved it in"
        )
    if not tensors.is_file():
        raise BadInput(f"{folder} lacks {tensors.name}: restore it, or tune anew")
    try:
        with safe_open(tensors, "np"):
            return folder
    except SafetensorError as error:
        raise BadInput(f"{tensors} is damaged ({error}): restore it, or tune anew") from None


def read_levels(plan: Mapping[str, Any]) -> dict[str, LevelName]:
    """The level of every linear and table, of a plan's file."""
    return {name: group["bits"] for group in plan["groups"] for name in group["linears"]}


def install_quantized_weights(
    model: Any,
    spec: Any,
    levels: Mapping[str, LevelName],
    files: Sequence[str | Path],
    device: torch.device,
    weights: str = "auto",
) -> None:
    """Put what is stored of linears and tables in place of a model's own, which may be on the meta device, for good.

    Args:
        files: that hold the tensors, each as `NAME::TENSOR`; others may be in them.

    Raises:
        BadInput: the tensors of a quantized weight are in none of the files.
    """
    backend, found_linears = make_backend(spec), find_linears(model)
    stored: dict[str, dict[str, torch.Tensor]] = {}
    for path in files:
        file = open_tensors(path, device=str(device))
        for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
            name, found, tensor = key.rpartition("::")
            if found:
                stored.setdefault(name, {})[tensor] = file.get_tensor(key)

    lacking = [name for name, bits in levels.items() if bits != UNQUANTIZED_BITS and name not in stored]
    if lacking:
        raise BadInput(
            f"{files[0]} is damaged, it lacks the tensors of {lacking[0]}: restore it, or tune anew"
        )

    def make_module(name: str, like: torch.nn.Linear) -> torch.nn.Module | None:
        tensors = stored.pop(name, None)
        if tensors is None:
            return None
        shape = {"out_features": like.out_features, "in_features": like.in_features}
        return backend.from_tensors(
            tensors, bits=levels[name], **shape, bias=like.bias, dtype=like.weight.dtype
        )

    names = []
    for found in found_linears:
        made = make_module(found.name, found.module)
        if made is None:
            found.module.to(device)
        else:
            model.set_submodule(found.name, made)
            names.append(found.name)
    if stored:
        replace_embeddings(model, backend, make_module, device)
    model.requires_grad_(False)
    prepare_generate(model, backend, names, weights)


# -- one answer, greedily and streamed, with its speed and the memory that it took ---------------
@dataclass(frozen=True)
class Generation:
    """An answer, and what it took.

    Attributes:
        tokens_per_second: of the answer but its first token, which waits for the prompt; 0 for fewer than two.
        resident_bytes: most that the process held after a token, beyond what it held before the model was loaded.
    """

    text: str
    tokens: int
    tokens_per_second: float
    resident_bytes: int


class AnswerMeter:
    """Collects an answer as its tokens come; made before the model is loaded."""

    def __init__(self, on_text: OnText | None = None):
        self._on_text = on_text
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self._most = self._before
        self._text = ""
        self._times: list[float] = []

    def count_token(self) -> None:
        self._times.append(time.perf_counter())
        self._most = max(self._most, self._process.memory_info().rss)

    def add_text(self, text: str) -> None:
        self._text += text
        if self._on_text is not None:
            self._on_text(text)

    def finish(self) -> Generation:
        count = len(self._times)
        rate = (count - 1) / (self._times[-1] - self._times[0]) if count > 1 else 0.0
        return Generation(self._text, count, rate, self._most - self._before)


def generate(
    folder: str | Path, prompt: str, *, tokens: int = 256, on_text: OnText | None = None, **options: Any
) -> Generation:
    """Answer a prompt in transformers, greedily, until the model ends its answer or has written `tokens` tokens.

    Args:
        prompt: as the model gets it, without a chat template.
        on_text: called with each piece of the answer as it comes.
        options: of `load`.
    """
    for library in LAZY_LIBRARIES:
        import_module(library)
    meter = AnswerMeter(on_text)
    model, tokenizer = load(folder, **options)
    ids, streamer = encode_prompt(tokenizer, prompt), _make_streamer(tokenizer, meter)
    generate_answers(model, tokenizer, [ids], tokens, streamer=streamer)
    return meter.finish()


def _make_streamer(tokenizer: Any, meter: AnswerMeter) -> Any:
    """Gives a meter the tokens that `generate` finds, and their text by whole words."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def put(self, value: Any) -> None:
            if not self.next_tokens_are_prompt:
                meter.count_token()
            super().put(value)

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            meter.add_text(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
