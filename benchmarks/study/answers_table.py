"""The tables of `answers.jsonl`, right answers at equal bytes, and the README's picture of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from qra_backends.registry import make_backend

from benchmarks.common import MIB
from benchmarks.study.answers_settings import GGUF, SETTINGS
from benchmarks.study.intervals import change, difference, mean_loss, paired, points, rows_of, table_of
from qra_search.report.figures.canvas import fit, new_figure, put_label, style, to_svg
from qra_search.space.memory import UNQUANTIZED_BITS

FILE = "answers.jsonl"
UNTUNED, QLORA, WIDE = "untuned", "QLoRA", "16-bit LoRA"
PLAN, UNIFORM, FOR_LLAMA_CPP = "plan within ", "uniform ", ", for llama.cpp"
SEARCH = "search within "
MOST = "float32"
"""What most rows are computed in, those of the picture among them."""
PANELS = {"qwen-1.5b": "Qwen 1.5B, GSM8K", "gemma-270m": "Gemma 270M, ARC-Easy"}
TITLE = "Right answers over memory: plans of qra, QLoRA, 16-bit LoRA"
KINDS = ((PLAN, "best", "plans of qra"), (UNIFORM, "found", "one width"), ("", "soft", ""))
"""Of rows in the picture: what they begin with, their colour, and what a line of them is called."""
SIZE = (480, 400)
"""Of a panel."""
LOOKED_AT, DRAWS = (16, 64, 200), 2000


def table(lines: list[dict[str, Any]], model: str) -> list[str]:
    """Every row of a model beside QLoRA, most bytes first: same test rows, intervals of 95% over rows and seeds.

    Peak and minutes are of the first seed.
    """
    lines, shape = [d for d in lines if d["model"] == model], SETTINGS[model].twice
    rival, wide = ({(d["seed"], d["compute"]): d for d in lines if d["row"] == row} for row in (QLORA, WIDE))
    groups: dict[Any, list[dict[str, Any]]] = {}  # one plan may be the best within several shares
    for d in lines:
        row = d["choices"] if d["row"].startswith(PLAN) else d["row"]
        groups.setdefault((row, d["compute"]), []).append(d)
    body = []
    for group in groups.values():
        row, *others_within = dict.fromkeys(d["row"] for d in group)
        some, others = paired({(d["seed"], d["compute"]): d for d in group if d["row"] == row}, rival)
        if not some:
            continue
        size, share = some[0]["memory_bytes"], some[0]["memory_bytes"] / others[0]["memory_bytes"]
        same, beside_wide = row == QLORA, paired({(d["seed"], d["compute"]): d for d in some}, wide)
        name = ", ".join([row, *(other.removeprefix(PLAN) for other in others_within)])
        name += f", in {some[0]['compute']}" if some[0]["compute"] != MOST else ""
        cells = [name, f"{size / MIB:.1f}", f"{share:.0%}"]
        cells += [f"{with_one_table(some[0], shape) / with_one_table(others[0], shape):.0%}"] if shape else []
        cells += [" ".join(map(str, some[0].get("embeddings") or [16]))]
        cells += [f"{mean_loss(some):.4f}", "–" if same else change(some, others)]
        cells += [f"{rows_of(some, 'row_right').mean():.1%}", "–" if same else points(some, others)]
        cells += [points(*beside_wide) if row != WIDE and beside_wide[0] else "–"]
        cells += [f"{some[0]['peak_bytes'] / (1 << 30):.1f}" if row != UNTUNED else "–"]
        minutes = (some[0]["processor_seconds"] - some[0].get("prepared", 0)) / 60
        body.append((size, [*cells, f"{minutes:.1f}"]))
    head = ["row", "MiB", "of QLoRA's", *(["with one table"] if shape else []), "embeddings", "test loss"]
    head += ["against QLoRA", "right", "against QLoRA, points"]
    head += ["against 16-bit LoRA, points", "peak of tuning, GiB", "processor minutes"]
    return table_of(head, [cells for _, cells in sorted(body, key=lambda row: -row[0])])


def with_one_table(line: dict[str, Any], shape: tuple[int, int]) -> int:
    """Bytes of a row if the table that the file holds twice were held once, at the wider of its two widths."""
    backend = GGUF if line["row"].endswith(FOR_LLAMA_CPP) else line.get("backend")
    found = [
        2 * shape[0] * shape[1] if width == UNQUANTIZED_BITS else make_backend(backend).storage(width).bytes(*shape)
        for width in line.get("embeddings") or [UNQUANTIZED_BITS] * 2
    ]
    return int(line["memory_bytes"]) - min(found)


def chosen(lines: list[dict[str, Any]], model: str) -> list[str]:
    """A model's plans, one chosen by so many test rows and looked at on the others: by the loss, or by right answers.

    Means over `DRAWS` draws of the rows; of plans with as many right answers any one is taken.
    """
    plans = {d["choices"]: d for d in lines if d["model"] == model and d["row"].startswith((PLAN, UNIFORM))}
    losses, right = (rows_of(plans.values(), figure) for figure in ("row_losses", "row_right"))
    tokens, generator, body = np.array(next(iter(plans.values()))["row_tokens"]), np.random.default_rng(0), []
    for count in LOOKED_AT:
        found = np.zeros((2, 2))
        for _ in range(DRAWS):
            rows = generator.permutation(len(tokens))
            seen, others = rows[:count], rows[count:]
            by_loss = losses[:, seen].sum(1)
            by_right = right[:, seen].sum(1)
            figures = np.stack([right[:, others].mean(1), losses[:, others].sum(1) / tokens[others].sum()])
            found += [figures[:, by_loss.argmin()], figures[:, by_right == by_right.max()].mean(1)]
        (one, loss), (other, loss_of_other) = found / DRAWS
        body.append([f"{count}", f"{one:.1%}", f"{other:.1%}", f"{loss:.3f}", f"{loss_of_other:.3f}"])
    head = ["rows looked at", "by loss: right on the others", "by right answers", "by loss: loss on the others"]
    return table_of([*head, "by right answers"], body)


def draw(lines: list[dict[str, Any]]) -> str:
    """The picture, an SVG: right answers more than QLoRA's over bytes, a panel a model.

    A row is held against QLoRA in the same arithmetic; a bar is the interval of 95%, over rows and seeds.
    """
    with style() as c:
        figure, panels = new_figure(TITLE, SIZE, panels=len(PANELS))
        for axes, (model, title) in zip(panels, PANELS.items(), strict=True):
            mine = [d for d in lines if d["model"] == model]
            rival = {(d["seed"], d["compute"]): d for d in mine if d["row"] == QLORA}
            found = []
            for row, compute in dict.fromkeys((d["row"], d["compute"]) for d in mine):
                own = {(d["seed"], d["compute"]): d for d in mine if (d["row"], d["compute"]) == (row, compute)}
                sides = (rows_of(some, "row_right") for some in paired(own, rival))
                low, at, high = (100 * x for x in difference(*sides, relative=False))
                found.append((next(iter(own.values()))["memory_bytes"] / MIB, at, at - low, high - at, row))
            found = list({d[-1]: d for d in found}.values())  # one in two arithmetics once, as QLoRA itself
            fit(axes, "x", "memory of model and adapter, MiB", [size for size, *_ in found], log=True)
            ends_of_bars = [y for _, at, low, high, _ in found for y in (at - low, at + high)]
            fit(axes, "y", f"right, points above QLoRA ({title})", ends_of_bars)
            taken: list = []
            for start, color, name in KINDS:
                kind = sorted(d for d in found if d[-1].startswith(start) and (not start or FOR_LLAMA_CPP not in d[-1]))
                found = [d for d in found if d not in kind]
                if not kind:
                    continue
                sizes, at, *ends, rows = zip(*kind, strict=True)
                axes.errorbar(
                    sizes, at, ends, marker="s" if start == PLAN else "o", markersize=9, linewidth=2 * (start == PLAN),
                    color=c[color], elinewidth=1, zorder=3 if start == PLAN else 2, clip_on=False,
                )  # fmt: skip
                at_end = [(name, kind[-1] if start == PLAN else kind[0])]
                named = at_end if name else [(row.rpartition(", ")[2], d) for *d, row in kind]
                for label, (size, height, *_) in named:
                    put_label(
                        axes, taken, label, (size, height), (10, -14 * (start == UNIFORM)),
                        side="right" if name else "left", moves=(0, 14, -14, 28, -28),
                        color=c["ink" if name else "soft"],
                    )  # fmt: skip
    return to_svg(figure, theme="screen")
