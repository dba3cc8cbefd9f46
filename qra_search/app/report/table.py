"""The one kind of table: texts in rows, which the terminal prints without lines and the page writes as HTML."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

SHORT = 12
"""Cells of at most so many characters are not broken into lines in a terminal."""
WIDTH = 120
"""Columns of what does not go to a terminal."""


@dataclass(frozen=True)
class TextTable:
    """A table whose cells are texts.

    Attributes:
        heads: of the columns; the first is aligned left, and the others right but for those in `left`.
        marked: rows that stand out, such as that of the plan found.
        notes: sentences that explain what is in the cells.
    """

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Collection[str] = ()
    marked: Collection[int] = ()
    notes: Sequence[str] = ()

    def __rich__(self) -> Group:
        table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
        for i, name in enumerate(self.heads):
            short = max((len(row[i]) for row in self.rows), default=0) <= SHORT
            side = "left" if i == 0 or name in self.left else "right"
            table.add_column(Text(name), justify=side, no_wrap=short, overflow="fold")  # type: ignore[arg-type]
        for i, row in enumerate(self.rows):
            table.add_row(*map(Text, row), style="bold" if i in self.marked else "")
        return Group(table, *([Text("\n" + " ".join(self.notes), style="dim")] if self.notes else []))

    def __str__(self) -> str:
        return render_text(self)


def render_text(thing: object) -> str:
    """What rich prints of an object, as plain text."""
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, force_jupyter=False)
    console.print(thing)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]
