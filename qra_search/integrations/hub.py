"""A tuned run, or an export of one, uploaded to the Hugging Face hub with a model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qra_search.errors import BadInput, RunFailed, one_line
from qra_search.files import write_text
from qra_search.integrations.model_card import CARD, model_card
from qra_search.runs.folder import RunFolder

TUNED = ("adapter/*", "quantized.safetensors*", "plan.json")
"""What a tuned run's folder holds for others. Its log, samples and config name data and paths, and stay here."""
MEND = "write OWNER/NAME, such as me/smollm2-66mib"


def check_hub(repo: str) -> None:
    """See, before anything is spent, that a repository can be written to.

    Raises:
        BadInput: no such name is allowed, nobody is logged in, the hub cannot be reached, or the token may not write.
    """
    hub = _hub()
    try:
        hub.utils.validate_repo_id(repo)
    except hub.errors.HFValidationError as error:
        raise BadInput(f"--push-to-hub {repo} is no repository's name ({one_line(str(error), 120)}): {MEND}") from error
    owner, slash, _ = repo.partition("/")
    if not slash:
        raise BadInput(f"--push-to-hub {repo} names no owner: {MEND}")
    if not hub.get_token():
        raise BadInput("--push-to-hub needs a token, and there is none: run `hf auth login`, or set HF_TOKEN")
    try:
        who = hub.HfApi().whoami()
    except Exception as error:  # of the network, of the hub, or of its client: all mean that nothing can be uploaded
        raise BadInput(
            f"--push-to-hub {repo}: the hub does not answer ({one_line(str(error), 120)}): see to the network and the "
            f"token, or leave it out and upload later"
        ) from error
    owners = [who["name"], *(group["name"] for group in who.get("orgs", ()))]
    if owner not in owners:
        raise BadInput(f"--push-to-hub {repo}: this token writes for {', '.join(owners)}, not for {owner}")
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise BadInput("--push-to-hub needs a token that may write, and this one only reads: make another on the hub")


def push_tuned(run: RunFolder, repo: str) -> str:
    """Upload what `qra finetune` left in a folder: adapter, base and plan, and a card; returns its address.

    Raises:
        RunFailed: the hub refused it; what was tuned is kept.
    """
    write_text(run.path / CARD, model_card(run, repo, load=LOAD.format(repo=repo)))
    return _upload(run.path, repo, (*TUNED, CARD))


def push_export(run: RunFolder, folder: Path, repo: str, *, serve: str = "") -> str:
    """Upload an export of a run and a card; returns its address.

    Args:
        serve: the command that serves the export in its present folder, if it is known.

    Raises:
        RunFailed: the hub refused it; the export is kept.
    """
    load = FETCH.format(repo=repo) + (SERVE.format(serve=serve.replace(str(folder), "served")) if serve else "")
    write_text(folder / CARD, model_card(run, repo, load=LOAD.format(repo=repo) if _is_run(folder) else load))
    return _upload(folder, repo, None)


def _is_run(folder: Path) -> bool:
    """Whether an export is one that `qra_eval.load` reads, as format `peft` is."""
    return (folder / "quantized.safetensors").is_file()


def _upload(folder: Path, repo: str, patterns: Sequence[str] | None) -> str:
    api = _hub().HfApi()
    try:
        address = str(api.create_repo(repo, exist_ok=True))
        api.upload_folder(
            repo_id=repo, folder_path=str(folder), allow_patterns=None if patterns is None else list(patterns),
            commit_message="Upload a plan tuned by qra",
        )  # fmt: skip
    except Exception as error:  # as above; what was made is on disk
        raise RunFailed(
            f"{folder} was not uploaded to {repo} ({one_line(str(error), 120)}); it is kept: upload it with "
            f"`hf upload {repo} {folder}`"
        ) from error
    return address


def _hub() -> Any:
    """The hub's client, imported when it is needed: commands that upload nothing start without it."""
    import huggingface_hub
    import huggingface_hub.errors
    import huggingface_hub.utils

    return huggingface_hub


LOAD = """The adapter is exact on its quantized base, which `qra` rebuilds:

```sh
hf download {repo} --local-dir tuned
```

```python
import qra_eval

model, tokenizer = qra_eval.load("tuned")
```

`adapter/` is an ordinary PEFT directory. On an unquantized base it loads too, but is another model.
"""
FETCH = """```sh
hf download {repo} --local-dir served
```
"""
SERVE = """
Then, in its engine:

```sh
{serve}
```
"""
