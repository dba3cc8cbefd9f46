"""Backends are found by name, and what is wrong with a name or an option is said in one line."""

from __future__ import annotations

import sys

import pytest
import torch
from qra_backends import make_backend
from torch import nn


def test_a_backend_says_its_exact_bits_a_weight():
    backend = make_backend("reference")
    bits = {b: 8 * backend.storage(b).bytes(1536, 576) / (1536 * 576) for b in backend.bits}
    assert bits == {2: 2.5, 3: 3.5, 4: 4.5, 5: 5.5, 6: 6.5, 8: 8.5}


def test_a_name_with_options_and_a_backend_itself_are_specs():
    backend = make_backend({"name": "reference", "group_size": 128})
    assert backend.spec["group_size"] == 128
    assert make_backend(backend) is backend


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bitsandbites", "unknown backend 'bitsandbites': did you mean bitsandbytes"),
        ("bitsandbytes-nf5", "did you mean bitsandbytes-nf4"),
        ("nothing-like-it", "choose one of .*gguf, .*mixed, reference, reference-gptq"),
        ({"name": "gguf", "groups": 64}, "backend 'gguf' has no option 'groups': choose from "),
        ({}, "a backend must be a name"),
        ({"group_size": 64}, "needs the key `name`"),
        (7, "a backend must be a name"),
        ({2: "ggup"}, "did you mean gguf"),
        ({"name": "reference", "group_size": 0}, "group_size"),
        ({"name": "reference", "ranges": "best"}, "minmax, mse"),
        *(
            (
                {"name": name, "damping": damping},
                f"option 'damping' of a backend must be a positive number, got {damping!r}",
            )
            for name in ("reference-gptq", "compressed-tensors", "gguf", "trellis")
            for damping in (0, "1e-2", float("inf"))
        ),
        (
            {"name": "trellis", "L": 9},
            "option 'L' of backend 'trellis' must be an integer from 10 to 16, got 9",
        ),
        (
            {"name": "trellis", "block": 48},
            "option 'block' of backend 'trellis' must be a power of two up to 1024, got 48",
        ),
        ({"name": "compressed-tensors", "group_size": 48}, "must be one of 32, 64, 128"),
        ({"name": "bitsandbytes", "quant_type": "nf5"}, "nf4, int8 or None"),
        ({"name": "bitsandbytes", "blocksize": 48}, "32, 64"),
        (
            {"name": "bitsandbytes", "double_quant": "no"},
            "'double_quant' of backend 'bitsandbytes' must be true or false, got 'no'",
        ),
        ({2: "gguf"}, r"'gguf' has several levels of 2 bits \(IQ2_XXS, .*: choose one by its options"),
        (
            {3: "bitsandbytes"},
            "the backend chosen for 3 bits cannot be used: .*bitsandbytes does not store 3 bits: choose from 4, 8",
        ),
        ({4: "bitsandbytes-int8"}, "the backend chosen for 4 bits cannot be used: .*choose from 8"),
    ],
)
def test_a_wrong_spec_says_what_is_allowed(spec, message: str):
    with pytest.raises(ValueError, match=message):
        make_backend(spec)


def test_a_backend_without_its_library_says_so_when_used_and_not_before(monkeypatch: pytest.MonkeyPatch):
    name = "bitsandbytes"
    monkeypatch.setitem(sys.modules, name, None)  # importing it now fails
    backend = make_backend(name)
    reason = backend.unavailable_reason()
    assert reason is not None and f"pip install {name}" in reason
    with pytest.raises(RuntimeError, match=f"backend {name!r} cannot be used here.*pip install {name}"):
        backend.quantize(nn.Linear(64, 64), 4)
    mixed = make_backend("mixed-calibrated")
    assert f"pip install {name}" in mixed.unavailable_reason()
    assert mixed.unavailable_reason([1, 2, 3]) is None  # levels that do without it


def test_the_backend_of_a_search_quantizes_linears_side_by_side():
    """One part that could not would leave all but one core idle."""
    assert make_backend("mixed-calibrated").side_by_side


def test_a_plug_in_that_cannot_be_loaded_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch):
    from importlib.metadata import EntryPoint

    from qra_backends import registry

    broken = EntryPoint("broken", "no_such_module:Backend", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "_find_entry_points", lambda: {"broken": broken})
    with pytest.raises(ValueError, match="no_such_module"):
        make_backend("broken")


def test_conv1d_and_the_like_are_refused():
    with pytest.raises(ValueError, match="Conv1d"):
        make_backend("reference").quantize(nn.Conv1d(3, 3, 1), 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="float64"):
        make_backend("reference").quantize(nn.Linear(64, 64, dtype=torch.float64), 4)
