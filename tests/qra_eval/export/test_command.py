"""`qra export`, as it is typed."""

from __future__ import annotations

import json

import pytest
from cli_runner import Qra


@pytest.fixture
def qra(capsys: pytest.CaptureFixture[str]) -> Qra:
    return Qra(capsys)


def test_an_export_is_written_and_its_difference_told(qra, runs, tmp_path):
    """As `peft`, as the run was searched for no engine."""
    shown = qra("export", str(runs["llama"].folder), "--out", str(tmp_path / "out"))
    assert shown.status == 0 and "the same logits as the tuned model's, exactly" in shown.out
    assert (tmp_path / "out" / "README.md").is_file()


def test_options_are_values_and_json_is_only_json(qra, runs, tmp_path):
    command = ("export", str(runs["llama"].folder), "--format", "peft", "--out", str(tmp_path / "out"))
    shown = qra(*command, "--option", "pad_ranks=true", "--json")
    assert json.loads(shown.out)["path"] == str(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 8 and not config["rank_pattern"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--format", "compressed-tensors", "--check"), "--engine vllm"),
        (("--format", "ggfu"), "unknown export format 'ggfu': did you mean gguf?"),
        (("--format", "gguf", "--option", "weights"), "a name and a value are needed"),
        (("--format", "gguf", "--option", "weights=q4"), "format gguf has no option 'weights': it has pre"),
    ],
)
def test_what_cannot_be_is_told_in_the_last_line_with_status_2(arguments, said, qra, runs):
    shown = qra("export", str(runs["uneven"].folder), *arguments)
    assert shown.status == 2 and said in shown.err.splitlines()[-1] and "Traceback" not in shown.err


def test_without_a_run_one_is_asked_for(qra):
    shown = qra("export", "--format", "gguf")
    assert shown.status == 2 and "RUN is missing" in shown.err


def test_the_list_names_every_format(qra):
    assert "GGUF" in qra("export", "--list").out.upper()
