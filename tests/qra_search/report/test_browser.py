"""The report in a real browser, where there is one: no error, no overflow, hover and buttons work."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from report_runs import add_test, make_run

from qra_search.report.formatting import loss_text
from qra_search.report.layout import layout
from qra_search.report.page import write_page

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")

WATCH = "<script>window.faults=[];addEventListener('error',e=>faults.push(e.message));</script>"
PROBE = """<script>
addEventListener("load", () => {
  const found = {faults, width: innerWidth, scroll: document.documentElement.scrollWidth};
  const clipped = ".scroll, .chart, pre, code, .sr, svg, #tip";
  const inside = [...document.querySelectorAll("body *")].filter((e) => !e.closest(clipped));
  const wide = inside.filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5);
  found.wide = wide.map((e) => e.outerHTML.slice(0, 80));
  found.charts = [...document.querySelectorAll(".chart svg")].map((c) => c.getBoundingClientRect().width);
  const tip = document.getElementById("tip");
  const point = document.querySelector(".chart use[data-p='0']");
  point.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
  const box = tip.getBoundingClientRect();
  found.tip = {hidden: tip.hidden, text: tip.innerText, cells: tip.querySelectorAll("rect").length,
               inside: box.left >= 0 && box.right <= innerWidth};
  const cells = () => [...document.querySelectorAll(".heat[data-of=bits] td[data-g]")].map((c) => +c.textContent);
  found.before = cells();
  point.dispatchEvent(new MouseEvent("click", {bubbles: true}));
  found.after = cells();
  found.shown = document.querySelector(".which strong").innerText;
  const back = document.querySelector("button.back");
  found.back = !back.hidden;
  back.click();
  found.again = cells();
  document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape", bubbles: true}));
  found.closed = tip.hidden;
  parent.postMessage(JSON.stringify(found), "*");
});
</script>"""
FRAME = """<!doctype html><iframe style="width:%dpx;height:1200px;border:0" src="%s"></iframe><pre id="found"></pre>
<script>addEventListener("message", (e) => { document.getElementById("found").textContent = e.data; });</script>"""
"""A window has a least width, a frame has none."""


VIRTUAL_MS = 20000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_run(tmp_path_factory.mktemp("browser") / "a")
    add_test(folder)
    return folder


def probed(page: Path, width: int, profile: Path) -> dict[str, Any]:
    """What a script that is put into a page says of it at a width."""
    assert BROWSER is not None
    text = page.read_text().replace("<head>", f"<head>{WATCH}", 1).replace("</body>", f"{PROBE}</body>", 1)
    page.with_name("probe.html").write_text(text)
    frame = page.with_name("frame.html")
    frame.write_text(FRAME % (width, "probe.html"))
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}", "--window-size=1700,1300",
         f"--virtual-time-budget={VIRTUAL_MS}",
         "--dump-dom", frame.as_uri()],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    match = re.search(r'<pre id="found">({.*?)</pre>', done.stdout, re.DOTALL)
    assert match is not None, done.stdout[-2000:]
    return json.loads(html.unescape(match.group(1)))


@pytest.mark.parametrize("width", [380, 1600])
def test_the_report_works_at_any_width(run: Any, tmp_path: Path, width: int) -> None:
    found = probed(write_page([run], tmp_path / "report.html"), width, tmp_path / "profile")
    assert found["faults"] == []
    assert found["width"] == width
    assert found["scroll"] <= width and found["wide"] == []
    assert found["charts"] and all(500 < chart < width or width < 500 for chart in found["charts"])
    assert not found["tip"]["hidden"] and found["tip"]["inside"]
    space, candidates = run.result().space, run.result().candidates
    assert found["tip"]["cells"] == len(space)
    assert f"loss {loss_text(candidates[0].loss)}" in found["tip"]["text"]
    assert found["before"] == found["again"]
    by_group = dict(zip(_order(space), found["after"], strict=True))
    assert tuple(by_group[g] for g in range(len(space))) == candidates[0].plan.bits
    assert found["back"] and loss_text(candidates[0].loss) in found["shown"]
    assert found["closed"]


def _order(space: Any) -> list[int]:
    """Groups in the order of the heat map's cells."""
    return [g for row in layout(space).cells for g in row if g is not None]
