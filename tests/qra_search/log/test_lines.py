"""Damage is found wherever it is, and all other lines are read."""

from __future__ import annotations

import json
import zlib

import pytest
from fakes import AdditiveEvaluator, make_space
from logs import OPTIONS, write_log

from qra_search import Proposal, Study, TrialLog, search
from qra_search.errors import DamagedLines
from qra_search.log.lines import LogContents, LogError, read_log


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("log") / "log"
    write_log(path, 6).close()
    return path.read_bytes()


def resealed(record: dict) -> bytes:
    """A line with a right checksum, made by hand as the docs say."""
    body = json.dumps({k: v for k, v in record.items() if k != "crc"}, separators=(",", ":"))[:-1]
    return f'{body},"crc":"{zlib.crc32(body.encode()):08x}"}}\n'.encode()


def facts(trials) -> list:
    return [(t.id, t.proposal, t.loss if t.done else t.status) for t in trials]


def lost_at_most(found: LogContents, truth: LogContents, most: int) -> bool:
    """Whether every trial is as it was written, but for so many that are missing or have lost their result."""
    differs = 0
    for number, trial in truth.trials.items():
        known = found.trials.get(number)
        if known != trial:
            assert known is None or (known.status == "running" and known.proposal == trial.proposal)
            differs += 1
    return differs <= most and set(found.trials) <= set(truth.trials)


def test_the_checksum_is_that_of_the_docs(content):
    for raw in content.splitlines():
        body, crc = raw[:-18], raw[-10:-2]
        assert raw == body + b',"crc":"' + crc + b'"}' and crc.decode() == f"{zlib.crc32(body):08x}"
        assert raw + b"\n" == resealed(json.loads(raw))


@pytest.mark.parametrize("cut_out", [False, True])
def test_a_byte_that_was_flipped_or_cut_out_is_named_and_costs_its_line_alone(content, cut_out):
    """Two lines, if it was the end between them; without its last end a log ends early, as below."""
    truth = read_log(content)
    for at in range(len(content) - 1):
        flipped = b"" if cut_out else bytes([content[at] ^ 1 << at % 8])
        found = read_log(content[:at] + flipped + content[at + 1 :])
        line = content.count(b"\n", 0, at) + 1
        assert found.damage and found.damage[0][0] in (line, line + 1), at
        assert lost_at_most(found, truth, 2 if content[at] == 10 else 1), at


def test_a_log_that_ends_early_is_the_log_as_it_was_earlier(content):
    truth = read_log(content)
    whole = [0] + [at + 1 for at, byte in enumerate(content) if byte == 10]
    for at in range(len(content) + 1):
        found = read_log(content[:at])
        assert not found.damage and lost_at_most(found, truth, len(truth.trials))
        assert found.end == max(end for end in whole if end <= at)


def test_a_batch_that_was_broken_off_is_dropped_whole(tmp_path):
    first, *batch = make_space().uniform_plans()[:4]
    with TrialLog(tmp_path / "log") as log:
        log.propose(Proposal(first))
        log.propose_all([Proposal(plan) for plan in batch])
    content = (tmp_path / "log").read_bytes()
    start = content.rindex(b"\n", 0, -1) + 1
    for at in range(start, len(content)):
        found = read_log(content[:at])
        assert list(found.trials) == [0] and found.end == start and found.next == 1
    assert list(read_log(content).trials) == [0, 1, 2, 3]


def test_a_search_whose_log_was_damaged_runs_again_what_was_lost_and_ends_as_an_unbroken_one(tmp_path):
    path = tmp_path / "log"
    truth = write_log(path).trials
    content = path.read_bytes()
    for number in (3, 7):
        content = content.replace(f'"loss":{truth[number].loss!r}'.encode(), b'"loss":0.5')
    path.write_bytes(content)
    with pytest.warns(DamagedLines, match=r"log is damaged, line 11 was skipped: .*\(and 1 more\)"):
        log = TrialLog(path)
    assert [t.id for t in log.running_trials] == [3, 7]
    with pytest.warns(DamagedLines):
        result = search(AdditiveEvaluator(), **OPTIONS, log=path)
    assert facts(result.trials) == facts(truth)


def test_a_lost_proposal_leaves_a_gap_that_a_resumed_search_keeps(tmp_path):
    path = tmp_path / "log"
    write_log(path, 6).close()
    path.write_bytes(path.read_bytes().replace(b'{"trial":3,"bits"', b'{"trial":3,"bats"'))
    with pytest.warns(DamagedLines):
        log = TrialLog(path)
    assert [t.id for t in log] == [0, 1, 2, 4, 5]
    assert [what for _, what in log.damage] == [
        "its checksum is wrong",
        "it is the result of trial 3, whose proposal is missing",
    ]
    with pytest.warns(DamagedLines):
        result = search(AdditiveEvaluator(), **{**OPTIONS, "evaluations": 8}, log=path)
    assert [t.id for t in result.trials] == [0, 1, 2, 4, 5, 6, 7, 8]
    assert all(t.done for t in result.trials)


def test_a_line_that_was_taken_out_is_noticed_by_the_numbers(content):
    kept = [raw for raw in content.splitlines(keepends=True) if not raw.startswith(b'{"trial":3,')]
    assert read_log(b"".join(kept)).damage == [(10, "trials 3 to 3 are missing before it")]


def test_a_lost_header_is_bound_and_measured_again(tmp_path):
    path = tmp_path / "log"
    truth = write_log(path).trials
    content = path.read_bytes()
    path.write_bytes(
        content.replace(b'"space"', b'"spice"', 1).replace(b'{"header":{"prior"', b'{"header":{"prier"')
    )
    with pytest.warns(DamagedLines):
        study = Study(AdditiveEvaluator(), **OPTIONS, log=path)
    assert study.sensitivities is None
    assert facts(study.run().trials) == facts(truth)
    assert study.sensitivities is not None and study.log.get_meta("space") == study.space.signature


PROPOSAL, RESULT = b'{"trial":2,"bits"', b'{"trial":2,"status"'


@pytest.mark.parametrize(
    ("line", "change", "says"),
    [
        (PROPOSAL, {"bits": [2.5] * 6}, "list of numbers or names of levels"),
        (PROPOSAL, {"bits": [2]}, "one rank for each"),
        (PROPOSAL, {"bits": None}, "TypeError"),
        (PROPOSAL, {"ranks": ["4"] * 6}, "list of numbers"),
        (PROPOSAL, {"fidelity": "much"}, "could not convert"),
        (PROPOSAL, {"seed": 1 << 70}, "whole number"),
        (PROPOSAL, {"origin": 3}, "must be text"),
        (PROPOSAL, {"trial": 0}, "appears twice"),
        (PROPOSAL, {"trial": 1 << 60}, "a number from 0 up"),
        (RESULT, {"status": "perhaps"}, "status is 'perhaps'"),
        (RESULT, {"loss": "low"}, "is not a number"),
        (RESULT, {"loss": "nan"}, "loss is nan"),
        (RESULT, {"metrics": [1]}, "is not a number"),
        (RESULT, {"fidelity": 2}, "must be above 0 and at most 1"),
        (RESULT, {"trial": 0}, "has a result already"),
    ],
)
def test_a_line_of_wrong_content_is_named_though_its_checksum_is_right(content, line, change, says):
    rows = content.splitlines(keepends=True)
    at = next(i for i, raw in enumerate(rows) if raw.startswith(line))
    rows[at] = resealed({**json.loads(rows[at]), **change})
    found = read_log(b"".join(rows))
    assert found.damage[0][0] == at + 1 and says in found.damage[0][1]
    assert 2 not in found.trials or found.trials[2].status == "running"


@pytest.mark.parametrize("record", [{"else": 1}, {"batch": 3}, {"header": [1]}, {"trial": 1}])
def test_a_line_of_no_known_kind_is_named(content, record):
    found = read_log(content + resealed(record))
    assert [number for number, _ in found.damage] == [content.count(b"\n") + 1]


def test_a_log_of_a_later_version_and_a_second_log_in_the_file_are_refused(content):
    with pytest.raises(LogError, match="log version 'qra-log/4', this qra reads 'qra-log/3'"):
        read_log(resealed({"format": "qra-log/4"}))
    line = content.count(b"\n") + 1
    with pytest.raises(
        LogError, match=f"line {line}: a second log starts here: write each log to its own file"
    ):
        read_log(content + content)
