"""Which models fit which graphics cards, by the estimate of `qra doctor --model`: the table of docs/which-card.md.

    python -m benchmarks.memory.which_card           # again: models without a row
    python -m benchmarks.memory.which_card --anew    # all
    python -m benchmarks.memory.which_card Qwen3-32B # of those without a row this one

From published shapes alone: no weights and no GPU are needed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, PretrainedConfig, Qwen3Config

from benchmarks.common import RESULTS, append_lines, find_commit, read_lines
from benchmarks.memory.estimates import LLAMA, shapes
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator

ROWS = RESULTS / "which_card.jsonl"
PAGE = Path(__file__).parents[2] / "docs" / "which-card.md"
MARKS = ("<!-- made: cards -->\n", "<!-- end -->")
TOKENS = 512
QWEN = {"vocab_size": 151936, "max_position_embeddings": 40960, "num_key_value_heads": 8, "head_dim": 128}


def models() -> dict[str, PretrainedConfig]:
    """Published shapes, smallest first."""
    known = shapes()
    return {
        "Llama-3.2-1B": LlamaConfig(
            **LLAMA | {"tie_word_embeddings": True},
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=64,
        ),
        "Qwen3-4B": Qwen3Config(
            **QWEN,
            hidden_size=2560,
            intermediate_size=9728,
            num_hidden_layers=36,
            num_attention_heads=32,
            tie_word_embeddings=True,
        ),
        "Llama-3.1-8B": known["Llama-3.1-8B"],
        "Qwen3-14B": Qwen3Config(
            **QWEN,
            hidden_size=5120,
            intermediate_size=17408,
            num_hidden_layers=40,
            num_attention_heads=40,
            tie_word_embeddings=False,
        ),
        "Qwen3-30B-A3B": known["Qwen3-30B-A3B"],
        "Qwen3-32B": Qwen3Config(
            **QWEN,
            hidden_size=5120,
            intermediate_size=25600,
            num_hidden_layers=64,
            num_attention_heads=64,
            tie_word_embeddings=False,
        ),
        "Llama-3.1-70B": known["Llama-3.1-70B"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--anew", action="store_true", help="forget what was estimated before")
    parser.add_argument("names", nargs="*", metavar="MODEL", help="default: all")
    options, order = parser.parse_args(), list(models())
    if options.anew:
        ROWS.unlink(missing_ok=True)
    known = {row["model"] for row in read_lines(ROWS)}
    with tempfile.TemporaryDirectory() as folder:
        for name, config in models().items():
            if name not in known and name in (options.names or order):
                cards = fits(Path(folder) / name, config)
                row = {"model": name, "tokens": TOKENS, "cards": cards, "commit": find_commit()}
                append_lines(ROWS, row)
                print(name, [cell(card) for card in row["cards"]], flush=True)
    before, mark, rest = PAGE.read_text().partition(MARKS[0])
    rows = sorted(read_lines(ROWS), key=lambda row: order.index(row["model"]))
    PAGE.write_text(before + mark + "\n" + table(rows) + "\n" + rest[rest.index(MARKS[1]) :])


def fits(folder: Path, config: PretrainedConfig) -> list[dict[str, Any]]:
    """What each card takes, and with which settings, as `qra doctor --model` says."""
    config.save_pretrained(folder)
    config = {"model": {"name": str(folder)}, "training": {"max_length": TOKENS}}
    evaluator = QuantizedLoRAEvaluator(config, weights=False)
    return list(evaluator.list_fitting_cards())


def cell(card: dict[str, Any]) -> str:
    """A card's settings in a few words: the largest plan, a star for small batches, and the peak in GiB."""
    settings = card["settings"]
    if settings is None:
        return "–"
    star = "\\*" if "batch_size=1" in settings else ""
    plan = next((word for word in settings.split() if word.startswith("uniform")), "")
    names = {"uniform4r8": "4 bits", "uniform3r8": "3 bits", "uniform2r4": "2 bits", "": "any"}
    return f"{names[plan]}{star} ({card['peak_bytes'] / 2**30:.0f})"


def table(rows: list[dict[str, Any]]) -> str:
    """Models down, cards across."""
    names = [card["name"] for card in rows[0]["cards"]]
    lines = [f"| model | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        lines.append(f"| {row['model']} | {' | '.join(map(cell, row['cards']))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
