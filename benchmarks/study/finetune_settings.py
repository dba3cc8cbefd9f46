"""Settings and rows of `finetunes.py`, as `finetunes.yaml` has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import RESULTS as ALL_RESULTS

RESULTS = ALL_RESULTS / "study" / "finetunes.jsonl"
FILE = Path(__file__).with_name("finetunes.yaml")


@dataclass(frozen=True)
class Row:
    """What is tuned for one row.

    Attributes:
        kind: `untuned`, `lora` (in 16 bits), `qlora`, or a plan of ours: `uniform`, `plan` (of the sensitivities),
            `shuffled` (the plan's choices over groups of the same shape) or `first-wider`.
        bits: of a uniform plan.
        rank: of all adapters; of a plan of the sensitivities none is given.
        budget: of a plan, such as `34.5MiB`.
        shuffle: seed of a shuffled plan.
    """

    name: str
    kind: str
    bits: int | str | None = None
    rank: int | None = None
    budget: str | None = None
    shuffle: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields that are given, but for the name."""
        return {name: value for name, value in asdict(self).items() if value is not None and name != "name"}

    @property
    def is_ours(self) -> bool:
        """Whether it is quantized by this package."""
        return self.kind not in ("untuned", "lora", "qlora")


def read_settings(changes: Sequence[str] = (), file: Path = FILE) -> tuple[dict[str, Any], list[Row]]:
    """Settings and rows.

    Args:
        changes: of settings, each `NAME=VALUE` with a value of YAML.
    """
    read = yaml.safe_load(file.read_text())
    settings = {**read["settings"], "plans": read["plans"]}
    for change in changes:
        name, _, value = change.partition("=")
        settings[name] = yaml.safe_load(value)
    return settings, [Row(**row) for row in read["rows"]]
