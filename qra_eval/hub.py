"""One quick question to the hub before its libraries, which retry for half a minute without a network, are asked."""

from __future__ import annotations

from typing import Literal

from qra_search.errors import first_line

SECONDS = 10.0
"""How long an answer is waited for."""


def unavailable_reason(kind: Literal["model", "dataset"], name: str) -> str | None:
    """Why the hub does not give a model or a data set; None if it does, or if HF_HUB_OFFLINE says not to ask."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        api = HfApi()
        (api.model_info if kind == "model" else api.dataset_info)(name, timeout=SECONDS)
    except OfflineModeIsEnabled:
        return None
    except RepositoryNotFoundError:
        return "it has none of that name, or it is private"
    except Exception as error:  # whatever the network, the hub or its client raises
        return first_line(error)
    return None
