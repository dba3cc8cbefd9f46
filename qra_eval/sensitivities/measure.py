"""The sensitivities: how much each group suffers at each bit-width, and what an adapter on it can gain; measured once.

A quantized weight W + D changes the output of a linear by D x. To second order the KL divergence of the model's
prediction is half the expected square of the change of the log-likelihood, g' D x, where g is the gradient at the
linear's output for labels drawn from the model itself (Fisher information). What outputs and positions have in common
is left out, so it follows from the calibration's moments (`LayerMoments.estimate_damage`), with no own pass. That
ranks groups well but the scale is off by group, so a few groups are degraded for real, and a straight line in
logarithms maps the one onto the other, with an intercept for each kind of linear. Tables of embeddings are few, and are
degraded for real at every level.

One group at 3 bits moves the prediction by 1e-4 to 1e-3 nats, as much as the rounding of a whole pass in bfloat16:
passes with degraded groups are made in float32, and D is taken before it is multiplied, not as products' difference.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from qra_eval.quantized.blocks import Blocks, Flow
from qra_eval.quantized.calibration import get_expert_kind
from qra_eval.tasks.batches import PASS_MULTIPLE, Batch, collate
from qra_eval.tuning.fine_tuner import FineTuner
from qra_eval.tuning.training import BACKWARD
from qra_search.schemas import LevelName, Sensitivities
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import SearchSpace

SAMPLED_ROWS = 16
PROBE_ROWS, PROBE_TOKENS = 8, 512
"""Most train rows, and about how many tokens, on which groups are degraded for real."""
UNSEEN = 0.1
"""Share of the mean damage over the experts of a layer that each is taken to suffer at least."""
DEPTHS = 3
"""Groups of each kind that are degraded for real, spread over depth."""
PROBED_BITS = 2
"""The lowest this many bit-widths are probed; damage of more bits is small, and scales with the Fisher figure."""
MANY_PROBES = 24
"""With more probes than so many, each group is degraded at one of its bit-widths only, in turn: 21 instead of 42 tell
recorded evaluations of SmolLM2 apart as well (benchmarks/results/study/details.md)."""
KIND_RIDGE = 1.0
"""Strength with which a kind's intercept is drawn to the common one, in observations."""
LEVEL_RIDGE = 5.0
"""The same for the ratio of levels. One slope for groups and levels, from probes at 1.5 and 2 bits, said twice too much
of 4 bits."""
LEAST_SLOPE = 0.1
"""A larger figure is never taken for less damage."""
RANK_GAIN = 0.5
"""Nats that adapters on all groups are taken to gain together, spread by gradient spectrum: SmolLM2 on GSM8K gains as
much in 12 steps."""
RANK_POWER = 0.01
"""A rank gains the share of the spectrum within it to this power: nearly all of it at any rank. With one alpha for all
ranks, ranks 4, 8 and 32 end within 0.002 nats of each other (docs/study.md)."""


def measure_sensitivities(tuner: FineTuner) -> Sensitivities:
    """Damage and gain of every group, on train rows, by the unquantized model in place without adapters."""
    space, model = tuner.space, tuner.quantized_model
    bits, groups = model.levels, [g for g in space.groups if not g.is_embedding]
    tuner.switcher.unquantize()
    figures = model.get_figures()  # quantizes too, which is no part of the sensitivities' time
    tuner.switcher.prepare()
    start = time.perf_counter()
    by_linear = raise_rare_experts({name: np.array(values) for name, values in figures["damage"].items()})
    raw = np.array([np.sum([by_linear[m.name] for m in g.linears], axis=0) for g in groups])
    kinds = [g.kind or g.name for g in groups]
    pairs = choose_probes(space)
    with tuner.switcher.use_float32() as blocks:
        probes, tables, probe_tokens = measure_divergence(
            tuner, blocks, bits, pairs, sample_probe_batch(tuner)
        )
    scaled = scale_damage(raw, kinds, probes)
    damage = np.full((len(space), len(space.bits)), np.nan)
    damage[:, space.widths == UNQUANTIZED_BITS] = 0.0
    for k, b in enumerate(bits):
        damage[: len(groups), space.bits.index(b)] = scaled[:, k]
    damage[~space.bits_allowed & (space.widths != UNQUANTIZED_BITS)] = np.nan
    for name, by_level in tables.items():
        damage[space.names.index(name), [space.bits.index(b) for b in by_level]] = list(by_level.values())
    damage = enforce_monotone_damage(interpolate_missing(damage, space.widths), space.widths)
    tokens = (1 + BACKWARD) * sum(batch.tokens for batch in model.calibration_batches()) + probe_tokens
    return Sensitivities(
        damage,
        _estimate_rank_gain(space, figures["spectrum"]),
        source="fisher, scaled by probes",
        repair=0.0,
        cost=tokens / tuner.count_evaluation_tokens(),
        seconds=time.perf_counter() - start,
    )


def raise_rare_experts(damage: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Damage of experts, at least `UNSEEN` of the mean over their layer: few rows say little of those rarely chosen."""
    kinds: dict[str, list[np.ndarray]] = {}
    for name, figures in damage.items():
        kinds.setdefault(get_expert_kind(name), []).append(figures)
    floors = {kind: UNSEEN * np.mean(figures, axis=0) for kind, figures in kinds.items()}
    return {
        name: figures if get_expert_kind(name) == name else np.maximum(figures, floors[get_expert_kind(name)])
        for name, figures in damage.items()
    }


def sample_probe_batch(tuner: FineTuner) -> Batch:
    """The rows on which groups are degraded for real: a random sample, as the shortest are not like the others."""
    rows = tuner.rows("train", SAMPLED_ROWS)
    count = max(1, min(PROBE_ROWS, PROBE_TOKENS // max(map(len, rows))))
    sample = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]
    return collate([rows[i] for i in sample], multiple=PASS_MULTIPLE)


def choose_probes(space: SearchSpace) -> list[tuple[int, int]]:
    """The groups of linears that are degraded for real, and at which of the levels of linears below 16 bits."""
    groups = [g for g in space.groups if not g.is_embedding]
    kinds = [g.kind or g.name for g in groups]
    allowed = space.bits_allowed[: len(groups)]
    allowed = allowed[:, allowed.any(0) & (space.widths != UNQUANTIZED_BITS)]
    lowest = {g: np.flatnonzero(allowed[g])[:PROBED_BITS].tolist() for g in _spread_over_depth(kinds)}
    if sum(map(len, lowest.values())) > MANY_PROBES:
        lowest = {g: levels[n % len(levels) :][:1] for n, (g, levels) in enumerate(lowest.items()) if levels}
    return [(g, k) for g, levels in lowest.items() for k in levels]


def enforce_monotone_damage(damage: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Damage (G, B), raised where it is below that of more bits: of the least of them, where a width has several."""
    raised = damage.copy()
    floor = np.zeros(len(damage))
    for width in sorted(set(widths.tolist()), reverse=True):
        raised[:, widths == width] = np.maximum(raised[:, widths == width], floor[:, None])
        floor = raised[:, widths == width].min(1)
    return raised


def interpolate_missing(damage: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Damage (G, B) with what a group cannot choose (NaN) put in between its own: surrogates compare all levels.

    Logarithms are interpolated linearly in bits; outside, damage falls fourfold a bit.
    """
    made = damage.copy()
    for row in made:
        known = ~np.isnan(row)
        lossy = known & (row > 0)
        if not lossy.any():
            row[~known] = 0.0
            continue
        order = np.argsort(widths[lossy], kind="stable")
        at, log = widths[lossy][order].astype(float), np.log(row[lossy])[order]
        for i in np.flatnonzero(~known):
            outside = min(0.0, widths[i] - at[0]) + max(0.0, widths[i] - at[-1])
            row[i] = np.exp(np.interp(widths[i], at, log) - outside * np.log(4.0))
    return made


@contextmanager
def quantize_alone(tuner: FineTuner, names: Sequence[str], level: LevelName) -> Iterator[None]:
    """Some linears or tables at a level, the rest as it was loaded."""
    for name in names:
        tuner.switcher.set_base_weight(name, level)
    try:
        yield
    finally:
        for name in names:
            tuner.switcher.set_base_weight(name, None)


def compute_divergence(reference: Tensor, likely: Tensor, logits: Tensor) -> float:
    """Mean KL divergence in nats of what logits (M, V) predict from what the reference does; `logits` is overwritten.

    log E exp(change) - E change under what was likely, the reference's softmax: of small changes no digit is lost.
    """
    change = logits.sub_(reference)
    return max(float(((likely * change.expm1()).sum(-1).log1p() - (likely * change).sum(-1)).mean()), 0.0)


def measure_divergence(
    tuner: FineTuner,
    blocks: Blocks,
    bits: Sequence[LevelName],
    pairs: Sequence[tuple[int, int]],
    batch: Batch,
) -> tuple[list[tuple[int, int, float]], dict[str, dict[LevelName, float]], int]:
    """KL of the prediction on a batch with one group alone degraded, for (group, index into `bits`) of `pairs`, and
    with one table alone degraded, at each of its levels.

    A probe leaves the unquantized pass at its group's layer, and goes on beside the others, layer by layer: a layer's
    weights are put in place once for all. One batch is enough: the same positions are compared throughout.

    Args:
        blocks: computing in float32.

    Returns:
        (group, index into `bits`, nats a labelled token) of each pair; by table, level to nats; and tokens passed
        forward.
    """
    groups, model = tuner.space.groups, tuner.quantized_model
    depths = {g: model.layer_of[groups[g].linears[0].name] for g, _ in pairs}
    of_tables = [(name, level) for name in model.tables for level in model.table_levels]
    nats: dict[tuple[int, int], float] = {}
    tables: dict[str, dict[LevelName, float]] = {name: {} for name in model.tables}
    with blocks.cast_outer_modules(), torch.no_grad():
        flow = blocks.embed_batch(batch)
        probes: dict[tuple[int, int], Tensor] = {}
        flows: dict[tuple[str, LevelName], Flow] = {}
        for table in of_tables:
            with quantize_alone(tuner, table[:1], table[1]):
                flows[table] = blocks.embed_batch(batch)
        for layer in range(len(blocks)):
            with blocks.place_layer(layer):
                for pair, hidden in probes.items():
                    probes[pair] = blocks.run_layer(layer, flow, hidden.to(blocks.devices[layer])).cpu()
                for g, k in (pair for pair in pairs if depths[pair[0]] == layer):
                    with quantize_alone(tuner, [linear.name for linear in groups[g].linears], bits[k]):
                        probes[g, k] = blocks.run_layer(layer, flow).cpu()
                blocks.advance_flows(layer, [flow, *flows.values()])
            if tuner.progress is not None:
                tuner.progress("probe groups", layer + 1, len(blocks))
        reference = blocks.compute_logits(flow, flow.hidden.to(blocks.device)).float()
        likely = reference.softmax(-1)
        for (g, k), hidden in probes.items():
            logits = blocks.compute_logits(flow, hidden.to(blocks.device)).float()
            nats[g, k] = compute_divergence(reference, likely, logits)
        for (name, level), other in flows.items():
            with quantize_alone(tuner, [name], level):
                logits = blocks.compute_logits(other, other.hidden.to(blocks.device)).float()
            tables[name][level] = compute_divergence(reference, likely, logits)
    behind = sum(1 - depths[g] / len(blocks) for g, _ in pairs)
    tokens = round((1 + len(of_tables) + behind) * batch.tokens)
    return [(g, k, nats[g, k]) for g, k in pairs], tables, tokens


def scale_damage(
    raw: np.ndarray, kinds: Sequence[str], probes: Sequence[tuple[int, int, float]]
) -> np.ndarray:
    """Fisher figures (G, B) on the scale of the probes, by ridge regression of log KL - log figure.

    On the size of a group (the mean logarithm of its figures), the level beside that size, and the kind. Intercepts of
    kinds are drawn to their common mean, so that a kind with odd probes does not run away, and the ratio of a group's
    levels to that of its figures: on SmolLM2 KL over figure is 1.13 at 1 bit, and 0.96 to 0.85 from 1.5 to 4 bits.
    """
    floor = max(float(raw.max(initial=0.0)) * 1e-9, 1e-300)
    log_raw = np.log(np.maximum(raw, floor))
    usable = [(g, k) for g, k, kl in probes if kl > 1e-8 and raw[g, k] > floor]
    if len(usable) < 3:
        return np.where(raw > floor, raw, 0.0)
    names = sorted(set(kinds))
    size = np.where(raw > floor, log_raw, 0.0).sum(1) / np.maximum((raw > floor).sum(1), 1)
    center = float(np.mean([size[g] for g, _ in usable]))
    features = np.zeros((*raw.shape, 3 + len(names)))
    features[:, :, 0] = 1.0
    features[:, :, 1] = size[:, None] - center
    features[:, :, 2] = log_raw - size[:, None]
    for g, kind in enumerate(kinds):
        features[g, :, 3 + names.index(kind)] = 1.0
    design = np.array([features[pair] for pair in usable])
    target = np.array([np.log(kl) - log_raw[g, k] for g, k, kl in probes if (g, k) in usable])
    penalty = np.diag([1e-9, 1e-9, LEVEL_RIDGE] + [KIND_RIDGE] * len(names))
    weights = np.linalg.solve(design.T @ design + penalty, design.T @ target)
    weights[1:3] = np.maximum(weights[1:3], LEAST_SLOPE - 1.0)
    return np.where(raw > floor, np.exp(log_raw + features @ weights), 0.0)


def _estimate_rank_gain(space: SearchSpace, spectrum: Mapping[str, Sequence[float]]) -> np.ndarray:
    """float (G, R): what each rank gains; `RANK_GAIN` in all at the largest rank."""
    gain = np.zeros((len(space), len(space.ranks)))
    for i, group in enumerate(space.groups):
        for j, rank in enumerate(space.ranks):
            gain[i, j] = sum(sum(spectrum.get(m.name, ())[:rank]) for m in group.linears)
    most = gain[:, -1:]
    share = np.divide(gain, most, out=np.zeros_like(gain), where=most > 0)
    return share**RANK_POWER * most * (RANK_GAIN / max(most.sum(), 1e-30))


def _spread_over_depth(kinds: Sequence[str]) -> list[int]:
    """Indices of `DEPTHS` groups of each kind, from the first to the last."""
    chosen: list[int] = []
    for kind in sorted(set(kinds)):
        members = [i for i, k in enumerate(kinds) if k == kind]
        count = min(DEPTHS, len(members))
        chosen += sorted({members[round(j * (len(members) - 1) / max(1, count - 1))] for j in range(count)})
    return chosen
