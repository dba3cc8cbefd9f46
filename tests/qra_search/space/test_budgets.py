"""Memory budgets as people write them, and the bytes that they mean for a space."""

from __future__ import annotations

import pytest

from qra_search import BudgetTooSmall, Group, Level, Linear, SearchSpace
from qra_search.space.budgets import describe_size, parse_budget, parse_uniform, resolve_budgets


def space(**options: object) -> SearchSpace:
    groups = [
        Group(name=f"g{i}", linears=(Linear(name=f"g{i}", out_features=64, in_features=128),))
        for i in range(3)
    ]
    return SearchSpace(groups=tuple(groups), fixed_bytes=1000, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6GiB", 6 * 2**30),
        ("90 MB", 90_000_000),
        ("123450", 123450),
        (77700, 77700),
        # 3 groups of 64 x 128 weights, 3.5 bits each, and the 1000 bytes that are not searched.
        ("4.5bpw", 1000 + 3 * 64 * 128 * 4.5 / 8),
        # 3 bits a weight, 32 bits of metadata for 64 weights, 8 x (64 + 128) adapter weights of 2 bytes.
        ("uniform3r8", 1000 + 3 * (64 * 128 * 3 / 8 + 128 * 4 + 8 * 192 * 2)),
        # Of 4 bits at the middle rank, 16.
        ("75%", (1000 + 3 * (64 * 128 * 4 / 8 + 128 * 4 + 16 * 192 * 2)) * 0.75),
        ("100 %", 1000 + 3 * (64 * 128 * 4 / 8 + 128 * 4 + 16 * 192 * 2)),
    ],
)
def test_every_form_means_bytes(text: str, expected: float) -> None:
    assert str(parse_budget(text)) == str(text)
    assert resolve_budgets(space(), text) == (int(expected),)


def test_a_uniform_plan_of_half_bits_is_named_by_its_bits() -> None:
    made = space(bits=(2, Level("trellis-2.5", 2.5)))
    wanted = made.uniform("trellis-2.5", 8)
    assert wanted is not None
    assert parse_uniform(made, "uniform2.5r8") == parse_uniform(made, "uniformtrellis-2.5r8") == wanted


def test_several_budgets_come_in_order_and_once_and_none_means_the_whole_front() -> None:
    assert resolve_budgets(space(), ["6GiB", 77700, "77700"]) == (77700, 6 * 2**30)
    assert resolve_budgets(space(), []) == ()


def test_a_budget_that_no_plan_fits_is_refused_with_the_least_that_does() -> None:
    with pytest.raises(BudgetTooSmall, match=f"below the smallest plan.*{space().memory.minimum} bytes"):
        resolve_budgets(space(), ["6GiB", "10%"])


@pytest.mark.parametrize(
    "text",
    ["", "much", "3bits", "12 parsecs", "-3MiB", "75 percent", "uniform3", "nan", f"{10**400}bpw"],
)
def test_what_is_no_budget_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(ValueError, match="108MiB, 6GiB, 3.5bpw, 75%, uniform3r8"):
        parse_budget(text)


def test_a_uniform_plan_the_space_lacks_is_named_with_what_it_has() -> None:
    with pytest.raises(
        ValueError, match=r"no plan 'uniform5r8': its bits are 2, 3, 4, 8, its ranks 4, 8, 16, 32"
    ):
        resolve_budgets(space(), "uniform5r8")
    with pytest.raises(ValueError, match="this space does not have: give the budget in bytes"):
        resolve_budgets(space(bits=(2, 3)), "75%")


def test_a_size_is_described_with_its_bits_for_every_searched_weight() -> None:
    assert describe_size(space(), 1000 + 3 * 64 * 128 // 2) == "13.0 KiB (4.00 bits a weight)"
