"""Which engines take a plan as it is: its levels are what they store, and its adapter has room in them."""

from __future__ import annotations

from qra_search.config import RunConfig
from qra_search.engines import ENGINES, FUSED, Engine
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import Plan, SearchSpace

BESIDE = "in Python, by qra_eval.load, and in transformers and vLLM beside this package"
"""Where plans run that no engine's own kernels take."""


def find_engines(config: RunConfig, space: SearchSpace | None = None, plan: Plan | None = None) -> list[str]:
    """Names of the engines that store weights as the config's backend does, and take the plan's own levels.

    A plan without a quantized linear is none's own.
    """
    given = config.quantization.backend
    backend = given if isinstance(given, str) else given.get("name")  # type: ignore[call-overload]
    engines = {name: engine for name, engine in ENGINES.items() if f"{backend}-".startswith(f"{engine.backend}-")}
    return [name for name, engine in engines.items() if space is None or plan is None or _takes(engine, space, plan)]


def engines_text(config: RunConfig, space: SearchSpace | None = None, plan: Plan | None = None) -> str:
    """Where a plan runs, or, before there is one, where plans of the config will, with what to do for an engine."""
    engines, options = find_engines(config, space, plan), "|".join(ENGINES)
    if plan is None:
        own = f"in {' and '.join(engines)}, if it takes the plan's choices"
        return own if engines else f"{BESIDE}; in an engine's own kernels with --engine {options}"
    if engines:
        return f"Runs as it is in {' and '.join(engines)}: qra export writes a copy of it."
    return f"Runs {BESIDE} (qra export). An engine's own kernels need a plan made with --engine {options}."


def _takes(engine: Engine, space: SearchSpace, plan: Plan) -> bool:
    widths = {level.name: level.width for level in space.levels}
    quantized = False
    for group, name in zip(space.groups, plan.bits, strict=True):
        if widths[name] == UNQUANTIZED_BITS:
            continue
        if widths[name] not in (engine.embeddings if group.is_embedding else engine.bits):
            return False
        quantized = quantized or not group.is_embedding
    if engine.ranks is not None and max(plan.ranks) > max(engine.ranks):
        return False
    return quantized and (engine.granularities is None or _even(space, plan))


def _even(space: SearchSpace, plan: Plan) -> bool:
    """Whether linears that are run as one matrix have one level."""
    seen: dict[tuple[str, str], object] = {}
    for group, level in zip(space.groups, plan.bits, strict=True):
        for linear in group.linears:
            parent, _, kind = linear.name.rpartition(".")
            for fused, kinds in FUSED:
                if kinds.fullmatch(kind) and seen.setdefault((parent, fused), level) != level:
                    return False
    return True
