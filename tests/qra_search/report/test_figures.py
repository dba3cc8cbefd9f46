"""Figures as files: whole SVG documents with their colours in them, and PNG of the same size."""

from __future__ import annotations

import importlib.util
import re
import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from report_runs import EVIL, make_run

from qra_search.report import figures as module
from qra_search.report.data import RunData
from qra_search.report.figures import ZOOM, figures, write_figures

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    return RunData.read(make_run(tmp_path_factory.mktemp("figures") / "a"))


@pytest.mark.parametrize("dark", [False, True])
def test_every_figure_is_a_whole_document_with_its_own_style(run: RunData, dark: bool) -> None:
    made = figures([run], dark=dark)
    assert list(made) == ["front", "trace", "predictions", "plan"]
    for name, text in made.items():
        root = ElementTree.fromstring(text)
        assert root.tag == f"{SVG}svg", name
        style = root.findtext(f"{SVG}style") or ""
        assert "var(" not in text and "--" not in style and "@" not in style
        symbols = {s.get("id") for s in root.iter(f"{SVG}symbol")}
        uses = {(u.get("href") or "").removeprefix("#") for u in root.iter(f"{SVG}use")}
        assert uses <= symbols
        for used in {c for e in root.iter() for c in (e.get("class") or "").split() if c.startswith("o-")}:
            assert f".{used}{{" in style
    back = {re.search(r'height="100%" fill="(#\w+)"', text)[1] for text in made.values()}  # type: ignore[index]
    assert back == {"#121417" if dark else "#faf9f6"}


def test_the_front_has_a_mark_for_every_plan(run: RunData) -> None:
    root = ElementTree.fromstring(figures([run])["front"])
    marks = [u for u in root.iter(f"{SVG}use") if "point" in (u.get("class") or "").split()]
    assert len(marks) == len(run.shown) + 1  # the plan found has two


def test_the_plan_says_bits_and_rank_of_every_group(run: RunData) -> None:
    text = figures([run])["plan"]
    root = ElementTree.fromstring(text)
    numbers = [int(t.text or "") for t in root.iter(f"{SVG}text") if t.get("style")]
    plan, order = run.plan, [g for row in run.layout.cells for g in row if g is not None]
    assert plan is not None
    assert numbers == [plan.bits[g] for g in order] + [plan.ranks[g] for g in order]
    assert EVIL not in text


def test_several_runs_share_their_figures(run: RunData) -> None:
    assert list(figures([run, run])) == ["fronts", "traces"]


def test_files_are_svg_and_png_of_twice_its_size(run: RunData, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py", reason="the renderer resvg-py is not installed")
    files = write_figures([run], tmp_path / "f")
    assert sorted(f.name for f in files) == sorted(f"{n}.{e}" for n in figures([run]) for e in ("svg", "png"))
    for png in (f for f in files if f.suffix == ".png"):
        data = png.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        root = ElementTree.fromstring(png.with_suffix(".svg").read_text())
        size = [round(float(root.get(side) or 0) * ZOOM) for side in ("width", "height")]
        assert list(struct.unpack(">II", data[16:24])) == size


def test_a_png_shows_marks_in_the_colour_of_their_origin_and_text(run: RunData, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py", reason="the renderer resvg-py is not installed")
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    write_figures([run], tmp_path)
    colours = dict.fromkeys(c for _, c in image.open(tmp_path / "trace.png").convert("RGB").getcolors(1 << 24))
    assert (0xFA, 0xF9, 0xF6) in colours  # paper
    assert any(abs(r - 0x00) < 40 and abs(g - 0x72) < 40 and abs(b - 0xB2) < 40 for r, g, b in colours)  # first origin
    # Without fonts a renderer leaves all text out: the area of the axis' name is not empty.
    chart = image.open(tmp_path / "trace.png").convert("L")
    name = chart.crop((chart.width - 360, chart.height - 30, chart.width, chart.height))
    assert name.getextrema()[0] < 100


def test_without_a_renderer_only_svg_is_written(run: RunData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda name, *a: None if name == "resvg_py" else find(name, *a)
    )
    assert {f.suffix for f in write_figures([run], tmp_path)} == {".svg"}


def test_a_run_without_plans_has_no_figures(tmp_path: Path) -> None:
    from qra_search.strategies import Strategy

    class Idle(Strategy):
        name = "idle"

        def propose(self, state: Any, n: int) -> list[Any]:
            return []

    empty = make_run(tmp_path / "e", memory=("uniform3r4",), strategy=Idle(), evaluations=0.5)
    assert figures([RunData.read(empty)]) == {}
