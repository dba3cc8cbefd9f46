"""Where a process stands among those that a launcher started together."""

from __future__ import annotations

import pytest

from qra_search.launched import get_rank_and_size, is_follower


@pytest.mark.parametrize(
    ("rank", "size", "expected"),
    [
        ("1", "2", (1, 2)),
        ("0", "2", (0, 2)),
        ("3", "1", (0, 1)),
        ("3", None, (0, 1)),
        ("worker-0", "4", (0, 1)),
        (None, None, (0, 1)),
    ],
)
def test_only_a_launcher_of_several_gives_a_rank(
    rank: str | None, size: str | None, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", size)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert get_rank_and_size() == expected and is_follower() == (expected[0] > 0)
