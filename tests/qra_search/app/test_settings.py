"""From keywords and configs to the settings of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qra_search import BadInput
from qra_search.app.config import RunConfig, make_config
from qra_search.app.settings import change_settings, make_settings


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            3,
            r"config is 3 \(int\): a RunConfig, a mapping of its fields, or the path of a YAML file is needed",
        ),
        (RunConfig, "RunConfig.* a RunConfig, a mapping of its fields"),
        ({"serch": {}}, "serch is not a known field: did you mean search"),
    ],
    ids=repr,
)
def test_a_config_that_cannot_be_used_is_refused_in_words(config: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        make_settings(config)


def test_of_a_searchs_settings_a_tuning_takes_the_rows_that_it_validates_on() -> None:
    known = make_config({})
    changes = {"evaluation.validation_rows": 8, "finetune.evaluate_every": 1}
    assert change_settings(known, settings=changes).evaluation.validation_rows == 8
    with pytest.raises(BadInput, match=r"evaluation\.steps is 12 in this run and cannot be changed"):
        change_settings(known, settings={"evaluation.steps": 8})


def test_relative_paths_are_kept_from_the_root_and_names_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("tiny", "models/mine"):
        Path(folder).mkdir(parents=True)
    for file in ("rows.jsonl", "slots.py"):
        Path(file).touch()
    for given, kept in (
        (
            {"model.name": "models/mine", "task.name": "rows.jsonl"},
            (str(tmp_path / "models/mine"), str(tmp_path / "rows.jsonl")),
        ),
        ({"model.name": "tiny", "task.name": "slots.py:Slots"}, ("tiny", f"{tmp_path / 'slots.py'}:Slots")),
        ({"model.name": "owner/name", "task.name": "arithmetic"}, ("owner/name", "arithmetic")),
    ):
        config = make_settings(None, given)
        assert (config.model.name, config.task.name) == kept
    config = make_settings(
        {"task": {"name": "text", "data": "rows.jsonl", "metrics": ["slots.py:f", "module:f"]}}
    )
    assert config.task.data == str(tmp_path / "rows.jsonl")
    assert config.task.metrics == (f"{tmp_path / 'slots.py'}:f", "module:f")
    for cache in ("bank", str(tmp_path / "bank")):
        assert make_settings({"quantization": {"cache": cache}}).quantization.cache == str(tmp_path / "bank")
