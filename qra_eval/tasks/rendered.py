"""An example as the model sees it in tuning: its text in pieces, and which of them are learnt."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from qra_eval.tasks.base import Task
from qra_eval.tasks.encoding import IGNORED


@dataclass(frozen=True)
class Piece:
    """A part of the text: one special token, or ordinary ones that are all learnt or all not."""

    text: str
    learnt: bool
    special: bool = False


@dataclass(frozen=True)
class RenderedExample:
    """One row of tuning.

    Attributes:
        pieces: the row's text in order; the answer begins where the first learnt one does.
        template: it went through the tokenizer's chat template.
        tokens: of the row.
        learnt: how many of them have labels.
        cut: tokens that were left out because the row was too long.
    """

    pieces: tuple[Piece, ...]
    template: bool
    tokens: int
    learnt: int
    cut: int

    @property
    def end(self) -> str | None:
        """The special token that the last answer is taught to end with; None if it is taught none."""
        learnt = [piece for piece in self.pieces if piece.learnt]
        return learnt[-1].text if learnt and learnt[-1].special else None


def rendered_example(task: Task, tokenizer: Any, max_length: int, seed: int = 0) -> RenderedExample:
    """One row that is tuned on, by the seed: row `seed` of the calibration split, counted around.

    Raises:
        BadInput: the row cannot be tokenized, or the tokenizer's chat template refuses it.
    """
    examples = task.split("calibration")
    example = examples[seed % len(examples)]
    row = task.encode([example], tokenizer, max_length)[0]
    ids, special = row.input_ids.tolist(), set(tokenizer.all_special_ids)
    kinds = [(label != IGNORED, token in special) for token, label in zip(ids, row.labels.tolist(), strict=True)]
    # Special tokens stand alone. A piece is what it adds to the text: by itself it may lose its first space.
    groups = groupby(range(len(ids)), lambda i: (*kinds[i], i if kinds[i][1] else -1))
    pieces, done = [], ""
    for (learnt, alone, _), places in groups:
        text = tokenizer.decode(ids[: list(places)[-1] + 1], clean_up_tokenization_spaces=False)
        pieces.append(Piece(text[len(done) :], learnt, alone))
        done = text
    return RenderedExample(
        tuple(pieces), task.in_chat(example, tokenizer), len(ids), sum(learnt for learnt, _ in kinds), row.cut
    )
