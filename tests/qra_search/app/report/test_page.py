"""The HTML report: complete, self-contained, escaped, accessible in what can be checked without a browser."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_runs import EVIL, Bits, Guessing, add_tunings, evil_space, make_run
from rich.console import Console

from qra_search import Study, search
from qra_search.app.folder import RunFolder, Snapshot
from qra_search.app.report import tables
from qra_search.app.report.page import render_page
from qra_search.space.memory import format_bytes
from qra_search.strategies.simple import UniformStrategy

VOID = {"meta", "img", "br", "input", "link", "hr"}


class Page(HTMLParser):
    """Elements with their attributes, and whether every one is closed where it must be."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.faults: list[str] = []
        self.feed(text)
        self.faults += [f"<{tag}> is never closed" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = make_run(tmp_path_factory.mktemp("report") / "evil")
    add_tunings(folder)
    return folder


@pytest.fixture(scope="module")
def text(run: RunFolder) -> str:
    return render_page(run.read())


def test_no_name_reason_or_setting_gets_out_of_its_place(text: str) -> None:
    parsed = Page(text)
    assert len(parsed.all("script")) == 1
    assert parsed.all("img") == []
    assert not any(name.startswith("on") for _, attributes in parsed.elements for name in attributes)
    assert "<script>alert" not in text
    # What is escaped is still there to be read: kind, reason, origin, model, setting.
    shown = "".join(parsed.text)
    assert shown.count(EVIL) >= 5


def test_nothing_is_fetched(text: str) -> None:
    parsed = Page(text)
    for _, attributes in parsed.elements:
        assert not set(attributes) & {"src", "srcset", "action", "data", "poster"}
        assert (attributes.get("href") or "#").startswith("#")
    style = "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
    assert "url(" not in style and "@import" not in style
    script = text.rpartition("<script>")[2]
    assert not re.search(r"\b(fetch|XMLHttpRequest|import\s*\(|WebSocket|sendBeacon)\b", script)


def test_a_page_of_a_big_search_stays_light() -> None:
    space = evil_space(layers=60)
    result = search(Bits(space), strategy=Guessing(), evaluations=450, memory_budget=space.memory.maximum)
    text = render_page(Snapshot(RunFolder("big"), None, result, {}, None, (), None))
    assert len(text.encode()) < 700_000


def test_ids_are_unique_and_every_reference_finds_one(text: str) -> None:
    parsed = Page(text)
    assert parsed.faults == []
    ids = [a["id"] for _, a in parsed.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    assert {a["href"] for _, a in parsed.elements if a.get("href")} <= {f"#{id}" for id in ids}


def test_the_lead_is_one_sentence_and_no_text_has_a_backtick(tmp_path: Path) -> None:
    run = make_run(tmp_path / "s", evaluations=8)
    add_tunings(run, seeds=1)
    text = render_page(run.read())
    lead = re.search(r'<h1>.*?</h1>\s*<p class="say">(.*?)</p>', text, re.DOTALL)
    assert lead is not None and re.findall(r"\. [A-Z]", lead[1]) == [] and lead[1].endswith(".")
    assert "`" not in text.partition("<body>")[2].partition("<script>")[0]


def test_charts_have_titles_and_descriptions_and_tables_have_headers(text: str) -> None:
    parsed = Page(text)
    charts = [a for a in parsed.all("div") if a.get("role") == "img"]
    assert len(charts) == len(parsed.all("svg")) == 2
    assert all(" memory" in (a["aria-label"] or "") for a in charts) and len(parsed.all("title")) == 1
    assert all(a["viewbox"] for a in parsed.all("svg"))
    heads = parsed.all("th")
    assert heads and all(a.get("scope") in ("col", "row", "rowgroup") for a in heads)
    assert len(parsed.all("caption")) == len(parsed.all("table"))
    assert parsed.all("html")[0]["lang"] == "en" and len(parsed.all("h1")) == 1


def test_the_heading_is_the_verdict_and_the_finding_with_its_losses_stands_below(text: str) -> None:
    """By `add_tunings`: half right of the plan and 0.4 of the better uniform plan, whose losses are 1.005 and 1.105."""
    heading = re.search(r"<h1[^>]*>(.*?)</h1>\s*<p[^>]*>(.*?)</p>", text, re.DOTALL)
    assert heading is not None
    verdict, finding = (part for part in heading.groups())
    assert re.fullmatch(r"Deploy the plan \(\d+\.\d KiB\): 50\.0% right, uniform .* 40\.0% .*", verdict)
    assert finding.split()[5:9] == ["1.005", "instead", "of", "1.105"]
    assert "on 1 test row; best uniform plan: 40.0%" in text
    assert re.search(
        r"of the model in 16 bits\. While it generates, transformers holds about [\d.]+ [KM]iB", text
    )


def test_the_first_figures_and_the_marked_row_are_of_what_is_to_be_deployed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "s", evaluations=8)
    add_tunings(run, seeds=1)
    selected = run.read().selected
    assert selected is not None
    run.select(
        selected, max(run.read().result.memory_budgets), tolerance=100.0
    )  # the smallest is good enough
    comparison = run.read().comparison()
    assert (
        comparison is not None and comparison.deployed is not None and comparison.deployed.role == "uniform"
    )
    facts = render_page(run.read()).partition('<dl class="facts">')[2].partition("</dl>")[0]
    size = format_bytes(comparison.deployed.memory_bytes)
    assert "40.0%" in facts and "the plan: 50.0%" in facts and size in facts
    table = tables.make_tuned_table(comparison)
    assert [table.rows[i][2] for i in table.marked] == [size]


def test_an_empty_answer_is_told_once_in_the_heading_and_shown_in_the_table(tmp_path: Path) -> None:
    run = make_run(tmp_path / "s", evaluations=8)
    add_tunings(run, seeds=1, samples=({"prompt": "a", "wanted": "b", "before": "c", "after": ""},))
    header, _, rest = render_page(run.read()).partition("<header>")[2].partition("</header>")
    assert header.count("answers nothing") == 1 and "s test loss is" in header
    assert ">(nothing)</td>" in rest


def test_a_cell_says_on_a_narrow_screen_which_column_it_is_of(text: str) -> None:
    heads = {a.get("data-head") for a in Page(text).all("td")} - {None}
    assert {"Exact match", "Size", "Test loss", "Change"} <= heads
    assert (
        "content: attr(data-head)" in text
        and "overflow-wrap: anywhere; }" not in text.partition("</style>")[0]
    )


def test_the_heat_maps_show_the_plan_that_is_handed_over(run: RunFolder, text: str) -> None:
    plan = run.read().require_plan()
    for kind, values in (("bits", plan.bits), ("rank", plan.ranks)):
        table = re.search(rf'data-of="{kind}">(.*?)</table>', text, re.DOTALL)
        assert table is not None
        cells = re.findall(r'data-g="(\d+)" class="[a-z]+-\d+">(\d+)<', table.group(1))
        assert {int(g): int(v) for g, v in cells} == dict(enumerate(values))


def test_every_section_says_what_it_should(run: RunFolder, text: str) -> None:
    shown = " ".join("".join(Page(text).text).split())
    for words in (
        "Against uniform",
        "Loss against memory",
        "layer by layer",
        "Failures",
        "What to do next",
        "Settings of the run",
        "out of memory",
        f"qra search {run.path}",
    ):
        assert words in shown


def test_a_run_without_sensitivities_failures_config_or_result_has_a_page(tmp_path: Path) -> None:
    class Plain(Bits):
        def sensitivities(self) -> None:  # type: ignore[override]
            return None

    for name, evaluator, strategy in (
        ("plain", Plain(evil_space(kinds=False)), UniformStrategy()),
        ("begun", Bits(evil_space()), Guessing()),
    ):
        study = Study(evaluator, strategy=strategy, evaluations=6, log=tmp_path / name / "trials.jsonl")
        if name == "plain":
            study.run()
        study.log.close()
        text = render_page(RunFolder(tmp_path / name).read())
        assert Page(text).faults == [] and "Failures" not in text
        assert ("No plan has been evaluated with success yet" in text) == (name == "begun")
        assert name == "begun" or "Sensitivity" not in text


def test_tunings_are_shown_with_escaped_answers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "s", evaluations=8)
    answers = {"prompt": f"How many? {EVIL}", "wanted": "7", "before": "9 or so", "after": EVIL}
    add_tunings(run, seeds=1, rows=12, samples=(answers,))
    page_text = render_page(run.read())
    shown = " ".join("".join(Page(page_text).text).split())
    for words in (
        "Answers to test rows",
        "9 or so",
        "95% intervals, for losses computed over 12 test rows",
        "uniform 3 bits",
        *(record.id for record in run.records()),
    ):
        assert words in shown
    assert "<script>alert" not in page_text and "onerror=alert(2)>" not in page_text


def test_every_table_of_the_terminal_is_that_of_the_page(run: RunFolder, text: str) -> None:
    data, comparison = run.read(), run.read().comparison()
    shown = " ".join("".join(Page(text).text).split())
    assert comparison is not None
    for table in (
        tables.make_tuned_table(comparison),
        tables.make_comparison_table(data.result),
        tables.make_failure_table(data.result),
    ):
        console = Console(file=io.StringIO(), width=400)
        console.print(table)
        printed = console.file.getvalue()  # type: ignore[attr-defined]
        for row in table.rows:
            assert all(" ".join(cell.split()) in shown for cell in row)
            assert all(cell.strip() in printed for cell in row)
