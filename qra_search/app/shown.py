"""What terminals and notebooks show of results, by functions of the report."""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar, Self

from qra_search.study.result import SearchResult

SHOWN_BY = "qra_search.app.report.tables"
"""Stands above this module, and is imported when something is first shown."""


class Shown:
    """What terminals and notebooks show by a function of the report, named `shown_by`."""

    shown_by: ClassVar[str]

    def __rich__(self) -> Any:
        return getattr(import_module(SHOWN_BY), self.shown_by)(self)

    def _repr_html_(self) -> str:
        return str(import_module(SHOWN_BY).render_html(self))


class ShownResult(Shown, SearchResult):
    """The result of a search, as a run gives it."""

    shown_by = "render_result"

    @classmethod
    def from_result(cls, result: SearchResult) -> Self:
        """The result itself, which shows itself."""
        return cls(**{name: getattr(result, name) for name in SearchResult.__dataclass_fields__})
