"""Makes the README of benchmarks/results/workers, with its plots, from the recorded lines beside it.

python benchmarks/workers/summary.py
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from common import RESULTS  # noqa: E402
from qra_search.bench.statistics import TIE  # noqa: E402

Line = dict[str, Any]
Curves = dict[str, list[tuple[float, float]]]
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
WIDTH, HEIGHT, LEFT, TOP, BELOW = 330, 200, 60, 34, 62


def lines(name: str) -> list[Line]:
    """What a benchmark recorded, the oldest first."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


# -- the table -------------------------------------------------------------------------------------


def rows() -> list[tuple[str, str, str, str]]:
    """Claim, what was measured, whether it was met, and the command."""
    return [row for make in (_kills, _damage, _speedups, _quality, _busy, _overhead, _log, _fuzz) for row in make()]


def _kills() -> list[tuple[str, str, str, str]]:
    out = []
    for workers in (2, 0):
        pieces = [r for r in lines("kills") if r["workers"] == workers]
        if pieces:
            total = {k: sum(p[k] for p in pieces) for k in ("kills", "searches", "lost", "twice", "differs", "unsound")}
            where = f"{workers} worker processes" if workers else "evaluations in the search's own process"
            faults = sum(total[k] for k in ("lost", "twice", "differs", "unsound"))
            verdict, number = _verdict(not faults and total["kills"] >= 500 * (workers > 0)), "500 " if workers else ""
            forked = sum(p["kills"] for p in pieces if p.get("start") == "fork")
            where += f" ({forked} with forked ones)" if forked else ""
            out.append(
                (
                    f"{number}kills: no reported result lost or counted twice, the end that of an unbroken run",
                    f"{total['kills']} kills over {total['searches']} searches, {where}: {total['lost']} lost, "
                    f"{total['twice']} twice, {total['differs']} ended otherwise, {total['unsound']} unsound logs",
                    verdict,
                    f"kills.py --workers {workers} --fork" if forked else f"kills.py --workers {workers}",
                )
            )
    return out


def _speedups() -> list[tuple[str, str, str, str]]:
    latest = {r["kind"]: (r, r["an_hour"]) for r in lines("speedup")}
    return [
        (
            "two workers do at least 1.7 times the evaluations an hour of one",
            f"{kind}: {r['speedup']:.2f} ({rate['1']} and {rate['2']} an hour, {r['seconds_each']:g} s each)",
            _verdict(r["speedup"] >= 1.7),
            f"speedup.py --kind {kind}",
        )
        for kind, (r, rate) in sorted(latest.items())
    ]


def _quality() -> list[tuple[str, str, str, str]]:
    seeds = [r for r in lines("quality") if not r.get("summary")]
    out = []
    for evaluations in sorted({r["serial_evaluations"] for r in seeds}):
        own = [r for r in seeds if r["serial_evaluations"] == evaluations]
        lost = sorted((r["loss_at_1_5"] - r["serial_loss"]) / (r["serial_first"] - r["serial_loss"]) for r in own)
        strictly = sum(share <= 0 for share in lost)
        out.append(
            (
                "64 asynchronous workers reach the serial search's quality with at most 1.5 times its evaluations "
                f"(to within {100 * TIE:g}% of its gain, which the benchmark of strategies calls a tie)",
                f"serial search of {evaluations}, {len(own)} seeds: after 1.5 times as many the parallel one lacks "
                f"{100 * median(lost):.2f}% of the serial gain (median; largest {100 * lost[-1]:.2f}%); "
                f"{strictly} of {len(own)} have the serial loss or a lower one",
                _verdict(median(lost) <= TIE),
                f"simulate.py quality --workers 64 --evaluations {evaluations}",
            )
        )
    return out


def _busy() -> list[tuple[str, str, str, str]]:
    seeds = [r for r in lines("quality") if not r.get("summary")]
    least = min((r["steady_utilisation"] for r in seeds), default=0.0)
    return [
        (
            "workers are busy at least 95% of virtual time with 60 s evaluations",
            f"qra, {seeds[0]['layers']} groups, 64 workers, {len(seeds)} searches of 200 to 450 trials: "
            f"at least {100 * least:.1f}%, the first 64 proposals left out",
            _verdict(least >= 0.95),
            "simulate.py quality --workers 64",
        )
    ] * bool(seeds) + [
        (
            "workers are busy at least 95% of virtual time with 60 s evaluations",
            f"{r['strategy']}, {r['groups']} groups, {r['workers']} workers, {r['trials']} trials"
            f"{_after(r)}: {100 * r['steady_utilisation']:.1f}%",
            _verdict(r["steady_utilisation"] >= 0.95),
            _scale_command(r),
        )
        for r in lines("scale")
    ]


def _overhead() -> list[tuple[str, str, str, str]]:
    out = []
    for limit, trials in ((1.0, 1000), (3.0, 10_000)):
        for r in lines("scale"):
            if r["strategy"] == "qra" and r["groups"] == 560 and 0.99 * trials <= r["trials"] <= 1.3 * trials:
                out.append(
                    (
                        f"a proposal takes under {limit:g} s at {trials:,} trials",
                        f"{r['strategy']}, {r['groups']} groups: median of the last tenth {r['overhead_late']:.2f} s, "
                        f"largest {r['overhead_largest']:.2f} s of processor time",
                        _verdict(r["overhead_late"] < limit),
                        _scale_command(r),
                    )
                )
    return out


def _log() -> list[tuple[str, str, str, str]]:
    return [
        (
            "a log of 10,000 trials of 560 groups opens in under 2 s",
            f"{r['open_cpu_seconds']:.2f} s of processor time ({r['open_seconds']:.2f} s by the clock), "
            f"{r['mebibytes']} MiB",
            _verdict(r["open_cpu_seconds"] < 2.0),
            "log.py",
        )
        for r in lines("log")[-1:]
    ]


def _damage() -> list[tuple[str, str, str, str]]:
    out = []
    for r in lines("damage")[-1:]:
        kinds = [(kind, r[kind]) for kind in ("flipped", "removed", "truncated")]
        found = "; ".join(
            f"{kind} {k['bytes']:,}: {k['named'] + k['refused']:,} named, {k['harmless']:,} harmless, "
            f"{k['faults']} faults"
            for kind, k in kinds
        )
        claim = f"every byte of a log of {r['trials']} trials: damage is named or harmless, all other trials are read"
        verdict = _verdict(not any(k["faults"] for _, k in kinds))
        out.append((claim, found, verdict, f"damage.py --trials {r['trials']}"))
    return out


def _fuzz() -> list[tuple[str, str, str, str]]:
    pieces = lines("fuzz")
    if not pieces:
        return []
    total = sum(sum(p["inputs"].values()) for p in pieces)
    faults, slowest = sum(sum(p["faults"].values()) for p in pieces), max(p["slowest_cpu_seconds"] for p in pieces)
    stray = sum(int(p["stray_files"]) for p in pieces)
    kinds = ", ".join(dict.fromkeys(k for p in pieces for k in p["inputs"]))
    return [
        (
            "100,000 fuzzed inputs: no traceback, no hang over 10 s, no file outside the folder",
            f"{total:,} inputs ({kinds}): {faults} faults, slowest {slowest:.2f} s, {stray} stray files",
            _verdict(total >= 100_000 and not faults and not stray and slowest < 10),
            "fuzz.py --inputs 25500 --seed 0 ... 3",
        )
    ]


def _after(r: Line) -> str:
    if not r["before"]:
        return ""
    return f" ({r['before']:,} of random plans were there, and all workers wait until the first 64 are proposed)"


def _scale_command(r: Line) -> str:
    before = f" --before {r['before']}" if r["before"] else ""
    layers, granularity = (r["groups"] // 7, "module") if r["groups"] == 560 else (r["groups"], "layer")
    count = round(r["trials"] - r["before"], -1) or r["trials"]
    return (
        f"simulate.py scale --strategy {r['strategy']} --workers {r['workers']} --trials {count}{before} "
        f"--layers {layers} --granularity {granularity}"
    )


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


# -- the plots -------------------------------------------------------------------------------------


def growth(value: str) -> Curves:
    """A figure of the `growth` of every `scale` line against the trials in the log."""
    out: Curves = {}
    for r in lines("scale"):
        name = f"{r['strategy']}, {r['groups']} groups, {r['workers']} workers"
        points = [(s["trials"], s[value]) for s in r["growth"] if s["trials"] > r["workers"] and s[value] > 0]
        out.setdefault(name, []).extend(points)
    return {name: sorted(points) for name, points in out.items() if points}


def by_workers(value: Callable[[Line], float]) -> Curves:
    """A figure of every `scale` line against its workers, by strategy and groups."""
    out: Curves = {}
    for r in lines("scale"):
        if not r["before"]:
            out.setdefault(f"{r['strategy']}, {r['groups']} groups", []).append((r["workers"], value(r)))
    return {name: sorted(points) for name, points in out.items() if len(points) > 1}


def panel(title: str, across: str, curves: Curves, offset: tuple[int, int], *, log: bool = True) -> str:
    """One plot with a logarithmic axis of x."""
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    place_y = math.log10 if log else float
    x0, x1 = math.log10(min(xs)) - 0.02, math.log10(max(xs)) + 0.02
    y0, y1 = min(map(place_y, ys)), max(map(place_y, ys))
    room = 0.08 * (y1 - y0) or 0.05
    y0, y1 = y0 - room, y1 + room

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + WIDTH * (math.log10(x) - x0) / (x1 - x0), TOP + HEIGHT * (1 - (place_y(y) - y0) / (y1 - y0))

    out = [f'<g transform="translate({offset[0]},{offset[1]})">', _text(LEFT, 18, title, weight="bold")]
    out.append(f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#bbb"/>')
    for y in _ticks(y0, y1, log):
        _, py = at(min(xs), y)
        out += [f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{py:.1f}" y2="{py:.1f}" stroke="#e5e5e5"/>']
        out += [_text(LEFT - 5, py + 4, f"{y:g}", "end")]
    for x in [m * 10**e for e in range(math.floor(x0), math.ceil(x1) + 1) for m in (1, 3)]:
        if not x0 <= math.log10(x) <= x1:
            continue
        out.append(_text(at(x, ys[0])[0], TOP + HEIGHT + 15, f"{x:g}", "middle"))
    out.append(_text(LEFT + WIDTH / 2, TOP + HEIGHT + 29, across, "middle"))
    for i, (name, points) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        shape = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in points)
        out.append(f'<polyline points="{shape}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        out += ['<circle cx="{:.1f}" cy="{:.1f}" r="2.6" fill="{}"/>'.format(*at(x, y), colour) for x, y in points]
        out.append(_text(LEFT, TOP + HEIGHT + 46 + 13 * i, f"● {name}", fill=colour))
    return "\n".join([*out, "</g>"])


def _ticks(low: float, high: float, log: bool) -> Sequence[float]:
    if log:
        steps = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
        fine = [y for y in steps if low <= math.log10(y) <= high]
        coarse = [y for y in fine if math.log10(y) % 1 < 1e-9]
        return coarse if len(coarse) >= 3 else fine
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    return [round(step * i, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _text(x: float, y: float, text: str, anchor: str = "start", fill: str = "#222", weight: str = "normal") -> str:
    style = f'text-anchor="{anchor}" fill="{fill}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def write_plots(path: Path) -> None:
    """Proposals a second, memory, quality and busy workers, two by two."""
    panels = [
        ("proposals a second", "trials in the log", growth("proposals_per_second"), True),
        ("memory of the search, MiB", "trials in the log", growth("mebibytes"), True),
        ("noise-free loss of the best plan", "trials in the log", growth("true_loss"), False),
        ("busy workers, share of virtual time", "workers", by_workers(lambda r: r["steady_utilisation"]), False),
    ]
    panels = [p for p in panels if p[2]]
    legend = 13 * max(len(p[2]) for p in panels)
    wide, high = LEFT + WIDTH + 40, TOP + HEIGHT + BELOW + legend
    body = [
        panel(title, across, curves, (wide * (i % 2), high * (i // 2)), log=log)
        for i, (title, across, curves, log) in enumerate(panels)
    ]
    size = f'width="{2 * wide}" height="{high * math.ceil(len(panels) / 2)}"'
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


INTRO = """# Workers: what was measured

Made by `python benchmarks/workers/summary.py` from the lines beside this file; do not edit. The machine had two cores,
which other work kept busy at the same time (`load` in each line). Times of the search itself are therefore of its
processor, on one thread, unless a line says otherwise; virtual time is that of `simulator.py`.
Scripts are in `benchmarks/workers/`. A claim without a line here has not been measured. The fuzzer found three
faults: a header whose space lacks a field (a KeyError), one whose fields are wrong (a message of several lines), and an
older log with values that no log can hold (a TypeError). They are mended; the lines here are from after that.
"""


def main() -> None:
    table = ["| claim | measured | | with |", "|---|---|---|---|"]
    table += [f"| {claim} | {found} | {verdict} | `{command}` |" for claim, found, verdict, command in rows()]
    parts = [INTRO, "\n".join(table)]
    if lines("scale"):
        write_plots(RESULTS / "growth.svg")
        parts.append(
            "\n## How it grows\n\n![Proposals a second, memory, quality and busy workers](growth.svg)\n\n"
            "Simulated searches of the `interaction` landscape, 60 s an evaluation with a log-normal spread of 0.3. A\n"
            "lone point is a search that began with a log of random plans (`--before`)."
        )
    (RESULTS / "README.md").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
