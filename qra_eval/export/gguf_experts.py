"""A mixture's experts in a GGUF file: those of a layer are one tensor for each kind of linear, and so have one type."""

from __future__ import annotations

import re

from qra_eval.export.tuned import Chosen, TunedRun

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)")


def stacked_experts(run: TunedRun) -> dict[str, list[list[Chosen]]]:
    """By the path of a layer's experts, the linears of each kind in the order of the experts."""
    found: dict[str, dict[str, list[Chosen]]] = {}
    for linear in run.linears:
        match = _EXPERT.fullmatch(linear.name)
        if match is not None:
            found.setdefault(match[1], {}).setdefault(match[3], []).append(linear)
    return {path: list(kinds.values()) for path, kinds in found.items()}


def expert_reasons(run: TunedRun) -> list[str]:
    """Why experts do not go into one tensor: their levels or ranks differ."""
    levels = {group["name"]: (group["bits"], group["rank"]) for group in run.plan["groups"]}
    uneven = [
        linears[0].name
        for kinds in stacked_experts(run).values()
        for linears in kinds
        if len({levels[linear.group] for linear in linears}) > 1
    ]
    if not uneven:
        return []
    return [
        f"llama.cpp has the experts of a layer in one tensor, of one type and rank, and they differ in {len(uneven)} "
        f"cases, such as those of {uneven[0]}: search with --granularity fused, or layer"
    ]
