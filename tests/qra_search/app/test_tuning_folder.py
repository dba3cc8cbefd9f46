"""The folder of a tuning: its record is read back as it was, any damage is told, and one process works in it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qra_search import BadInput, Plan
from qra_search.app.tuning_folder import CHECKPOINT_FILE, TuningFolder
from qra_search.schemas import TuningRecord

RECORD = TuningRecord(
    Plan((2, "nf4"), (4, 0)),
    3,
    7,
    99,
    1.5,
    (0.1, 2.25),
    (3, 4),
    {"exact_match": (1.0, 0.0)},
    ({"prompt": "é", "wanted": "b", "before": "", "after": "c"},),
    settings={"training": {"rate": 1e-3}},
    finished_at=5.0,
)


def test_a_record_is_read_back_as_it_was_and_the_checkpoint_is_gone(tmp_path: Path) -> None:
    tuning = TuningFolder(tmp_path / RECORD.id)
    assert tuning.record() is None
    with tuning.lock() as is_ours:
        assert is_ours
        (tuning.path / CHECKPOINT_FILE).touch()
        tuning.write(RECORD)
    data = json.loads(tuning.record_file.read_text())
    assert (
        data["plan"] == RECORD.plan.to_dict() and data["id"] == RECORD.id and data["row_nats"] == [0.1, 2.25]
    )
    again = tuning.record()
    assert again == RECORD and again is not None and again.id == tuning.id
    assert not (tuning.path / CHECKPOINT_FILE).exists()


def test_scores_that_are_not_finite_cost_no_record(tmp_path: Path) -> None:
    tuning, odd = TuningFolder(tmp_path), {"odd": float("nan")}
    tuning.write(
        replace(RECORD, row_scores={**RECORD.row_scores, "odd": (1.0, float("inf"))}, commonest_scores=odd)
    )
    assert tuning.record() == RECORD


def test_the_id_tells_plans_seeds_and_settings_apart() -> None:
    records = [
        TuningRecord(plan, seed, 7, 9, settings=settings)
        for plan in (RECORD.plan, Plan((3, "nf4"), (4, 0)))
        for seed in (0, 1)
        for settings in ({}, {"a": 1})
    ]
    assert len({record.id for record in records}) == 8 and all(len(record.id) == 12 for record in records)
    assert TuningRecord(RECORD.plan, 0, 7, 9, seconds=9.0).id == records[0].id


def test_whatever_byte_of_a_record_is_flipped_it_is_refused_or_the_same(tmp_path: Path) -> None:
    tuning = TuningFolder(tmp_path)
    tuning.write(RECORD)
    whole = tuning.record_file.read_bytes()
    refused = 0
    for i in range(len(whole)):
        tuning.record_file.write_bytes(whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :])
        try:
            assert tuning.record() == RECORD, i
        except BadInput as error:
            assert str(tuning.record_file) in str(error)
            refused += 1
    assert refused > len(whole) // 2


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "qra-test/1"}', '{"format": "qra-tuning/1"}'])
def test_what_is_no_record_is_refused_in_a_line_with_the_mend(tmp_path: Path, text: str) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(BadInput, match="record.json is (damaged, or no record|not JSON)"):
        TuningFolder(tmp_path).record()


def test_a_folder_is_one_processs_at_a_time(tmp_path: Path) -> None:
    with TuningFolder(tmp_path / "a").lock() as first, TuningFolder(tmp_path / "a").lock() as second:
        assert first and not second
        with TuningFolder(tmp_path / "b").lock() as other:
            assert other
    with TuningFolder(tmp_path / "a").lock(wait=True) as freed:
        assert freed
