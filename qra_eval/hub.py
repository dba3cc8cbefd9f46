"""One quick question to the hub, before libraries are loaded that would ask it again and again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

SECONDS = 10.0
"""How long its answer is waited for."""
Kind = Literal["model", "dataset"]


def refusal(kind: Kind, name: str) -> str | None:
    """Why the hub does not give a model or a data set, in a few words; None if it does, or if it was downloaded before.

    Without a network it takes no longer than `SECONDS`, where loading retries for half a minute.
    """
    reason = unanswered(kind, name)
    return None if reason is None or downloaded(kind, name) else reason


def unanswered(kind: Kind, name: str) -> str | None:
    """Why the hub says nothing of a model or a data set; None if it has it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        api = HfApi()
        (api.model_info if kind == "model" else api.dataset_info)(name, timeout=SECONDS)
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except RepositoryNotFoundError:
        return "it has none of that name, or it is private"
    except Exception as error:  # whatever the network, the hub or its client raises
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


def downloaded(kind: Kind, name: str) -> bool:
    """Whether the cache holds something of a model or a data set."""
    from huggingface_hub import constants

    if (Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}").is_dir():
        return True
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    # There `Owner/SomeName` is Owner___some_name.
    wanted = name.replace("/", "").replace("_", "").lower()
    return kind == "dataset" and any(p.name.replace("_", "").lower() == wanted for p in prepared.glob("*"))
