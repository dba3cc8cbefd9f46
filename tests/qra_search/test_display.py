"""Objects show themselves by the formatter of their type, which is registered from above."""

from __future__ import annotations

import subprocess
import sys

from qra_search.display import Displayed, register


def test_without_a_formatter_an_object_is_shown_as_its_repr() -> None:
    class Bare(Displayed):
        def __repr__(self) -> str:
            return "Bare()"

    assert Bare().__rich__() == "Bare()"
    assert Bare()._repr_html_() is None


def test_a_formatter_is_that_of_the_nearest_type() -> None:
    class Base(Displayed): ...

    class Middle(Base): ...

    class Last(Middle): ...

    register(Base, lambda thing: "base", lambda thing: "<b>base</b>")
    register(Middle, lambda thing: "middle")
    assert (Base().__rich__(), Base()._repr_html_()) == ("base", "<b>base</b>")
    assert (Last().__rich__(), Last()._repr_html_()) == ("middle", None)


def test_the_formatters_are_loaded_when_something_is_first_shown_and_not_before() -> None:
    code = (
        "import sys\n"
        "from qra_search import Group, Linear, SearchSpace\n"
        "space = SearchSpace(groups=[Group(name='a', linears=[Linear(name='a', out_features=64, in_features=64)])])\n"
        "assert not {'rich', 'qra_search.report', 'matplotlib'} & set(sys.modules)\n"
        "from rich import print\n"
        "print(space)\n"
        "assert 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("SearchSpace(1 groups")
