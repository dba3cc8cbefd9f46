"""Text that is put into HTML."""

from __future__ import annotations

import html
import re

_UNIT = re.compile(r"(?<=\d) (?=(?:%|[KMG]iB|bits|ms|s|min|h)(?!\w))|(?<=\brank) (?=\d)")


def escape(text: object) -> str:
    """Text that may stand in an element or in a quoted attribute."""
    return html.escape(str(text), quote=True)


def prose(text: object) -> str:
    """Escaped text whose figures are not torn from their units at the end of a line."""
    return _UNIT.sub("&nbsp;", escape(text))
