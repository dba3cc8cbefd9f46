"""The one look of tables in the terminal: columns without lines."""

from __future__ import annotations

from collections.abc import Collection

from rich.table import Table


def columns(*names: str, left: Collection[str] = (), gap: int = 2) -> Table:
    """A table of so many columns, aligned right but for those named in `left`."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, gap, 0, 0))
    for name in names:
        table.add_column(name, justify="left" if name in left else "right")
    return table
