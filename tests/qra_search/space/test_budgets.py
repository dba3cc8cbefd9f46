"""Memory budgets as people write them."""

from __future__ import annotations

import pytest

from qra_search import Group, Linear, SearchSpace
from qra_search.space.budgets import check_size, describe_size, size_in


def space(**options: object) -> SearchSpace:
    groups = [Group(name=f"g{i}", linears=(Linear(name=f"g{i}", out_features=64, in_features=128),)) for i in range(3)]
    return SearchSpace(groups=tuple(groups), fixed_bytes=1000, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6GiB", 6 * 2**30),
        ("90 MB", 90_000_000),
        ("12345", 12345),
        (777, 777),
        # 3 groups of 64 x 128 weights, 3.5 bits each, and the 1000 bytes that are not searched.
        ("3.5bpw", 1000 + 3 * 64 * 128 * 3.5 / 8),
        # 3 bits a weight, 32 bits of metadata for 64 weights, 8 x (64 + 128) adapter weights of 2 bytes.
        ("uniform3r8", 1000 + 3 * (64 * 128 * 3 / 8 + 128 * 4 + 8 * 192 * 2)),
        # Of 4 bits at the middle rank, 16.
        ("50%", (1000 + 3 * (64 * 128 * 4 / 8 + 128 * 4 + 16 * 192 * 2)) / 2),
        ("100 %", 1000 + 3 * (64 * 128 * 4 / 8 + 128 * 4 + 16 * 192 * 2)),
    ],
)
def test_every_form_means_bytes(text: str, expected: float) -> None:
    assert size_in(space(), text) == int(expected)


@pytest.mark.parametrize("text", ["", "much", "3bits", "12 parsecs", "-3MiB", "75 percent", "uniform3", "nan", "1e3"])
def test_what_is_no_budget_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(ValueError, match="108MiB, 6GiB, 3.5bpw, 75%, uniform3r8"):
        check_size(text)


def test_a_uniform_plan_the_space_lacks_is_named_with_what_it_has() -> None:
    with pytest.raises(ValueError, match=r"5 bits and rank 8.*its bits are 2, 3, 4, 8, its ranks 4, 8, 16, 32"):
        size_in(space(), "uniform5r8")
    with pytest.raises(ValueError, match="4 bits and rank 16"):
        size_in(space(bits=(2, 3)), "75%")


def test_a_size_is_described_with_its_bits_for_every_searched_weight() -> None:
    assert describe_size(space(), 1000 + 3 * 64 * 128 // 2) == "13.0 KiB (4.00 bits a weight)"
