"""Search spaces with the shapes of a real decoder, SmolLM2-135M, for landscapes that need no model."""

from __future__ import annotations

from qra_search.space.space import DEFAULT_BITS, DEFAULT_RANKS, Group, Linear, SearchSpace

HIDDEN, QUERIES, KEYS, INNER = 576, 576, 192, 1536
"""Widths of one layer: residual stream, query heads together, key heads together, feed-forward."""
HEAD = 64
LEAST_WIDTH, MOST_WIDTH = 0.5, 4.0
"""Uneven layers: feed-forward width from half to four times the even one, first to last layer, and heads in step from a
half to one, as in decoders with layer-wise scaling."""

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
KINDS: dict[str, dict[str, tuple[str, ...]]] = {
    "module": {kind: (kind,) for kind in LINEARS},
    "fused": {
        "qkv": ("q_proj", "k_proj", "v_proj"),
        "o_proj": ("o_proj",),
        "gate_up": ("gate_proj", "up_proj"),
        "down_proj": ("down_proj",),
    },
    "layer": {"layer": LINEARS},
}
"""Granularity to the kinds of its groups, each with the linears that it holds."""


def make_space(
    layers: int = 32,
    granularity: str = "layer",
    *,
    uneven: bool = False,
    bits: tuple[int, ...] = DEFAULT_BITS,
    ranks: tuple[int, ...] = DEFAULT_RANKS,
) -> SearchSpace:
    """The exact search space of a decoder with this many layers.

    Raises:
        ValueError: fewer than one layer, or an unknown granularity.
    """
    if layers < 1:
        raise ValueError(f"layers must be at least 1, got {layers}")
    if granularity not in KINDS:
        raise ValueError(f"granularity must be one of {', '.join(KINDS)}, got {granularity!r}")
    groups = []
    for depth in range(layers):
        linears = _linears(depth, depth / max(layers - 1, 1) if uneven else None)
        for kind, members in KINDS[granularity].items():
            name = f"layers.{depth}" if granularity == "layer" else f"layers.{depth}.{kind}"
            groups.append(Group(name=name, linears=tuple(linears[m] for m in members), kind=kind, depth=depth))
    return SearchSpace(groups=tuple(groups), bits=bits, ranks=ranks)


def _linears(depth: int, relative: float | None) -> dict[str, Linear]:
    """The seven linears of a layer; of uneven widths at a relative depth from 0 to 1."""
    queries, keys, inner = QUERIES, KEYS, INNER
    if relative is not None:
        heads, wide = 0.5 + 0.5 * relative, LEAST_WIDTH + (MOST_WIDTH - LEAST_WIDTH) * relative
        queries, keys, inner = (
            max(HEAD, round(x / HEAD) * HEAD) for x in (queries * heads, keys * heads, inner * wide)
        )
    sizes = {
        "q_proj": ("self_attn", queries, HIDDEN),
        "k_proj": ("self_attn", keys, HIDDEN),
        "v_proj": ("self_attn", keys, HIDDEN),
        "o_proj": ("self_attn", HIDDEN, queries),
        "gate_proj": ("mlp", inner, HIDDEN),
        "up_proj": ("mlp", inner, HIDDEN),
        "down_proj": ("mlp", HIDDEN, inner),
    }
    return {
        kind: Linear(name=f"model.layers.{depth}.{block}.{kind}", out_features=out, in_features=in_)
        for kind, (block, out, in_) in sizes.items()
    }
