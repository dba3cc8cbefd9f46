"""The sensitivities: how much each group suffers at each bit-width, and what an adapter on it can gain; measured once.

A quantized weight W + D changes the output of a linear by D x. To second order the KL divergence of the model's
prediction is half the expected square of the change of the log-likelihood, g' D x, where g is the gradient at the
linear's output for labels drawn from the model itself (Fisher information). What outputs and positions have in common
is left out, so it follows from moments (`LayerMoments.estimate_damage`) that one pass of a few rows gives. In the visit
of its layer each linear is probed (`Backend.probe_levels`): by a short encoding that foretells every level's damage, or
by every level. That ranks groups well but the scale is off by group, so a few groups are degraded for real, and a
straight line in logarithms maps the one onto the other, with an intercept for each kind of linear. Tables of embeddings
are few, and all of their probes are put in place for real.

One group at 3 bits moves the prediction by 1e-4 to 1e-3 nats, as much as the rounding of a whole pass in bfloat16:
passes with degraded groups are made in float32, and D is taken before it is multiplied, not as products' difference.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from qra_eval.models.linears import make_linear
from qra_eval.quantized.bank import can_store
from qra_eval.quantized.blocks import BatchFlow, Blocks
from qra_eval.quantized.build import StoredMoments, find_modules, visit_linears
from qra_eval.quantized.calibration import (
    BACKWARD_STAGE,
    FORWARD_STAGE,
    LayerMoments,
    get_expert_kind,
    pass_layers,
)
from qra_eval.tasks.batches import Batch, collate
from qra_eval.tuning.fine_tuner import FineTuner
from qra_eval.tuning.training import BACKWARD_COST
from qra_search.schemas import LevelName, Sensitivities
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import SearchSpace

SAMPLED_ROWS = 16
PROBE_ROWS, PROBE_TOKENS = 8, 512
"""Most train rows, and about how many tokens, on which groups are degraded for real."""
OUTPUT_RUNS, TABLE_RUNS, RUN = 12, 512, 16
"""Runs of so many neighbouring outputs of a linear that are probed, unless it is degraded for real: by the squares of
their weights they tell what the others suffer, within 0.06 in logarithms on SmolLM2. Of a table more are, and the
errors of the others are made of theirs: `extend_errors`."""
MIN_EXPERT_SHARE = 0.1
"""Share of the mean damage over the experts of a layer that each is taken to suffer at least."""
PROBED_DEPTHS = 3
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
MIN_SLOPE = 0.1
"""A larger figure is never taken for less damage."""
RANK_GAIN = 0.5
"""Nats that adapters on all groups are taken to gain together, spread by the norms of their gradients: SmolLM2 on GSM8K
gains as much in 12 steps."""
RANK_POWER = 0.002
"""A rank gains in proportion to this power of it: as much at any rank but for 0.002 nats between ranks 4 and 32 of all
groups, within which ranks 4, 8 and 32 end with one alpha for all ranks (docs/study.md)."""


@dataclass(frozen=True)
class LevelProbe:
    """A module in a linear's place, None once it is not needed any more, and what it foretells.

    Attributes:
        damage: by `LayerMoments.estimate_damage`; 0 of a table.
        ratios: damage of levels over that of the module.
        rows: of a table, (n,), if the module is of these rows alone.
        output_weights: of all outputs, (out,); None: all count the same.
    """

    module: nn.Module | None
    damage: float
    ratios: Mapping[LevelName, float]
    rows: Tensor | None = None
    output_weights: Tensor | None = None


def measure_sensitivities(tuner: FineTuner) -> Sensitivities:
    """Damage and gain of every group, on train rows, by the unquantized model in place without adapters."""
    start = time.perf_counter()
    space, model = tuner.space, tuner.quantized_model
    groups = [g for g in space.groups if not g.is_embedding]
    tuner.switcher.unquantize()
    found, gradient_squares = probe_linears(tuner)
    by_linear = raise_rare_experts(
        {m.name: list_damage(found[m.name], model.levels) for g in groups for m in g.linears}
    )
    raw = np.array([np.sum([by_linear[m.name] for m in g.linears], axis=0) for g in groups])
    kinds = [g.kind or g.name for g in groups]
    tuner.switcher.prepare()
    with tuner.switcher.use_float32() as blocks:
        probes, tables, probe_tokens = measure_divergence(tuner, blocks, found, sample_probe_batch(tuner))
    scaled = scale_damage(raw, kinds, probes)
    damage = np.full((len(space), len(space.bits)), np.nan)
    damage[:, space.widths == UNQUANTIZED_BITS] = 0.0
    for k, b in enumerate(model.levels):
        damage[: len(groups), space.bits.index(b)] = scaled[:, k]
    damage[~space.bits_allowed & (space.widths != UNQUANTIZED_BITS)] = np.nan
    for name, by_level in tables.items():
        damage[space.names.index(name), [space.bits.index(b) for b in by_level]] = list(by_level.values())
    damage = enforce_monotone_damage(fill_missing(damage, space.widths), space.widths)
    tokens = (1 + BACKWARD_COST) * sum(batch.tokens for batch in model.plan_batches()) + probe_tokens
    return Sensitivities(
        damage,
        _estimate_rank_gain(space, gradient_squares),
        source="fisher, scaled by probes",
        repair=0.0,
        cost=tokens / tuner.count_evaluation_tokens(),
        seconds=time.perf_counter() - start,
    )


def probe_linears(tuner: FineTuner) -> tuple[dict[str, list[LevelProbe]], dict[str, float]]:
    """Probes of every linear and table, and the gradient's squared norm by each linear: one pass of the plan's rows.

    Modules are kept of tables, and of linears whose groups are degraded for real at a level that they foretell.
    """
    model = tuner.quantized_model
    bank, backend, blocks = model.bank, model.backend, model.blocks
    wanted = {
        m.name: model.levels[k] for g, k in choose_probes(tuner.space) for m in tuner.space.groups[g].linears
    }
    layers, done = sorted({*bank.layer_of.values()}), itertools.count(1)
    shares = {BACKWARD_STAGE: 0.0, "probe": 0.0}

    def report_progress(part: str, part_done: int, total: int) -> None:
        """The pass backward and the probes, which alternate layer by layer, are told as one phase."""
        if tuner.progress is None:
            return
        if part == FORWARD_STAGE:
            tuner.progress(part, part_done, total)
            return
        shares[part] = part_done / total
        tuner.progress("probe linears", int(50 * sum(shares.values())), 100)

    probes: dict[str, list[LevelProbe]] = {}
    squares: dict[str, float] = {}

    def probe_linear(
        moments: LayerMoments, name: str, hessian: Tensor | None, weights: Tensor | None
    ) -> None:
        linear, is_table = bank.linears[name], name in model.tables
        levels = model.table_levels if is_table else model.levels
        storable = [level for level in levels if can_store(backend, level, linear)]
        sample, sample_weights, rows = linear, weights, None
        runs = TABLE_RUNS if is_table else OUTPUT_RUNS
        if name not in wanted and linear.out_features > runs * RUN:
            some = choose_spread_outputs(linear.out_features, runs).to(linear.weight.device)
            part = make_linear(linear.weight.detach()[some])
            if all(can_store(backend, level, part) for level in storable):
                sample, rows = part, some
                sample_weights = None if weights is None else weights.to(some.device)[some]
        found = probes[name] = []
        probed = backend.probe_levels(sample, storable, hessian=hessian, output_weights=sample_weights)
        for module, ratios in probed:
            if is_table:
                found.append(LevelProbe(module.cpu(), 0.0, ratios, rows, weights))
                continue
            change = backend.dequantize(module).float() - sample.weight.float()
            damage = moments.estimate_damage(name, change, rows, linear.weight)
            kept = module.cpu() if wanted.get(name) in ratios else None
            found.append(LevelProbe(kept, damage, ratios))

    def report_probe() -> None:
        report_progress("probe", next(done), len(bank.linears))

    passed = pass_layers(
        blocks,
        model.plan_batches(),
        lambda layer: find_modules(bank, blocks, layer),
        model.weighting,
        layers,
        next(reversed(model.tables), None),
        report_progress,
    )
    kept = StoredMoments(bank)
    keeps = model.is_pass_shared and not kept.is_whole() and kept.has_room()
    for layer, moments in passed:
        linears = {name: bank.linears[name] for name in bank.list_names(layer)}
        probe = partial(probe_linear, moments)
        visit_linears(linears, moments, probe, backend, blocks.device, report_probe)
        squares |= {name: float(square) for name, square in moments.gradient_squares.items()}
        if keeps:
            kept.write(list(linears), moments)
    if keeps:
        kept.write_index()
    return probes, squares


def choose_spread_outputs(count: int, runs: int = OUTPUT_RUNS) -> Tensor:
    """Indices (runs * `RUN`,) of those that are probed of so many outputs, from the first to the last."""
    starts = torch.linspace(0, count - RUN, runs).long()
    return (starts[:, None] + torch.arange(RUN)).flatten()


def extend_errors(weight: Tensor, rows: Tensor, degraded: Tensor, output_weights: Tensor | None) -> Tensor:
    """A degraded weight (out, in), of which some `rows` (n,) were degraded (n, in): each other row takes the errors of
    the one of them whose output weight is nearest, in proportion to its size and with a random sign.

    Codes lose about as much of every row that counts as much, and errors of rows are independent of each other.
    """
    counts = weight.new_ones(len(weight)) if output_weights is None else output_weights.to(weight.device)
    ascending = counts[rows].sort(stable=True)
    middles = (ascending.values[1:] + ascending.values[:-1]) / 2
    source = ascending.indices[torch.searchsorted(middles, counts.contiguous())]
    source[rows] = torch.arange(len(rows), device=weight.device)
    sizes = weight.float().square().mean(1).sqrt_()
    signs = torch.randint(0, 2, (len(weight),), generator=torch.Generator().manual_seed(0)) * 2 - 1
    ratio = sizes / sizes[rows][source].clamp(min=1e-30) * signs.to(weight.device)
    ratio[rows] = 1.0
    errors = degraded - weight[rows].float()
    return errors[source].mul_(ratio[:, None]).add_(weight)


def list_damage(probes: Sequence[LevelProbe], levels: Sequence[LevelName]) -> np.ndarray:
    """Damage of a linear at levels (B,), as its probes foretell it; 0 where it cannot be stored."""
    damage = {level: probe.damage * ratio for probe in probes for level, ratio in probe.ratios.items()}
    return np.array([damage.get(level, 0.0) for level in levels])


def raise_rare_experts(damage: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Damage of experts, at least `MIN_EXPERT_SHARE` of their layer's mean: few rows see the rare ones."""
    kinds: dict[str, list[np.ndarray]] = {}
    for name, figures in damage.items():
        kinds.setdefault(get_expert_kind(name), []).append(figures)
    floors = {kind: MIN_EXPERT_SHARE * np.mean(figures, axis=0) for kind, figures in kinds.items()}
    return {
        name: figures if get_expert_kind(name) == name else np.maximum(figures, floors[get_expert_kind(name)])
        for name, figures in damage.items()
    }


def sample_probe_batch(tuner: FineTuner) -> Batch:
    """The rows on which groups are degraded for real: a random sample, as the shortest are not like the others."""
    rows = tuner.rows("train", SAMPLED_ROWS)
    count = max(1, min(PROBE_ROWS, PROBE_TOKENS // max(map(len, rows))))
    sample = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]
    return collate([rows[i] for i in sample])


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


def fill_missing(damage: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Damage (G, B), that of the nearest width in place of what a group cannot choose (NaN): surrogates compare all."""
    made = damage.copy()
    for row in made:
        known = np.flatnonzero(~np.isnan(row))
        for i in np.flatnonzero(np.isnan(row)):
            row[i] = row[known[np.abs(widths[known] - widths[i]).argmin()]] if len(known) else 0.0
    return made


def compute_divergence(reference: Tensor, likely: Tensor, logits: Tensor) -> float:
    """Mean KL divergence in nats of what logits (M, V) predict from what the reference does; `logits` is overwritten.

    log E exp(change) - E change under what was likely, the reference's softmax: of small changes no digit is lost.
    """
    change = logits.sub_(reference)
    return max(float(((likely * change.expm1()).sum(-1).log1p() - (likely * change).sum(-1)).mean()), 0.0)


def measure_divergence(
    tuner: FineTuner, blocks: Blocks, found: Mapping[str, Sequence[LevelProbe]], batch: Batch
) -> tuple[list[tuple[int, float, float]], dict[str, dict[LevelName, float]], int]:
    """KL of the prediction on a batch with one group alone degraded, for those of `choose_probes`, and with one table
    alone degraded, by each of its probes.

    A probe leaves the unquantized pass at its group's layer, and goes on beside the others, layer by layer: a layer's
    weights are put in place once for all. One batch is enough: the same positions are compared throughout.

    Args:
        blocks: computing in float32.

    Returns:
        (group, its figure, nats a labelled token) of each probe; by table, level to nats; and tokens passed forward.
    """
    space, model = tuner.space, tuner.quantized_model
    degraded: dict[tuple[int, LevelName], list[tuple[str, LevelProbe]]] = {}
    for g, k in choose_probes(space):
        level = model.levels[k]
        members = [
            (m.name, next(probe for probe in found[m.name] if level in probe.ratios))
            for m in space.groups[g].linears
        ]
        foretold = next(iter(members[0][1].ratios))
        degraded[g, foretold] = members  # once where one probe foretells several levels
    depths = {key: model.layer_of[members[0][0]] for key, members in degraded.items()}
    of_tables = [(name, i) for name in model.tables for i in range(len(found[name]))]
    probes: dict[tuple[int, LevelName], Tensor] = {}
    flows: dict[tuple[str, int], BatchFlow] = {}
    behind = sum(len(blocks) - depth for depth in depths.values())
    runs, done = behind + (1 + len(of_tables)) * len(blocks), itertools.count(1)

    def report() -> None:
        if tuner.progress is not None:
            tuner.progress("probe groups", next(done), runs)

    def degrade_table(name: str, i: int) -> nn.Module | None:
        """The module that takes a table's place, made anew each time, as several whole ones take gigabytes."""
        probe, weight = found[name][i], model.tables[name].weight.detach()
        if probe.module is None or probe.rows is None:
            return probe.module
        degraded = model.backend.dequantize(probe.module).to(weight.device, torch.float32)
        extended = extend_errors(weight, probe.rows.to(weight.device), degraded, probe.output_weights)
        return make_linear(extended.to(weight.dtype))

    with blocks.cast_outer_modules(), torch.no_grad():
        flow = blocks.embed_batch(batch)
        for name, i in of_tables:
            with _degrade(tuner, {name: degrade_table(name, i)}):
                flows[name, i] = blocks.embed_batch(batch)
        for layer in range(len(blocks)):
            with blocks.place_layer(layer):
                for key, hidden in probes.items():
                    probes[key] = blocks.run_layer(layer, flow, hidden.to(blocks.device)).cpu()
                    report()
                for key in (key for key, depth in depths.items() if depth == layer):
                    with _degrade(tuner, {name: probe.module for name, probe in degraded[key]}):
                        probes[key] = blocks.run_layer(layer, flow).cpu()
                    report()
                for each in [flow, *flows.values()]:
                    blocks.advance_flow(layer, each)
                    report()
        reference = blocks.compute_logits(flow, flow.hidden.to(blocks.device)).float()
        likely = reference.softmax(-1)
        measured: list[tuple[int, float, float]] = []
        for (g, level), hidden in probes.items():
            logits = blocks.compute_logits(flow, hidden.to(blocks.device)).float()
            figure = math.fsum(probe.damage for _, probe in degraded[g, level])
            measured.append((g, figure, compute_divergence(reference, likely, logits)))
        tables: dict[str, dict[LevelName, float]] = {name: {} for name in model.tables}
        for (name, i), other in flows.items():
            with _degrade(tuner, {name: degrade_table(name, i)}):
                logits = blocks.compute_logits(other, other.hidden.to(blocks.device)).float()
            nats = compute_divergence(reference, likely, logits)
            tables[name] |= {level: nats * ratio for level, ratio in found[name][i].ratios.items()}
    return measured, tables, round(runs / len(blocks) * batch.tokens)


@contextmanager
def _degrade(tuner: FineTuner, modules: Mapping[str, nn.Module | None]) -> Iterator[None]:
    """Modules in the place of some linears or tables, the rest as it was loaded."""
    for name, module in modules.items():
        tuner.switcher.set_alone(name, module)
    try:
        yield
    finally:
        for name in modules:
            tuner.switcher.set_alone(name, None)


def scale_damage(
    raw: np.ndarray, kinds: Sequence[str], probes: Sequence[tuple[int, float, float]]
) -> np.ndarray:
    """Fisher figures (G, B) on the scale of probes (group, figure, KL), by ridge regression of log KL - log figure.

    On the size of a group (the mean logarithm of its figures), the level beside that size, and the kind. Intercepts of
    kinds are drawn to their common mean, so that a kind with odd probes does not run away, and the ratio of a group's
    levels to that of its figures: on SmolLM2 KL over figure is 1.13 at 1 bit, and 0.96 to 0.85 from 1.5 to 4 bits.
    """
    floor = max(float(raw.max(initial=0.0)) * 1e-9, 1e-300)
    log_raw = np.log(np.maximum(raw, floor))
    usable = [(g, figure, kl) for g, figure, kl in probes if kl > 1e-8 and figure > floor]
    if len(usable) < 3:
        return np.where(raw > floor, raw, 0.0)
    names = sorted(set(kinds))
    size = np.where(raw > floor, log_raw, 0.0).sum(1) / np.maximum((raw > floor).sum(1), 1)
    center = float(np.mean([size[g] for g, *_ in usable]))
    of_kinds = np.array([[float(kind == name) for name in names] for kind in kinds])

    def make_features(g: int, log_figure: np.ndarray) -> np.ndarray:
        of_group = np.array([1.0, size[g] - center, 0.0, *of_kinds[g]])
        features = np.tile(of_group, (len(log_figure), 1))
        features[:, 2] = log_figure - size[g]
        return features

    design = np.concatenate([make_features(g, np.log([figure])) for g, figure, _ in usable])
    target = np.array([np.log(kl) - np.log(figure) for _, figure, kl in usable])
    penalty = np.diag([1e-9, 1e-9, LEVEL_RIDGE] + [KIND_RIDGE] * len(names))
    weights = np.linalg.solve(design.T @ design + penalty, design.T @ target)
    weights[1:3] = np.maximum(weights[1:3], MIN_SLOPE - 1.0)
    scale = np.array([make_features(g, of_group) @ weights for g, of_group in enumerate(log_raw)])
    return np.where(raw > floor, np.exp(log_raw + scale), 0.0)


def _estimate_rank_gain(space: SearchSpace, gradient_squares: Mapping[str, float]) -> np.ndarray:
    """float (G, R): what each rank gains; `RANK_GAIN` in all at the largest rank."""
    norms = [sum(math.sqrt(gradient_squares.get(m.name, 0.0)) for m in g.linears) for g in space.groups]
    most = np.array(norms) * (RANK_GAIN / max(sum(norms), 1e-30))
    ranks = np.array(space.ranks, dtype=float)
    share = np.where(ranks > 0, (ranks / max(ranks[-1], 1.0)) ** RANK_POWER, 0.0)
    return most[:, None] * share


def _spread_over_depth(kinds: Sequence[str]) -> list[int]:
    """Indices of `PROBED_DEPTHS` groups of each kind, from the first to the last."""
    chosen: list[int] = []
    for kind in sorted(set(kinds)):
        members = [i for i, k in enumerate(kinds) if k == kind]
        count = min(PROBED_DEPTHS, len(members))
        chosen += sorted({members[round(j * (len(members) - 1) / max(1, count - 1))] for j in range(count)})
    return chosen
