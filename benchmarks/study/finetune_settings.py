"""Settings and rows of `finetunes.py`, as `finetunes.yaml` has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import RESULTS as ALL_RESULTS

RESULTS = ALL_RESULTS / "study" / "finetunes.jsonl"
FILE = Path(__file__).with_name("finetunes.yaml")
RIVALS = {"untuned": "untuned", "lora": "16-bit LoRA", "qlora": "QLoRA"}
"""Names of the rows that this package does not quantize."""


@dataclass(frozen=True)
class Row:
    """What is tuned for one row.

    Attributes:
        kind: one of `RIVALS`, or `uniform`, `plan` (of the sensitivities), `first-wider` (a uniform plan, with the
            next wider bits in the first layers), `search` (the plan of a search, whose evaluations are those of the
            setting `search`), `peer` (the bits that another tool chose, in `peer_plans.jsonl`), or `merged` (16-bit
            LoRA merged into the weights, and then quantized: `quantized` is the row of that model).
        bits: of a uniform plan.
        rank: of all adapters; None: of a plan, which chooses ranks too.
        budget: such as `34.5MiB`.
        tool: of a peer, such as `autoround`; `bits` are what it was asked for.
        shuffle: seed with which the plan's choices are shuffled over groups of the same shapes.
    """

    kind: str
    bits: float | str | None = None
    rank: int | None = None
    budget: str | None = None
    tool: str | None = None
    shuffle: int | None = None

    @property
    def name(self) -> str:
        """How the row is called in tables."""
        if not self.is_ours:
            return RIVALS[self.kind]
        if self.kind == "peer":
            return f"{self.tool} at {self.bits} bits, rank {self.rank}"
        if self.kind == "merged":
            return f"16-bit LoRA, rank {self.rank}, merged, then {self.bits}-bit"
        if self.kind == "uniform":
            return f"uniform {self.bits}-bit, rank {self.rank}"
        shuffled = "" if self.shuffle is None else f", shuffled {self.shuffle}"
        return f"{self.kind.replace('first-wider', 'first layers wider')} within {self.budget}{shuffled}"

    @property
    def is_ours(self) -> bool:
        """Whether it is quantized by this package."""
        return self.kind not in RIVALS

    def to_dict(self) -> dict[str, Any]:
        """The fields that are given."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def read_settings(changes: Sequence[str] = (), file: Path = FILE) -> tuple[dict[str, Any], list[Row]]:
    """Settings and rows; an entry with lists makes a row of each combination.

    Args:
        changes: of settings, each `NAME=VALUE` with a value of YAML.
    """
    read = yaml.safe_load(file.read_text())
    settings = {**read["settings"], "plans": read["plans"]}
    for change in changes:
        name, _, value = change.partition("=")
        settings[name] = yaml.safe_load(value)
    rows = []
    for entry in read["rows"]:
        values = [value if isinstance(value, list) else [value] for value in entry.values()]
        rows += [Row(**dict(zip(entry, combination, strict=True))) for combination in product(*values)]
    return settings, rows
