"""Fused shards: linears that inference engines run as one matrix, and which must then have one bit-width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qra_eval.export.tuned import Chosen
from qra_search.engines import FUSED
from qra_search.space.memory import UNQUANTIZED_BITS

CHOICES = ("refuse", "widen", "ignore")


def fused_shards(linears: Sequence[Chosen]) -> dict[str, list[Chosen]]:
    """q, k and v of one attention, gate and up of one feed-forward: those of more than one, by the fused name."""
    found: dict[str, list[Chosen]] = {}
    for linear in linears:
        parent, _, kind = linear.name.rpartition(".")
        for fused, kinds in FUSED:
            if kinds.fullmatch(kind):
                found.setdefault(f"{parent}.{fused}_proj", []).append(linear)
    return {name: members for name, members in found.items() if len(members) > 1}


def uneven(linears: Sequence[Chosen], bits: Mapping[str, int]) -> list[str]:
    """The fused matrices whose shards have different bits, each as one text."""
    texts = []
    for name, members in fused_shards(linears).items():
        if len({bits[m.name] for m in members}) > 1:
            parts = ", ".join(f"{m.name.rpartition('.')[2]} {bits[m.name]}" for m in members)
            texts.append(f"{name} ({parts} bits)")
    return texts


def widened(linears: Sequence[Chosen], bits: Mapping[str, int]) -> dict[str, int]:
    """Bits with every shard raised to the widest of its fused matrix."""
    raised = dict(bits)
    for members in fused_shards(linears).values():
        widest = max(bits[m.name] for m in members)
        raised.update({m.name: widest for m in members})
    return raised


def target_bits(
    linears: Sequence[Chosen], allowed: Sequence[int], shards: str
) -> tuple[dict[str, int], list[str], list[str]]:
    """Bits of every linear in a format: its own, or the next width that the format allows.

    Args:
        allowed: widths that the format holds; unquantized linears stay so.
        shards: what to do about uneven fused shards: refuse, widen the narrower ones, or ignore it.

    Returns:
        bits by linear, reasons for refusing, notes.
    """
    if shards not in CHOICES:
        raise ValueError(f"shards must be one of {', '.join(CHOICES)}, got {shards!r}")
    reasons, notes, bits = [], [], {}
    for linear in linears:
        fitting = [b for b in sorted(allowed) if b >= linear.bits]
        if linear.bits == UNQUANTIZED_BITS:
            bits[linear.name] = UNQUANTIZED_BITS
        elif fitting:
            bits[linear.name] = fitting[0]
        else:
            reasons.append(
                f"{linear.name} has {linear.bits} bits, and only {', '.join(map(str, sorted(allowed)))} can be "
                "written: tune a plan with other bits"
            )
            bits[linear.name] = linear.bits
    raised = [linear for linear in linears if bits[linear.name] != linear.bits]
    if raised and not reasons:
        widths = sorted({(linear.bits, bits[linear.name]) for linear in raised})
        notes.append(
            f"{len(raised)} linears are stored wider than the plan has them, at the next width that can be written: "
            + ", ".join(f"{a} bits as {b}" for a, b in widths)
        )
    texts = uneven(linears, bits)
    if texts and shards == "refuse":
        reasons.append(
            f"{len(texts)} fused matrices have shards of different bits, such as {texts[0]}, which an engine that "
            "fuses them cannot load: search with `granularity: fused`, or export with shards=widen (the narrower ones "
            "are stored wider) or shards=ignore (transformers only)"
        )
    elif texts and shards == "widen":
        bits = widened(linears, bits)
        notes.append(f"{len(texts)} fused matrices had shards of different bits: the narrower ones are stored wider")
    elif texts:
        notes.append(
            f"{len(texts)} fused matrices have shards of different bits, such as {texts[0]}: engines that fuse them, "
            "as vLLM does, cannot load this"
        )
    return bits, reasons, notes
