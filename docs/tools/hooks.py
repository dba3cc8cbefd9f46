"""Hooks of the documentation site: what mkdocs would otherwise refuse, and what it would let through."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)\s]+)\)")
_LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
_LINKED = (
    "stylesheet",
    "preload",
    "prefetch",
    "modulepreload",
    "preconnect",
    "dns-prefetch",
    "icon",
    "manifest",
)


def on_config(config: Any) -> Any:
    """Leave pages that are not written yet out of the navigation."""
    config.nav = _existing(config.nav, Path(config.docs_dir))
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Links to files of the repository outside docs/ become their text and path: the site does not hold them.

    Raises:
        PluginError: there is no such file.
    """

    def plain(match: re.Match[str]) -> str:
        text, target = match.groups()
        file = Path(config.docs_dir, target.partition("#")[0]).resolve()
        if not file.exists():
            raise PluginError(f"{page.file.src_path} links to {target}, which does not exist")
        path = file.relative_to(Path(config.docs_dir).parent).as_posix()
        return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"

    return _OUTSIDE.sub(plain, markdown)


def on_post_build(config: Any) -> None:
    """Refuse a site that loads anything from another host."""
    for file in sorted(Path(config.site_dir).rglob("*")):
        found = _foreign(file.read_text()) if file.suffix == ".html" else []
        if file.suffix in (".css", ".svg"):
            found = re.findall(r"""(?:url\(|@import)\s*['"]?(https?:)?//[^)'"]+""", file.read_text())
        if found:
            raise PluginError(f"{file.relative_to(config.site_dir)} loads from another host: {found[0]}")


class _Loads(HTMLParser):
    """Collects what a page loads, not what it links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        address = values.get(_LOADS.get(tag, ""), "")
        if tag == "link" and values.get("rel", "") in _LINKED:
            address = values.get("href", "")
        if re.match(r"(https?:)?//", address):
            self.found.append(address)


def _foreign(page: str) -> list[str]:
    parser = _Loads()
    parser.feed(page)
    return parser.found


def _existing(nav: Any, docs: Path) -> Any:
    """The navigation with those pages only that exist."""
    if isinstance(nav, str):
        return nav if (docs / nav).is_file() else None
    if isinstance(nav, dict):
        kept = {title: _existing(below, docs) for title, below in nav.items()}
        return {title: below for title, below in kept.items() if below} or None
    return [entry for entry in (_existing(below, docs) for below in nav) if entry]
