"""Sensitivities learnt from another run: of the same model at another budget or seed, or a sibling of like layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qra_search.evaluation.sensitivities import Sensitivities
from qra_search.log.errors import LogMismatch
from qra_search.log.recorded import recorded_state
from qra_search.log.state import StudyState
from qra_search.log.trial_log import TrialLog
from qra_search.space.space import Group, SearchSpace
from qra_search.strategies.base import mean_estimates
from qra_search.surrogates.scales import fit_scales
from qra_search.surrogates.sensitivity_table import sensitivity_table, usable_sensitivities

LEAST_PLANS = 8
"""Distinct plans at full fidelity below which a run has nothing to say about single groups."""
TINY = 1e-12


def learnt_sensitivities(path: str | Path, space: SearchSpace) -> Sensitivities:
    """What another run's log says about the groups of a space; it costs the new search nothing.

    The other run's prior, each group's damage and the gain of rank scaled to what its trials say. A group of the new
    space takes what was learnt of its kind (`self_attn.q_proj`, a whole layer) at its share of the model's depth,
    interpolated in the logarithm: in a space of the same groups that is the group itself. Where the losses of a
    sibling lie on another scale, strategies with a model find the scale.

    Raises:
        LogMismatch: no such log, no search in it, too few trials, other bits or ranks, or groups of other kinds.
    """
    check_exists(path)
    with TrialLog(path) as log:
        state = recorded_state(log)
    for what, own, known in (("bits", space.bits, state.space.bits), ("ranks", space.ranks, state.space.ranks)):
        if missing := [value for value in own if value not in known]:
            raise LogMismatch(f"{path} was searched with {what} {list(known)}: nothing can be learnt of {missing}")
    plans = len({t.plan for t in state.full})
    if plans < LEAST_PLANS:
        raise LogMismatch(f"{path} holds {plans} plans evaluated in full, {LEAST_PLANS} are needed to learn from")
    found = scaled_sensitivities(state)
    bits = [state.space.bits.index(b) for b in space.bits]
    ranks = [state.space.ranks.index(r) for r in space.ranks]
    damage, gain = found.bits_damage[:, bits], found.rank_gain[:, ranks]
    try:
        both = carried_over(np.hstack([damage, gain]), state.space.groups, space.groups)
    except ValueError as error:
        raise LogMismatch(f"{path}: {error}") from None
    source = f"learnt from {plans} plans of {Path(path).name}"
    return Sensitivities(both[:, : len(bits)], both[:, len(bits) :], source=source, repair=found.repair)


def check_exists(path: str | Path) -> None:
    """Raises LogMismatch if there is no such log to learn from."""
    if not Path(path).is_file():
        raise LogMismatch(f"{path} does not exist: give a trial log or the folder of a run to learn from")


def scaled_sensitivities(state: StudyState) -> Sensitivities:
    """A study's prior with each group's damage, and the gain of rank, scaled to its trials at full fidelity."""
    sensitivities = usable_sensitivities(state.space, state.sensitivities)
    estimates = mean_estimates(state.full)
    b, r = state.space.encode_many(estimates.plans)
    groups = np.arange(len(state.space))
    damage = sensitivity_table(state.space, replace(sensitivities, rank_gain=np.zeros_like(sensitivities.rank_gain)))[
        groups, b, r
    ]
    scale, gain_scale = fit_scales(damage, sensitivities.rank_gain[groups, r].sum(1), estimates.mean)
    return Sensitivities(
        scale[:, None] * sensitivities.bits_damage, gain_scale * sensitivities.rank_gain, repair=sensitivities.repair
    )


def carried_over(values: np.ndarray, known: Sequence[Group], wanted: Sequence[Group]) -> np.ndarray:
    """Values (K, C), not negative, of known groups at the wanted ones (W, C), by kind and by share of the depth.

    Raises:
        ValueError: a wanted kind is not among the known groups.
    """
    kinds = {_kind(group) for group in known}
    out = np.empty((len(wanted), values.shape[1]))
    logs = np.log(np.maximum(values, TINY))
    for kind in dict.fromkeys(map(_kind, wanted)):
        if kind not in kinds:
            raise ValueError(f"it has no groups of the kind {kind!r}, only {', '.join(sorted(kinds))}")
        here = [i for i, group in enumerate(known) if _kind(group) == kind]
        there = [i for i, group in enumerate(wanted) if _kind(group) == kind]
        at, to = _share_of_depth(here), _share_of_depth(there)
        out[there] = np.exp(np.column_stack([np.interp(to, at, logs[here, c]) for c in range(values.shape[1])]))
    out[out <= 2 * TINY] = 0.0
    return out


def _share_of_depth(chosen: Sequence[int]) -> np.ndarray:
    """Place of groups of one kind between the first (0) and the last (1) of them."""
    return np.arange(len(chosen)) / max(len(chosen) - 1, 1)


def _kind(group: Group) -> str:
    """What a group has in common with its like in other layers: by its name's words if it says nothing else."""
    return group.kind or re.sub(r"\d+", "*", group.name)
