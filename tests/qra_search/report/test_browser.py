"""The report in a real browser, where there is one: no error, and nothing wider than the window."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from report_runs import add_tunings, make_run

from qra_search.report.page import write_page

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")

WATCH = "<script>window.faults=[];addEventListener('error',e=>faults.push(e.message));</script>"
PROBE = """<script>
addEventListener("load", () => {
  const inside = [...document.querySelectorAll("body *")].filter((e) => !e.closest(".scroll, .chart, pre, code, svg"));
  const wide = inside.filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5);
  const found = {faults, width: innerWidth, scroll: document.documentElement.scrollWidth,
                 wide: wide.map((e) => e.outerHTML.slice(0, 80)),
                 copy: document.querySelectorAll(".cmd button").length};
  parent.postMessage(JSON.stringify(found), "*");
});
</script>"""
FRAME = """<!doctype html><iframe style="width:%dpx;height:1200px;border:0" src="probe.html"></iframe>
<pre id="found"></pre>
<script>addEventListener("message", (e) => { document.getElementById("found").textContent = e.data; });</script>"""
"""A window has a least width, a frame has none."""


def probed(page: Path, width: int, profile: Path) -> dict[str, Any]:
    """What a script that is put into a page says of it at a width."""
    assert BROWSER is not None
    text = page.read_text().replace("<head>", f"<head>{WATCH}", 1).replace("</body>", f"{PROBE}</body>", 1)
    page.with_name("probe.html").write_text(text)
    frame = page.with_name("frame.html")
    frame.write_text(FRAME % width)
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}",
         "--window-size=1700,1300", "--virtual-time-budget=20000", "--dump-dom", frame.as_uri()],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    match = re.search(r'<pre id="found">({.*?)</pre>', done.stdout, re.DOTALL)
    assert match is not None, done.stdout[-2000:]
    return json.loads(html.unescape(match.group(1)))


@pytest.mark.parametrize("width", [380, 1600])
def test_the_report_fits_any_width(tmp_path: Path, width: int) -> None:
    run = make_run(tmp_path / "a")
    add_tunings(run)
    found = probed(write_page([run], tmp_path / "report.html"), width, tmp_path / "profile")
    assert found["faults"] == [] and found["width"] == width
    assert found["scroll"] <= width and found["wide"] == []
    assert found["copy"] > 2
