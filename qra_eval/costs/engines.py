"""The least bytes in which each engine can hold a model, known before anything is quantized."""

from __future__ import annotations

from qra_backends import make_backend

from qra_eval.models.embeddings import known_tables
from qra_eval.models.engine import APART, check_engine
from qra_eval.models.linears import FoundLinear, group_linears
from qra_eval.quantized.bank import tensor_bytes, weight_bytes
from qra_eval.quantized.model import QuantizedModel
from qra_eval.quantized.space import model_space, table_levels
from qra_search.config import SpaceConfig
from qra_search.engines import ENGINES, Engine
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
    granularity = engine.granularity or model.granularity
    if engine.experts_together and granularity in APART:
        granularity = "fused"
    check_engine(name, model.model.config, linears=model.linears, granularity=granularity)
    backend = make_backend(engine.backend)
    searched = known_tables(model.model) if engine.embeddings != (UNQUANTIZED_BITS,) else []
    tables = {t.name: (t.linear, table_levels(engine.embeddings, backend, t.linear)) for t in searched}
    found = [
        FoundLinear(n, model.layer_of[n], n.rpartition(".")[2], m, m.out_features, m.in_features)
        for n, m in model.linears.items()
    ]
    dense = weight_bytes([*model.linears.values(), *(table.linear for table in searched)])
    space = model_space(
        group_linears(found, granularity), granularity,  # type: ignore[arg-type]
        SpaceConfig(bits=engine.bits, ranks=model.space.groups[0].ranks or model.space.ranks), backend,
        fixed_bytes=tensor_bytes(model.model) - dense, tables=tables, depth=len(model.blocks),
    )  # fmt: skip
    return space.memory.minimum
