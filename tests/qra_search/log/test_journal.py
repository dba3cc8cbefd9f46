"""A journal is read as it was written, without what was broken off at its end, or refused with the line."""

from __future__ import annotations

import json

import pytest
from logs import write_log

from qra_search.log.journal import LOG_FORMAT, JournalContents, LogError, parse_journal


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("log") / "log"
    write_log(path, 6, batch=3).close()
    return path.read_bytes()


def outcomes(contents: JournalContents) -> list:
    return [(t.id, t.status, t.plan, t.evaluation and t.evaluation.memory_bytes) for t in contents.trials]


@pytest.mark.parametrize("cut_out", [False, True])
def test_a_byte_that_was_flipped_or_cut_out_is_refused_or_loses_no_result(content, cut_out):
    """A digit within a number cannot be told from another: the plan, its bytes and what became of it can."""
    truth = outcomes(parse_journal(content))
    refused = 0
    for at in range(len(content) - 1):
        flipped = b"" if cut_out else bytes([content[at] ^ 1 << at % 8])
        try:
            found = parse_journal(content[:at] + flipped + content[at + 1 :])
        except LogError:
            refused += 1
            continue
        line = content[content.rfind(b"\n", 0, at) + 1 : content.index(b"\n", at)]
        is_bytes = b'"memory_bytes":' in line[: at - content.rfind(b"\n", 0, at)]
        assert is_bytes or outcomes(found) == truth, at
        assert [t.status for t in found.trials] == [status for _, status, *_ in truth]
    assert refused > len(content) / 3


def test_a_log_that_ends_early_is_the_log_as_it_was_earlier_and_has_a_batch_whole_or_not_at_all(content):
    whole = [0] + [at + 1 for at, byte in enumerate(content) if byte == 10]
    for at in range(len(content) + 1):
        end = max(end for end in whole if end <= at)
        found = parse_journal(content[:at])
        assert found.end == end and outcomes(found) == outcomes(parse_journal(content[:end]))


PROPOSAL = {"plan": {"bits": [2] * 6, "ranks": [4] * 6}}
RESULT = {"loss": 1.0, "memory_bytes": 1}


@pytest.mark.parametrize(
    ("trial", "says"),
    [
        (
            {"proposal": {"plan": {"bits": [2.5] * 6, "ranks": [4] * 6}}},
            "proposal.plan.bits.0.int: input should",
        ),
        (
            {"proposal": {"plan": {"bits": [2], "ranks": [4, 4]}}},
            "must be lists of one length, at least 1: got 1 and 2",
        ),
        (
            {"proposal": {"plan": {"bits": None, "ranks": [4]}}},
            "proposal.plan.bits: bits and ranks of a plan must be lists",
        ),
        ({"proposal": {**PROPOSAL, "fidelity": "much"}}, "proposal.fidelity: input should be a valid number"),
        ({"proposal": {**PROPOSAL, "seed": 1 << 70}}, "proposal.seed: input should be less than"),
        ({"proposal": {**PROPOSAL, "origin": 3}}, "proposal.origin: input should be a valid string"),
        ({"id": 0}, "it proposes trial 0 where trial 6 is next"),
        ({"id": 7}, "it proposes trial 7 where trial 6 is next"),
        ({"id": -1}, "id: input should be greater than"),
        ({"status": "perhaps"}, "status: input should be"),
        ({"status": "done"}, "with status done needs an evaluation"),
        ({"evaluation": RESULT}, "with status running must have no evaluation"),
        (
            {"status": "done", "evaluation": RESULT},
            "a result of trial 6, but no line before proposes this trial",
        ),
        (
            {"id": 2, "status": "done", "evaluation": RESULT},
            "a result of trial 2, but no line before proposes this trial",
        ),
        ({"status": "done", "evaluation": {**RESULT, "loss": "low"}}, "evaluation.loss: input should"),
        ({"status": "done", "evaluation": {**RESULT, "loss": "NaN"}}, "loss is nan"),
        ({"status": "done", "evaluation": {**RESULT, "metrics": [1]}}, "evaluation.metrics: input should"),
        ({"status": "done", "evaluation": {**RESULT, "fidelity": 2}}, "less than or equal to 1"),
        ({"status": "done", "evaluation": {**RESULT, "else": 2}}, "evaluation.else: unexpected"),
    ],
)
def test_a_line_of_wrong_content_is_refused_with_its_number_and_field(content, trial, says):
    line = json.dumps({"trials": [{"id": 6, "proposal": PROPOSAL, **trial}]}).encode()
    number = content.count(b"\n") + 1
    with pytest.raises(LogError, match=f"line {number} is damaged.*restore the file from a copy") as caught:
        parse_journal(content + line + b"\n", "the log")
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_second_result_of_a_trial_is_refused(content):
    with pytest.raises(LogError, match="a second result of trial 5"):
        parse_journal(content + content.splitlines(keepends=True)[-1])


@pytest.mark.parametrize(
    "line", [{"else": 1}, {"trials": 3}, {"header": [1]}, {"trials": [{"id": 1}]}, {}, [], 3]
)
def test_a_line_of_no_known_kind_is_refused(content, line):
    with pytest.raises(LogError, match=f"line {len(content.splitlines()) + 1} is damaged"):
        parse_journal(content + json.dumps(line).encode() + b"\n")


def test_a_proposal_that_was_taken_out_is_noticed_and_a_result_leaves_its_trial_running(content):
    lines = content.splitlines(keepends=True)
    for at, line in enumerate(lines):
        without = b"".join(lines[:at] + lines[at + 1 :])
        if b'"status":"done"' in line:
            assert [t.status for t in parse_journal(without).trials].count("running") == 1
        elif b'"trials"' in line:
            with pytest.raises(LogError, match="damaged"):
                parse_journal(without)


def test_a_log_of_another_version_and_a_second_log_in_the_file_are_refused(content):
    with pytest.raises(LogError, match=f"line 1 .* not in the format '{LOG_FORMAT}' .*use another folder"):
        parse_journal(content.replace(LOG_FORMAT.encode(), b"qra-log/3"))
    with pytest.raises(
        LogError, match=f"line {len(content.splitlines()) + 1} .*the first line, and no other"
    ):
        parse_journal(content + content)
    for other in (b"text\n", b"{}\n", b'{"a":1}\n', b"[1]\n", b"\x00\xff"):
        with pytest.raises(LogError):
            parse_journal(other)
