"""Random plans of any size."""

from __future__ import annotations

import numpy as np
from fakes import make_space

from qra_search.space.sampling import leaning_plan


def test_random_plans_keep_to_what_each_group_allows_and_differ_in_size():
    space = make_space(groups=30)
    rng = np.random.default_rng(0)
    sizes = [space.memory_bytes(leaning_plan(space, rng)) for _ in range(40)]
    assert np.ptp(sizes) > 0.3 * (space.memory.maximum - space.memory.minimum)
