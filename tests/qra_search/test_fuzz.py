"""Hostile and broken input: readers answer in one line of their own; no other exception, no hang, no stray file."""

from __future__ import annotations

import time

import pytest
from fakes import AdditiveEvaluator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qra_search import search
from qra_search.app.cli.errors import run_safely
from qra_search.app.config import ConfigError, RunConfig, load_config, make_config

QUICK = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3),
    max_leaves=8,
)
FIELDS = [name for name in RunConfig.model_fields] + [
    f"{name}.{inner}"
    for name, field in RunConfig.model_fields.items()
    for inner in getattr(type(field.default), "model_fields", {})
]


@QUICK
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=12), values, max_size=4))
def test_any_fields_make_a_config_or_one_line(fields):
    try:
        assert isinstance(make_config({}, fields), RunConfig)
    except ConfigError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000


@pytest.mark.parametrize(
    "content",
    [
        "a: " + "[" * 50_000,
        "? " * 20_000,
        "options: {x: !!python/object/apply:os.system ['touch pwned']}\n",
        "model: " + "9" * 100_000,
        "search: {evaluations: 1e999999999}\n",
        "x" * (2 << 20),
    ],
    ids=lambda text: text[:30].replace("\n", " "),
)
def test_a_bomb_is_refused_in_one_short_line_and_little_time(tmp_path, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(content)
    begun = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert len(str(caught.value)) < 2000
    assert time.process_time() - begun < 60, "hung"
    assert [f.name for f in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    "content", ["[" * 200_000, '{"format": ' * 100_000, "\x00", '{"bits": 1e999}', "9" * 5000]
)
def test_a_plan_that_no_one_would_write_is_refused_in_one_line(content, tmp_path, capsys):
    (tmp_path / "plan.json").write_text(content)
    search(AdditiveEvaluator(), strategy="random", evaluations=2, log=tmp_path / "trials.jsonl")
    capsys.readouterr()
    assert run_safely(["show", str(tmp_path), str(tmp_path / "plan.json")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "plan" in told[0] and len(told[0]) < 1000
