"""What groups have in common: as a matrix, and by parts, which is the same."""

from __future__ import annotations

import numpy as np
import pytest

from qra_search.space import Group, Linear, SearchSpace
from qra_search.surrogates.likeness import MOST_DENSE, ByKindAndDepth, Dense, covariance, likeness
from qra_search.testing.scenarios import toy_space


def space_of(*kinds_and_depths):
    linear = Linear(name="w", out_features=64, in_features=64)
    return SearchSpace(
        groups=[
            Group(name=f"g{i}", linears=(linear,), kind=kind, depth=depth)
            for i, (kind, depth) in enumerate(kinds_and_depths)
        ]
    )


SPACES = {
    "experts beside attention": space_of(*[(k, d) for d in range(4) for k in ("q_proj", *["expert"] * 5)]),
    "experts of kinds of their own": space_of(*[(str(e), d) for d in (0, 2, 7) for e in range(4)]),
    "modules": toy_space(5, "module"),
    "layers": toy_space(6),
    "not every layer has every kind": space_of(("b", 3), ("a", 0), ("a", 3), ("b", 1), ("a", 3)),
    "an embedding without a depth": space_of(("embedding", None), ("q_proj", 0), ("q_proj", 1)),
    "nothing is known": space_of(*[("", None)] * 4),
    "one group": space_of(("q_proj", 0)),
}


@pytest.mark.parametrize("granularity", ["layer", "module", "fused"])
def test_groups_of_a_kind_and_of_near_depth_are_alike(granularity):
    space = toy_space(6, granularity)
    alike = likeness(space)
    kinds = [g.kind for g in space.groups]
    per_layer = len(set(kinds))
    assert np.linalg.eigvalsh(alike).min() > 0
    first, near, far = alike[0, 0], alike[0, per_layer], alike[0, 5 * per_layer]
    assert first > near > far
    if per_layer > 1:
        assert alike[0, per_layer] > alike[0, per_layer + 1]


@pytest.mark.parametrize("form", [Dense, ByKindAndDepth])
@pytest.mark.parametrize("name", SPACES)
def test_both_forms_are_the_covariance_that_likeness_says(name, form):
    space = SPACES[name]
    expected = likeness(space)
    covariance = form(expected) if form is Dense else form(space)
    x = np.random.default_rng(0).standard_normal((3, len(space)))
    np.testing.assert_allclose(covariance.times(x), x @ expected, atol=1e-12)
    root = covariance.rooted(np.eye(len(space)))
    assert root.shape == (len(space), covariance.columns)
    np.testing.assert_allclose(root @ root.T, expected, atol=1e-7)
    np.testing.assert_allclose(covariance.rooted(x), x @ root, atol=1e-12)
    w = np.random.default_rng(1).standard_normal((2, covariance.columns))
    np.testing.assert_allclose(covariance.mixed(w), w @ root.T, atol=1e-12)


def test_without_likeness_every_group_stands_alone():
    few, many = space_of(("a", 0), ("a", 1)), space_of(*[("expert", 0)] * (MOST_DENSE + 1))
    np.testing.assert_array_equal(covariance(few, alike=False).times(np.eye(2)), np.eye(2))
    assert covariance(many, alike=False) is None


def test_the_matrix_is_made_for_few_groups_only():
    assert isinstance(covariance(space_of(*[("expert", 0)] * MOST_DENSE)), Dense)
    assert isinstance(covariance(space_of(*[("expert", 0)] * (MOST_DENSE + 1))), ByKindAndDepth)
