"""Which device a text names, and one clear line if it is not to be had, before anything is loaded on it."""

from __future__ import annotations

import re

import torch

from qra_search.errors import BadInput, shortened

FORMS = "auto, cpu, cuda or cuda:1"


def resolve_device(text: str) -> torch.device:
    """The device that a text names; `auto` is a GPU if torch sees one.

    Raises:
        BadInput: no device of that form, or torch has none such.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto":
        return torch.device("cuda" if count else "cpu")
    if text == "cpu":
        return torch.device("cpu")
    found = re.fullmatch(r"cuda(?::(\d+))?", text)
    if found is None:
        raise BadInput(f"device is {shortened(text)}: {FORMS} is needed")
    if not count:
        built = "" if torch.backends.cuda.is_built() else " was built without CUDA"
        raise BadInput(
            f"device {text!r}: no CUDA device is visible to torch here (torch {torch.__version__}{built}): "
            f"use --device cpu"
        )
    if found[1] is not None and int(found[1]) >= count:
        last = f", cuda:0 to cuda:{count - 1}" if count > 1 else ", cuda:0"
        raise BadInput(f"device {text!r}: torch sees {count} CUDA device{'s' if count > 1 else ''} here{last}")
    return torch.device(text)
