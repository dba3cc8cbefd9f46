"""How each model of `answers.py` is tuned and tested."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.study import protocol
from qra_search.space.memory import UNQUANTIZED_BITS

RANK = 16
"""Of all uniform plans and rivals."""
RANKS = (4, 8, 16)
NF4 = {"name": "bitsandbytes-nf4", "double_quant": True}
GGUF = {"name": "gguf", "types": ["Q3_K", "Q4_K", "Q6_K"]}
GGUF_BITS, GGUF_TABLES = (3, 4, 6), (4, 6, UNQUANTIZED_BITS)


@dataclass(frozen=True)
class Setting:
    """How a model is tuned and tested.

    Attributes:
        task: that is tuned on and tested.
        training, finetune: sections that all rows share.
        shares: of QLoRA's bytes, for plans of the sensitivities, in the order in which they are measured.
        widths: of linears in the space of plans.
        tables: widths of embeddings and head: few, as encoding takes a microsecond a weight.
        evaluation: of a search, and `evaluations` how many it makes; 0: none is searched.
        loss_rows: test rows whose loss is measured, where answers are generated.
        options: of the task.
        compute: dtype of products. bfloat16 is what a GPU computes in, and a CPU with AMX three times as fast.
        twice: rows and columns of the table that the file holds both as embedding and as head, rounded apart.
    """

    task: str
    training: dict[str, Any]
    finetune: dict[str, Any]
    shares: tuple[int, ...]
    widths: tuple[int, ...] = (2, 3, 4, 8)
    tables: tuple[int, ...] = (4, 5, UNQUANTIZED_BITS)
    evaluation: dict[str, Any] = field(default_factory=dict)
    evaluations: int = 0
    loss_rows: int = 96
    options: dict[str, Any] = field(default_factory=dict)
    compute: str = protocol.COMPUTE
    twice: tuple[int, int] | None = None

    @property
    def generated(self) -> bool:
        """Whether answers are written by the model; else the likeliest of given choices is taken."""
        return self.task == "gsm8k"


SETTINGS = {
    "gemma-270m": Setting(
        "arc_easy",
        {"batch_size": 8, "max_length": 192, "learning_rate": 1e-3, "scales": "auto"},
        {"steps": 40, "test_rows": 400},
        (45, 35, 60, 75, 100, 50),
    ),
    "qwen-1.5b": Setting(
        "gsm8k",
        {"batch_size": 4, "max_length": 256, "learning_rate": 1e-3, "scales": "auto"},
        {"steps": 36, "test_rows": 400},
        (60, 50, 100, 75),
        widths=(3, 4, 8),  # no budget of these is near 2 bits
        tables=(4, 8, UNQUANTIZED_BITS),
        evaluation={"steps": 12, "validation_rows": 64},
        evaluations=4,
        options={"chat": True},
        compute="bfloat16",
        twice=(151936, 1536),
    ),
}
