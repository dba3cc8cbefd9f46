"""The schema of a run: read, written, compared, and faults named by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qra_search import BadInput
from qra_search.app.config import (
    ConfigError,
    RunConfig,
    change_settings,
    dump_config,
    find_differences,
    load_config,
    make_config,
    make_settings,
)


@pytest.mark.parametrize(
    "data",
    [
        {
            "quantization": {"backend": {2: "hqq", 4: "bitsandbytes"}},
            "search": {"memory": ["108MiB", "3.5bpw", "75%"], "options": {"draws": 3}},
            "space": {"bits": [8, 2], "ranks": [0, 16]},
        },
        {"quantization": {"backend": {2: "hqq", 4: {"name": "hqq", "group_size": 128}}}},
        {"engine": "llama.cpp", "model": {"name": "tiny"}},
    ],
    ids=lambda data: next(iter(data)),
)
def test_a_config_that_is_written_reads_back_to_an_equal_one(data: dict[str, Any], tmp_path: Path) -> None:
    config = make_config(data)
    assert config.quantization.backend == data.get("quantization", {"backend": "gguf"})["backend"]
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert (
        load_config(tmp_path / "config.yaml") == config == make_config(json.loads(config.model_dump_json()))
    )


def test_an_empty_file_means_every_default(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("")
    assert load_config(tmp_path / "c.yaml") == RunConfig()


def test_overrides_win_at_any_depth_and_leave_the_rest() -> None:
    data = {"search": {"options": {"draws": 3}, "seed": 4}}
    config = make_config(data, {"search.options.moves": 9, "evaluator": "landscape"})
    assert config.search.options == {"draws": 3, "moves": 9}
    assert (config.search.seed, config.evaluator) == (4, "landscape")
    assert data == {"search": {"options": {"draws": 3}, "seed": 4}}


def test_differences_name_fields_by_path_with_both_values() -> None:
    old, new = make_config({"options": {"a": 1}}), make_config({"search": {"seed": 7}, "options": {"b": 2}})
    assert find_differences(old, new) == {
        "search.seed": (0, 7),
        "options.a": (1, None),
        "options.b": (None, 2),
    }
    assert find_differences(old, old) == {}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"evaluation": {"steps": "many"}}, "evaluation.steps is 'many': must be a valid integer"),
        ({"evaluation": {"stepz": 1}}, "evaluation.stepz is not a known field: did you mean steps?"),
        (
            {"search": {"learn_from": "runs/a"}},
            "config: search.learn_from is not a known field: `qra schema` lists",
        ),
        ({"search": None}, "search is None: must be a valid dictionary"),
        ({"search": {"memory": "lots"}}, "search.memory is 'lots': 'lots' is not a memory budget: write one"),
        ({"search": {"evaluations": float("inf")}}, "search.evaluations is inf: must be a finite number"),
        ({"search": {"seed": -1}}, "search.seed is -1: must be greater than or equal to 0"),
        ({"space": {"bits": [4, 4]}}, "space.bits is [4, 4]: must be a list of one or more distinct values"),
        ({"space": {"bits": [17]}}, "space.bits is [17]: must be 'auto' or less than or equal to 16"),
        ({"space": {"ranks": [-1]}}, "space.ranks.0 is -1: must be greater than or equal to 0"),
        ({"space": {"granularity": "head"}}, "space.granularity is 'head': must be 'auto', 'module'"),
        ({"quantization": {"backend": 3}}, "quantization.backend is 3: must be a valid string or "),
        (
            {"quantization": {"backend": {"nam": "hqq"}}},
            "a backend as a mapping needs the key `name`, or only bit-widths as",
        ),
        ({"model": "smollm2"}, "model is 'smollm2': must be a valid dictionary"),
        ({"model": {"name": ""}}, "model.name is ''"),
        ({1: 2}, "1 is 1: Keys should be strings"),
        (
            {"training": {"scales": "maybe"}},
            "training.scales is 'maybe': must be a valid boolean, unable to interpret input or 'auto'",
        ),
        ({"space": {"bits": [2, "x"]}}, "space.bits is [2, 'x']: must be 'auto' or a valid integer or a"),
        ({"space": {"bits": [True, 2]}}, "space.bits is [True, 2]: must be 'auto' or a valid integer"),
        ({"space": {"ranks": [True, 2]}}, "space.ranks.0 is True: must be a valid integer"),
        ({"task": {"name": "x" * 500, "data": 5}}, "task.data is 5"),
    ],
)
def test_a_fault_is_one_line_with_field_value_and_what_is_allowed(data: dict[Any, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- 1\n- 2\n", "holds a list, but a mapping of sections is needed"),
        ("!!python/object/apply:os.system ['true']", "cannot be read as YAML"),
        ("options: {a: " + "[" * 10_000 + "]" * 10_000 + "}", "cannot be read as YAML"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "c.yaml")


def test_rows_in_place_of_a_config_are_refused_with_the_option_that_takes_them(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "answer": "b"}')
    with pytest.raises(ConfigError, match=r"holds rows, not a config: give it as --task .*train\.jsonl"):
        load_config(tmp_path / "train.jsonl")


def test_a_missing_file_and_a_binary_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no config file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        load_config(tmp_path / "c.yaml")


def test_an_override_of_a_field_within_a_plain_value_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"model.name cannot be set, because model is 'smollm2', not a section"
    ):
        make_config({"model": "smollm2"}, {"model.name": "tiny"})


@pytest.mark.parametrize("given", [113246208, "113246208"])
def test_a_budget_may_be_a_plain_number_of_bytes(given: Any, tmp_path: Path) -> None:
    config = make_config({"search": {"memory": given}})
    assert [budget.text for budget in config.search.memory] == [given]
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


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
