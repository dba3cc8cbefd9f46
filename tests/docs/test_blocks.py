"""Every block of code in the documentation says how it is tested, and is; every notebook runs."""

from __future__ import annotations

import linecache
import shlex
from pathlib import Path

import docs_checks as checks
import docs_world as small
import pytest
from docs_blocks import ALL, NOTEBOOKS, PAGES, ROOT, Block, blocks_of, cells_of, commands

PARSED = [b for b in ALL if b.how == "parse"]
RUN = {page: run for page in PAGES if (run := [b for b in ALL if b.page == page and b.how == "run"])}
RUN |= {notebook: cells_of(notebook) for notebook in NOTEBOOKS}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_block_says_how_it_is_tested(page: Path) -> None:
    faults = [f"{b.place} {b.fault}" for b in blocks_of(page) if b.fault]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("block", PARSED, ids=lambda b: b.place)
def test_a_block_parses(block: Block) -> None:
    check = getattr(checks, f"check_{block.language}", None)
    assert check is not None, (
        f"{block.place}: language {block.language!r} cannot be parsed; mark it none, WHY"
    )
    check(block)


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("sh", "qra serch --model tiny"),
        ("sh", "qra search --no-such-option 3"),
        ("sh", "qra search --set evaluation.stepps=3"),
        ("sh", "make nothing"),
        ("sh", "pip install 'qra-toolkit[nothing]'"),
        ("python", "from qra_search import serch"),
        ("yaml", "search: {evaluation: 3}"),
    ],
)
def test_a_wrong_block_is_noticed(language: str, code: str) -> None:
    block = Block(ROOT / "README.md", 1, language, code, "parse", None)
    with pytest.raises(Exception):  # noqa: B017 - of as many kinds as there are parsers
        getattr(checks, f"check_{language}")(block)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QRA_CACHE", str(folder.with_name("world-cache")))
        patch.chdir(folder)
        small.small_training(patch)
        small.build_world(folder)
    return folder


@pytest.mark.parametrize("page", list(RUN), ids=lambda p: p.name)
def test_a_page_runs(page: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QRA_CACHE", str(world.with_name("world-cache")))
    small.copy_world(world, tmp_path, "".join(b.code for b in RUN[page]))
    monkeypatch.chdir(tmp_path)
    small.small_training(monkeypatch)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in RUN[page]:
        code = small.shrunk(block.code)
        if block.language == "python":
            # With its lines known, a traceback shows them.
            linecache.cache[block.place] = (len(code), None, code.splitlines(keepends=True), block.place)
            exec(compile(code, block.place, "exec"), names)
        else:
            assert block.language == "sh", f"{block.place}: {block.language!r} cannot be run"
            for command in commands(code):
                small.run_command(shlex.split(command, comments=True))


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    missing = [p.name for p in PAGES if p.parent == ROOT / "docs" and f"- {p.name}" not in nav]
    assert not missing, f"mkdocs.yml names no {missing} in its nav"
