"""Whether an engine takes a model, and the least bytes in which it holds it; before anything is quantized."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from qra_backends import make_backend

from qra_eval.models.embeddings import find_embeddings
from qra_eval.models.gguf_families import list_family_issues
from qra_eval.models.linears import EXPERT, Granularity
from qra_eval.quantized.model import QuantizedModel
from qra_search.engines import ENGINES, unsupported_reason
from qra_search.sections import SpaceConfig
from qra_search.space.memory import UNQUANTIZED_BITS

APART = ("module", "expert")
"""Granularities at which the experts of a layer choose for themselves."""


def check_engine(name: str, config: Any, *, linears: Iterable[str] = (), granularity: str = "module") -> None:
    """Raises ValueError if an engine cannot take a model.

    Args:
        config: transformers'.
        linears: the searched ones, by name.
        granularity: what of them shares one choice.
    """
    reason = unsupported_reason(name, config.model_type)
    if reason is None and ENGINES[name].format == "gguf":
        reason = "; ".join(list_family_issues(config)) or None
    if (
        reason is None
        and ENGINES[name].experts_together
        and granularity in APART
        and any(map(EXPERT.match, linears))
    ):
        reason = (
            f"engine {name} stores the experts of a layer as one tensor of one type and rank, but granularity "
            f"{granularity} chooses for each of them. Use --granularity fused or layer"
        )
    if reason is not None:
        raise ValueError(reason)


def list_engine_bytes(model: QuantizedModel) -> dict[str, int | str]:
    """Bytes of the smallest plan that each engine holds, at the ranks of the model's space; or why it takes none."""
    least: dict[str, int | str] = {}
    for name, engine in ENGINES.items():
        granularity = cast(Granularity, engine.granularity or model.granularity)
        if engine.experts_together and granularity in APART:
            granularity = "fused"
        config = SpaceConfig(bits=engine.bits, ranks=model.space.groups[0].ranks or model.space.ranks)
        try:
            check_engine(name, model.model.config, linears=model.linears, granularity=granularity)
            tables = find_embeddings(model.model) if engine.embeddings != (UNQUANTIZED_BITS,) else {}
            space = model.make_space(
                config, make_backend(engine.backend), granularity, tables, engine.embeddings
            )
            least[name] = space.memory.minimum
        except (ValueError, ImportError) as error:
            least[name] = str(error)
    return least
