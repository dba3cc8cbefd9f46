"""Uploads to the hub: refused before anything is spent, only what is meant for others, and a card that tells of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_runs import Guessing, add_test, evil_space, make_run

from qra_search.errors import BadInput, RunFailed
from qra_search.integrations.hub import check_hub, push_export, push_tuned
from qra_search.integrations.model_card import model_card
from qra_search.runs.folder import RunFolder
from qra_search.space.serialization import plan_to_dict


class FakeHub:
    """What the client is asked, and what it answers."""

    def __init__(self) -> None:
        self.who: dict[str, Any] = {"name": "me", "orgs": [{"name": "lab"}], "auth": {"accessToken": {"role": "write"}}}
        self.error: Exception | None = None
        self.uploaded: list[tuple[str, set[str]]] = []

    def whoami(self) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        return self.who

    def create_repo(self, repo: str, *, exist_ok: bool) -> str:
        assert exist_ok
        return f"https://hub/{repo}"

    def upload_folder(
        self, *, repo_id: str, folder_path: str, allow_patterns: list[str] | None, commit_message: str
    ) -> None:
        from huggingface_hub.utils import filter_repo_objects

        if self.error is not None:
            raise self.error
        files = [f.relative_to(folder_path).as_posix() for f in Path(folder_path).rglob("*") if f.is_file()]
        self.uploaded.append((repo_id, set(filter_repo_objects(files, allow_patterns=allow_patterns))))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    import huggingface_hub

    fake = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    return fake


def tuned_run(path: Path, model: str = "owner/base") -> RunFolder:
    """A run whose plan was tuned, as `qra finetune` leaves it."""
    run = make_run(path, space=evil_space(kinds=False), strategy=Guessing())
    add_test(run)
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").write_bytes(b"weights")
    (path / "quantized.safetensors").write_bytes(b"weights")
    known = plan_to_dict(run.result().space, run.plan())
    run.plan_file.write_text(json.dumps({**known, "model": model, "backend": "mixed-calibrated"}))
    return run


@pytest.mark.parametrize(
    ("repo", "said"),
    [("two/many/parts", "no repository's name"), ("me/b d", "no repository's name"), ("alone", "names no owner"),
     ("you/plan", "writes for me, lab, not for you")],
)  # fmt: skip
def test_a_repository_that_cannot_be_written_to_is_refused_in_one_line(hub: FakeHub, repo: str, said: str) -> None:
    with pytest.raises(BadInput, match=said) as error:
        check_hub(repo)
    assert "\n" not in str(error.value)


def test_one_s_own_and_one_s_group_s_repositories_pass(hub: FakeHub) -> None:
    check_hub("me/plan")
    check_hub("lab/plan")


def test_without_a_token_the_mend_is_named(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(BadInput, match="hf auth login"):
        check_hub("me/plan")


def test_a_token_that_only_reads_is_refused(hub: FakeHub) -> None:
    hub.who["auth"]["accessToken"]["role"] = "read"
    with pytest.raises(BadInput, match="only reads"):
        check_hub("me/plan")


def test_a_hub_that_does_not_answer_is_said(hub: FakeHub) -> None:
    hub.error = ConnectionError("no route\nto host")
    with pytest.raises(BadInput, match="does not answer .no route to host."):
        check_hub("me/plan")


def test_a_tuned_run_leaves_without_its_data_log_and_config(hub: FakeHub, tmp_path: Path) -> None:
    run = tuned_run(tmp_path / "a")
    assert push_tuned(run, "me/plan") == "https://hub/me/plan"
    repo, files = hub.uploaded[0]
    assert repo == "me/plan"
    assert files == {"README.md", "adapter/adapter_model.safetensors", "plan.json", "quantized.safetensors"}
    assert run.test_file.is_file() and run.log_file.is_file()  # there, and not uploaded


def test_an_export_leaves_whole_with_the_command_that_serves_it(hub: FakeHub, tmp_path: Path) -> None:
    run, out = tuned_run(tmp_path / "a"), tmp_path / "a" / "exports" / "gguf"
    out.mkdir(parents=True)
    (out / "model.gguf").write_bytes(b"weights")
    push_export(run, out, "me/plan", serve=f"llama-server -m {out}/model.gguf")
    assert hub.uploaded[0][1] == {"model.gguf", "README.md"}
    card = (out / "README.md").read_text()
    assert "hf download me/plan --local-dir served" in card
    assert "llama-server -m served/model.gguf" in card and str(tmp_path) not in card


def test_a_failed_upload_keeps_what_was_made_and_says_how_to_try_again(hub: FakeHub, tmp_path: Path) -> None:
    run = tuned_run(tmp_path / "a")
    hub.error = ConnectionError("gone")
    with pytest.raises(RunFailed, match="hf upload me/plan"):
        push_tuned(run, "me/plan")
    assert (run.adapter / "adapter_model.safetensors").is_file()


def test_the_card_has_base_plan_losses_and_intervals(tmp_path: Path) -> None:
    run = tuned_run(tmp_path / "a")
    card = model_card(run, "me/plan", load="LOAD")
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "owner/base" and "lora" in front["tags"]
    assert "# plan\n" in card and card.endswith("LOAD")
    assert "**this one**" in card and "uniform 2 bits, rank 4" in card
    ranks = [group["rank"] for group in json.loads(run.plan_file.read_text())["groups"]]
    assert f"{ranks.count(ranks[0])} × rank {ranks[0]}" in card
    row = next(line for line in card.splitlines() if line.startswith("| uniform 2 bits"))
    assert " % (" in row and " to " in row  # how much lower, and its interval


def test_a_base_of_this_machine_is_named_without_its_path(tmp_path: Path) -> None:
    card = model_card(tuned_run(tmp_path / "a", model="/home/someone/models/mine"), "me/plan", load="")
    assert "`mine`" in card and "/home" not in card
    assert "base_model" not in card


def test_a_plan_that_was_not_tuned_has_no_card(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="run `qra finetune` on it first"):
        model_card(make_run(tmp_path / "a"), "me/plan", load="")
