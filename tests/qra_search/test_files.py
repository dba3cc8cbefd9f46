"""Files that a reader never sees half of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qra_search.files import read_json, replace_file, write_json, write_text


def test_the_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with replace_file(path) as partial:
        partial.write_text("half")
        assert path.read_text() == "old"
    assert path.read_text() == "half"


@pytest.mark.parametrize("durable", [False, True])
def test_what_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1}, durable=durable)
    with pytest.raises(ZeroDivisionError), replace_file(path, durable=durable) as partial:
        partial.write_text("{")
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")}, durable=durable)
    assert read_json(path) == {"a": 1} and os.listdir(tmp_path) == ["a.json"]


def test_what_is_no_text_is_written_as_a_question_mark(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "runs/bad\udcff")
    assert (tmp_path / "a").read_text() == "runs/bad?"


def test_a_durable_file_is_synced_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "a.txt", []
    sync = os.fsync

    def watched(handle: int) -> None:
        seen.append(path.exists())
        sync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    write_text(path, "x")
    assert seen == []
    path.unlink()
    write_text(path, "x", durable=True)
    assert seen == [False, True], "the content before the replacement, the folder after it"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_files_have_the_permissions_that_the_umask_allows(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with replace_file(tmp_path / "a") as partial:
            partial.touch(mode=0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode
