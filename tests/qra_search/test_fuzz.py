"""Hostile and broken input: readers answer in one line of their own; no other exception, no hang, no stray file."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest
from fakes import AdditiveEvaluator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qra_search import search
from qra_search.app.cli.app import run_safely
from qra_search.app.config import ConfigError, RunConfig, load_config, make_config
from qra_search.log.journal import LogError, parse_journal

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


class Quiet(bytes):
    """Bytes that a failing example does not print."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


@pytest.fixture(scope="module")
def log_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        search(AdditiveEvaluator(), strategy="random", evaluations=12, log=path)
        return Quiet(path.read_bytes())


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


edits = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=40)), min_size=1, max_size=4)


def edited(content: bytes, changes) -> bytes:
    data = bytearray(content)
    for share, new in changes:
        at = int(share * max(len(data) - 1, 0))
        data[at : at + len(new)] = new
    return bytes(data)


@QUICK
@given(edits, st.floats(0, 1) | st.just(1.0))
def test_any_change_to_a_log_is_read_truly_or_refused(log_file, changes, kept):
    content = edited(log_file, changes)
    content = content[: int(kept * len(content))]
    truth = parse_journal(log_file).trials
    try:
        found = parse_journal(content).trials
    except LogError as error:
        assert "\n" not in str(error)
    else:
        done = [trial for trial in found if trial.done]
        assert all(trial.plan == truth[trial.id].plan for trial in done)
        assert [t.id for t in found] == list(range(len(found))) and len(found) <= len(truth)


@pytest.mark.parametrize(
    "content", ["[" * 200_000, '{"format": ' * 100_000, "\x00", '{"bits": 1e999}', "9" * 5000]
)
def test_a_plan_that_no_one_would_write_is_refused_in_one_line(log_file, content, tmp_path, capsys):
    (tmp_path / "plan.json").write_text(content)
    (tmp_path / "trials.jsonl").write_bytes(log_file)
    assert run_safely(["show", str(tmp_path), str(tmp_path / "plan.json")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "plan" in told[0] and len(told[0]) < 1000
