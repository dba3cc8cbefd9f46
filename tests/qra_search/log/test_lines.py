"""Damage is found wherever it is, and all other lines are read."""

from __future__ import annotations

import json
import zlib

import pytest
from fakes import AdditiveEvaluator, make_space
from logs import OPTIONS, write_log

from qra_search import Plan, Proposal, Study, TrialLog, search
from qra_search.errors import DamagedLines
from qra_search.log import lines
from qra_search.log.errors import LogMismatch
from qra_search.log.lines import Contents
from qra_search.log.trial import Trial


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


def lost_at_most(found: Contents, truth: Contents, most: int) -> bool:
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
    truth = Contents.read(content)
    for at in range(len(content) - 1):
        flipped = b"" if cut_out else bytes([content[at] ^ 1 << at % 8])
        found = Contents.read(content[:at] + flipped + content[at + 1 :])
        line = content.count(b"\n", 0, at) + 1
        assert found.damage and found.damage[0][0] in (line, line + 1), at
        assert lost_at_most(found, truth, 2 if content[at] == 10 else 1), at


def test_a_log_that_ends_early_is_the_log_as_it_was_earlier(content):
    truth = Contents.read(content)
    whole = [0] + [at + 1 for at, byte in enumerate(content) if byte == 10]
    for at in range(len(content) + 1):
        found = Contents.read(content[:at])
        assert not found.damage and lost_at_most(found, truth, len(truth.trials))
        assert found.end == max(end for end in whole if end <= at)


def test_a_batch_that_was_broken_off_is_dropped_whole():
    proposals = [Trial(i, Proposal(plan)) for i, plan in enumerate(make_space().uniform_plans()[:4])]
    head = [lines.header({}, first=True), *lines.proposals(proposals[:1])]
    content = b"".join(map(lines.line, [*head, *lines.proposals(proposals[1:])]))
    start = content.index(b'{"trial":1,')
    for at in range(start, len(content)):
        found = Contents.read(content[:at])
        assert list(found.trials) == [0] and found.end == start and found.next == 1
    assert list(Contents.read(content).trials) == [0, 1, 2, 3]


def test_a_search_whose_log_was_damaged_runs_again_what_was_lost_and_ends_as_an_unbroken_one(tmp_path):
    path = tmp_path / "log"
    truth = write_log(path).trials
    content = path.read_bytes()
    for number in (3, 7):
        content = content.replace(f'"loss":{truth[number].loss!r}'.encode(), b'"loss":0.5')
    path.write_bytes(content)
    with pytest.warns(DamagedLines, match=r"log is damaged, line 11 was skipped: .*\(and 1 more\)"):
        log = TrialLog(path)
    assert [t.id for t in log.running] == [3, 7]
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
    assert Contents.read(b"".join(kept)).damage == [(10, "trial 3 is missing before it")]


def test_a_lost_header_is_bound_and_measured_again(tmp_path):
    path = tmp_path / "log"
    truth = write_log(path).trials
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"space"', b'"spice"', 1).replace(b'{"header":{"prior"', b'{"header":{"prier"'))
    with pytest.warns(DamagedLines):
        study = Study(AdditiveEvaluator(), **OPTIONS, log=path)
    assert study.sensitivities is None
    assert facts(study.run().trials) == facts(truth)
    assert study.sensitivities is not None and study.log.meta("space") == study.space.signature


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bits": [2.5] * 6}, "list of numbers or names of levels"),
        ({"bits": [True] * 6}, "list of numbers or names of levels"),
        ({"bits": []}, "one rank for each"),
        ({"bits": [2]}, "one rank for each"),
        ({"bits": None}, "TypeError"),
        ({"ranks": ["4"] * 6}, "list of numbers"),
        ({"fidelity": "much"}, "could not convert"),
        ({"seed": 1 << 70}, "whole number"),
        ({"seed": True}, "whole number"),
        ({"origin": 3}, "must be text"),
        ({"trial": -1}, "a number from 0 up"),
        ({"trial": 0}, "comes again"),
        ({"trial": 1 << 60}, "a number from 0 up"),
    ],
)
def test_a_proposal_of_wrong_content_is_named_though_its_checksum_is_right(content, change, says):
    rows = content.splitlines(keepends=True)
    at = next(i for i, raw in enumerate(rows) if raw.startswith(b'{"trial":2,"bits"'))
    rows[at] = resealed({**json.loads(rows[at]), **change})
    (number, what), *_ = Contents.read(b"".join(rows)).damage
    assert number == at + 1 and says in what


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"status": "perhaps"}, "status is 'perhaps'"),
        ({"loss": "low"}, "no number"),
        ({"loss": "nan"}, "loss is nan"),
        ({"metrics": [1]}, "no number"),
        ({"fidelity": 2}, "a share up to 1"),
        ({"trial": 0}, "has a result already"),
    ],
)
def test_a_result_of_wrong_content_is_named_though_its_checksum_is_right(content, change, says):
    rows = content.splitlines(keepends=True)
    at = next(i for i, raw in enumerate(rows) if raw.startswith(b'{"trial":2,"status"'))
    rows[at] = resealed({**json.loads(rows[at]), **change})
    found = Contents.read(b"".join(rows))
    assert [number for number, _ in found.damage] == [at + 1] and says in found.damage[0][1]
    assert found.trials[2].status == "running"


@pytest.mark.parametrize("record", [{"else": 1}, {"writer": 3}, {"header": [1]}, {"trial": 1}])
def test_a_line_of_no_known_kind_is_named(content, record):
    found = Contents.read(content + resealed(record))
    assert [number for number, _ in found.damage] == [content.count(b"\n") + 1]


def test_a_log_of_a_later_version_is_refused():
    with pytest.raises(LogMismatch, match="log version 'qra-log/4', this qra reads 'qra-log/3'"):
        Contents.read(resealed({"format": "qra-log/4"}))


def test_a_second_log_in_the_same_file_is_refused(content):
    line = content.count(b"\n") + 1
    with pytest.raises(LogMismatch, match=f"line {line}: a second log begins here: give each log a file of its own"):
        Contents.read(content + content)


def test_levels_keep_their_kind():
    plan = json.loads(lines.line(lines.proposals([Trial(0, Proposal(Plan((2, 4), (4, 8))))])[0]))
    assert plan["bits"] == [2, 4] and plan["ranks"] == [4, 8]


@pytest.mark.parametrize("key", ["crc", "trial", "format"])
def test_a_header_entry_with_a_name_of_the_format_is_refused(key):
    with pytest.raises(ValueError, match=f"no entry '{key}'"):
        TrialLog().set_meta(key, 1)
