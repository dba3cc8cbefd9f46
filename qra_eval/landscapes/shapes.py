"""Search spaces with the shapes of real decoders, for landscapes that need no model."""

from __future__ import annotations

from dataclasses import dataclass

from qra_search.space.space import DEFAULT_BITS, DEFAULT_RANKS, Group, Linear, SearchSpace


@dataclass(frozen=True)
class Shape:
    """Widths of one decoder layer: residual stream, query heads together, key heads together, feed-forward."""

    hidden: int
    queries: int
    keys: int
    inner: int


SHAPES = {
    "smollm2": Shape(576, 576, 192, 1536),  # SmolLM2-135M
    "llama": Shape(2048, 2048, 512, 8192),  # Llama-3.2-1B
    "tiny": Shape(64, 64, 64, 128),
}

KINDS: dict[str, dict[str, tuple[str, ...]]] = {
    "module": {kind: (kind,) for kind in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")},
    "fused": {
        "qkv": ("q_proj", "k_proj", "v_proj"),
        "o_proj": ("o_proj",),
        "gate_up": ("gate_proj", "up_proj"),
        "down_proj": ("down_proj",),
    },
    "layer": {"layer": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")},
}
"""Granularity to the kinds of its groups, each with the linears that it holds."""
GRANULARITIES = tuple(KINDS)

HEAD = 64
LEAST_WIDTH, MOST_WIDTH = 0.5, 4.0
"""Uneven layers: feed-forward width from half to four times the even one, first to last layer, and queries in
step from a half to one, as in decoders with layer-wise scaling."""


def layer_shape(shape: Shape, depth: float, uneven: bool) -> Shape:
    """Widths of the layer at relative depth 0 to 1."""
    if not uneven:
        return shape
    inner = shape.inner * (LEAST_WIDTH + (MOST_WIDTH - LEAST_WIDTH) * depth)
    heads = 0.5 + 0.5 * depth
    return Shape(
        shape.hidden,
        max(HEAD, round(shape.queries * heads / HEAD) * HEAD),
        max(HEAD, round(shape.keys * heads / HEAD) * HEAD),
        max(HEAD, round(inner / HEAD) * HEAD),
    )


def make_space(
    layers: int = 32,
    granularity: str = "layer",
    shape: str = "smollm2",
    *,
    uneven: bool = False,
    bits: tuple[int, ...] = DEFAULT_BITS,
    ranks: tuple[int, ...] = DEFAULT_RANKS,
) -> SearchSpace:
    """The exact search space of a decoder with this many layers.

    Raises:
        ValueError: fewer than one layer, or an unknown granularity or shape.
    """
    if layers < 1:
        raise ValueError(f"layers must be at least 1, got {layers}")
    if granularity not in KINDS:
        raise ValueError(f"granularity must be one of {', '.join(KINDS)}, got {granularity!r}")
    if shape not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")
    groups = []
    for depth in range(layers):
        linears = _linears(depth, layer_shape(SHAPES[shape], depth / max(layers - 1, 1), uneven))
        for kind, members in KINDS[granularity].items():
            name = f"layers.{depth}" if granularity == "layer" else f"layers.{depth}.{kind}"
            groups.append(Group(name=name, linears=tuple(linears[m] for m in members), kind=kind, depth=depth))
    return SearchSpace(groups=tuple(groups), bits=bits, ranks=ranks)


def _linears(depth: int, s: Shape) -> dict[str, Linear]:
    sizes = {
        "q_proj": ("self_attn", s.queries, s.hidden),
        "k_proj": ("self_attn", s.keys, s.hidden),
        "v_proj": ("self_attn", s.keys, s.hidden),
        "o_proj": ("self_attn", s.hidden, s.queries),
        "gate_proj": ("mlp", s.inner, s.hidden),
        "up_proj": ("mlp", s.inner, s.hidden),
        "down_proj": ("mlp", s.hidden, s.inner),
    }
    return {
        kind: Linear(name=f"model.layers.{depth}.{block}.{kind}", out_features=out, in_features=in_)
        for kind, (block, out, in_) in sizes.items()
    }
