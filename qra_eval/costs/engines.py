"""The least bytes in which each engine can hold a model, known before anything is quantized."""

from __future__ import annotations

from typing import cast

from qra_backends import make_backend

from qra_eval.models.embeddings import find_tables
from qra_eval.models.engine import APART, check_engine
from qra_eval.models.linears import Granularity
from qra_eval.quantized.model import QuantizedModel
from qra_search.engines import ENGINES, Engine
from qra_search.sections import SpaceConfig
from qra_search.space.memory import UNQUANTIZED_BITS


def engine_bytes(model: QuantizedModel) -> dict[str, int | str]:
    """Bytes of the smallest plan that each engine holds, at the ranks of the model's space; or why it takes none."""
    least: dict[str, int | str] = {}
    for name, engine in ENGINES.items():
        try:
            least[name] = _least_bytes(model, name, engine)
        except (ValueError, ImportError) as error:
            least[name] = str(error)
    return least


def _least_bytes(model: QuantizedModel, name: str, engine: Engine) -> int:
    granularity = cast(Granularity, engine.granularity or model.granularity)
    if engine.experts_together and granularity in APART:
        granularity = "fused"
    check_engine(name, model.model.config, linears=model.linears, granularity=granularity)
    tables = find_tables(model.model) if engine.embeddings != (UNQUANTIZED_BITS,) else {}
    config = SpaceConfig(bits=engine.bits, ranks=model.space.groups[0].ranks or model.space.ranks)
    space = model.make_space(config, make_backend(engine.backend), granularity, tables, engine.embeddings)
    return space.memory.minimum
