"""Reports and the docs site in headless Chromium, at three widths in both themes: what axe-core finds, what is cut.

    python -m benchmarks.robustness.browser --runs RUN RUN --site site --screenshots FOLDER

Needs chromium, the package playwright, and axe-core (`npm install axe-core`, or QRA_AXE names its script). Of several
runs the comparison is looked at as well; `make docs` makes the site.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.common import RESULTS, append_lines
from qra_search.app.folder import RunFolder
from qra_search.app.report.page import write_page

ROOT = Path(__file__).resolve().parents[2]
ROWS = RESULTS / "cli" / "browser.jsonl"
WIDTHS = (380, 768, 1440)
HEIGHT = 1000
THEMES = ("light", "dark")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
CUT = """() => {
  const holds = (e) => /auto|scroll|hidden|clip/.test(getComputedStyle(e).overflowX);
  const held = (e) => { for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
    if (holds(p)) return true; return false; };
  const seen = (e) => { const s = getComputedStyle(e), r = e.getBoundingClientRect();
    return s.visibility !== "hidden" && s.display !== "none" && r.width > 1 && r.height > 1; };
  const all = [...document.querySelectorAll("body *")].filter((e) => !e.closest("svg, .sr, [data-md-component=skip]"));
  const wide = all.filter((e) => seen(e) && !held(e) && e.getBoundingClientRect().right > innerWidth + 0.5);
  const hides = (e) => /hidden|clip/.test(getComputedStyle(e).overflowX) && e.scrollWidth > e.clientWidth + 1
    && e.innerText && e.innerText.trim() && seen(e);
  const theme = ".md-sidebar, .md-search, .md-header, .md-dialog, .md-ellipsis";
  const cut = all.filter((e) => hides(e) && !e.closest(theme));
  const scrolls = all.filter((e) => /auto|scroll/.test(getComputedStyle(e).overflowX) && seen(e)
    && e.scrollWidth > e.clientWidth + 1 && !e.closest(theme));
  const some = (list) => list.slice(0, 5).map((e) => e.outerHTML.slice(0, 120));
  return {over: Math.max(0, document.documentElement.scrollWidth - innerWidth), wide: some(wide), cut: some(cut),
    scrolls: some(scrolls)};
}"""
"""Pixels by which the page is wider than the window, elements that stick out of it, those that hide their
text, and those that have to be scrolled sideways."""
AXE = """() => axe.run(document, {resultTypes: ["violations"]}).then((r) => ({rules: r.passes.length, found:
  r.violations.map((v) => ({id: v.id, impact: v.impact, help: v.help, nodes: v.nodes.length,
                            first: v.nodes[0].html.slice(0, 160), why: v.nodes[0].failureSummary}))}))"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", nargs="*", type=Path, default=[], help="folders of runs")
    parser.add_argument("--site", type=Path, help="folder of the built documentation")
    parser.add_argument("--screenshots", type=Path, help="folder for PNG files; default: none are made")
    parser.add_argument("--pages", nargs="*", help="only pages of these names; nothing is recorded")
    options = parser.parse_args()
    script, rows = axe_script(), []
    if not options.pages:
        ROWS.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        pages = {**reports(options.runs, Path(folder)), **docs(options.site)}
        for name, file in pages.items():
            if options.pages and name not in options.pages:
                continue
            for row in looked_at(browser, file, script, name, options.screenshots):
                rows.append(row)
                record(row, options.pages)
                if faulty(row):
                    print(
                        f"{name} {row['width']} {row['theme']}: {json.dumps(faulty(row), indent=1)}",
                        flush=True,
                    )
        if options.site is not None and not options.pages:
            rows.append(searched(browser, options.site / "index.html"))
            record(rows[-1], options.pages)
        browser.close()
    print(f"{len(rows)} rows, {sum(bool(faulty(row)) for row in rows)} with faults")


def record(row: dict[str, Any], only: list[str] | None) -> None:
    """Append a row; those of a run over some pages alone are not kept."""
    if not only:
        append_lines(ROWS, row)


def faulty(row: dict[str, Any]) -> dict[str, Any]:
    """What is wrong with a row; empty if nothing is."""
    if "search" in row:
        return {} if row["search_results"] else row
    wrong = ["over", "wide", "cut", "violations", "faults"]
    if row["page"].startswith("report"):
        wrong.append("scrolls")  # wide tables of the documentation may be scrolled
    return {name: row[name] for name in wrong if row[name]}


def reports(runs: list[Path], folder: Path) -> dict[str, Path]:
    """The report of each run, by name."""
    found = {f"report-{RunFolder(path).name}": RunFolder(path).check() for path in runs}
    return {name: write_page(run, folder / f"{name}.html") for name, run in found.items()}


def docs(site: Path | None) -> dict[str, Path]:
    """The pages of the site by name; the page that only a server shows is left out, as its links begin at a root."""
    files = [] if site is None else sorted(set(site.glob("*.html")) - {site / "404.html"})
    return {f"docs-{file.stem}": file for file in files}


def looked_at(
    browser: Browser, file: Path, script: str, name: str, screenshots: Path | None
) -> Iterator[dict[str, Any]]:
    """A row for every width and theme of a page."""
    for theme in THEMES:
        context = browser.new_context(color_scheme="light" if theme == "light" else "dark", bypass_csp=True)
        page = context.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error, faults=faults: faults.append(str(error)))
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": HEIGHT})
            page.goto(file.resolve().as_uri())
            page.evaluate(
                "() => { for (const more of document.querySelectorAll('details')) more.open = true; }"
            )
            cut = page.evaluate(CUT)
            page.add_script_tag(content=script)
            axe = page.evaluate(AXE)
            yield {
                "page": name,
                "width": width,
                "theme": theme,
                **cut,
                "rules_passed": axe["rules"],
                "violations": axe["found"],
                "faults": list(faults),
            }
            if screenshots is not None:
                shoot(page, screenshots / f"{name}-{width}-{theme}.png")
        context.close()


def shoot(page: Page, target: Path) -> None:
    """A picture of the whole page."""
    target.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=target, full_page=True)


def searched(browser: Browser, index: Path) -> dict[str, Any]:
    """How many pages the site's search finds for a word when it is opened from a folder."""
    page = browser.new_page()
    page.goto(index.resolve().as_uri())
    page.locator("[data-md-component=search-query]").first.fill("embeddings")
    page.wait_for_timeout(4000)
    found = page.locator(".md-search-result__item").count()
    page.close()
    return {"page": "docs-index", "search": "embeddings", "search_results": found}


def chromium() -> str:
    """The browser's path."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise SystemExit("chromium is not installed")
    return found


def axe_script() -> str:
    """The text of axe-core."""
    for file in (
        Path(os.environ.get("QRA_AXE", "axe.min.js")),
        ROOT / "node_modules" / "axe-core" / "axe.min.js",
    ):
        if file.is_file():
            return file.read_text()
    raise SystemExit("axe-core is needed: `npm install axe-core`, or QRA_AXE names its script")


if __name__ == "__main__":
    main()
