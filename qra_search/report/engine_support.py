"""Which engines take a plan as it is: its levels are what they store, and its adapter has room in them."""

from __future__ import annotations

from qra_search.config import RunConfig
from qra_search.engines import ENGINES, FUSED, Engine
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import Plan, SearchSpace

BESIDE = "in Python, by qra_eval.load, and in transformers and vLLM beside this package"
"""Where plans run that no engine's own kernels take."""


def takers(config: RunConfig, space: SearchSpace, plan: Plan) -> tuple[str, ...]:
    """Names of the engines whose own levels are the plan's, if they take the model at all.

    A plan without a quantized linear is none's own.
    """
    return tuple(name for name in storing(config) if _takes(ENGINES[name], space, plan))


def storing(config: RunConfig) -> tuple[str, ...]:
    """Names of the engines that store weights as the config's backend does."""
    given = config.quantization.backend
    backend = given if isinstance(given, str) else given.get("name")  # type: ignore[call-overload]
    return tuple(name for name, engine in ENGINES.items() if f"{backend}-".startswith(f"{engine.backend}-"))


def storing_text(config: RunConfig) -> str:
    """Where plans of a config will run, before there is one."""
    if found := storing(config):
        return f"in {' and '.join(found)}, if it takes the plan's choices"
    return f"{BESIDE}; in an engine's own kernels with --engine {'|'.join(ENGINES)}"


def takers_text(config: RunConfig, space: SearchSpace, plan: Plan) -> str:
    """The same in words, with what to do if there is none."""
    found = takers(config, space, plan)
    if found:
        return f"Runs as it is in {' and '.join(found)}: qra export writes a copy of it."
    return f"Runs {BESIDE} (qra export). An engine's own kernels need a plan made with --engine {'|'.join(ENGINES)}."


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
