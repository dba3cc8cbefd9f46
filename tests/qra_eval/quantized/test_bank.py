"""Every linear is quantized once; what comes back from disk is what was quantized."""

from __future__ import annotations

import pytest
import torch
from qra_backends import make_backend
from safetensors.torch import save
from torch import nn

from qra_eval.quantized.bank import Bank, tensor_bytes


def linears():
    torch.manual_seed(0)
    shapes = {"a": (48, 64), "b": (32, 128)}
    return {name: nn.Linear(i, o, bias=name == "b").bfloat16().requires_grad_(False) for name, (o, i) in shapes.items()}


class Counting:
    """A backend that counts what is quantized through it."""

    def __init__(self, backend):
        self.backend, self.count = backend, 0

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def quantize(self, linear, bits, **options):
        self.count += 1
        return self.backend.quantize(linear, bits, **options)


@pytest.fixture
def backend():
    return Counting(make_backend("reference"))


def make(folder, backend, bits=(3, 4), fingerprint="f", **options):
    return Bank(linears(), backend, bits, folder, fingerprint, **options)


def test_a_linear_is_quantized_once_and_then_read_from_disk(tmp_path, backend):
    first = make(tmp_path, backend)
    assert backend.count == 4
    second = make(tmp_path, backend)
    assert backend.count == 4
    x = torch.randn(3, 64).bfloat16()
    assert torch.equal(first.module("a", 3)(x), second.module("a", 3)(x))
    assert second.module("a", 3) is second.module("a", 3)


def test_what_comes_back_is_what_the_backend_made(tmp_path, backend):
    bank = make(tmp_path, backend)
    for name, linear in linears().items():
        x = torch.randn(2, linear.in_features).bfloat16()
        direct = backend.quantize(linear, 3)
        assert torch.equal(bank.module(name, 3)(x), direct(x))
        assert torch.equal(bank.weight(name, 3), backend.dequantize(direct))


def test_sixteen_bits_are_the_linear_itself(tmp_path, backend):
    bank = make(tmp_path, backend, bits=(4, 16))
    assert bank.module("a", 16) is bank.linears["a"]
    assert torch.equal(bank.weight("a", 16), bank.linears["a"].weight)


def test_counted_bytes_are_those_of_the_storage_format(tmp_path, backend):
    bank = make(tmp_path, backend)
    for name, linear in linears().items():
        for bits in (3, 4):
            tensors = backend.to_tensors(bank.module(name, bits))
            assert sum(t.nbytes for t in tensors.values()) == backend.storage(bits).bytes(
                linear.out_features, linear.in_features
            )


@pytest.mark.parametrize("damage", ["truncated", "emptied", "overwritten", "foreign"])
def test_a_damaged_file_is_made_again_with_a_warning(tmp_path, backend, damage, caplog):
    first = make(tmp_path, backend)
    path, weight = first.path(3), first.weight("a", 3).clone()
    content = path.read_bytes()
    foreign = save({"other::codes": torch.zeros(3)})
    damaged = {"truncated": content[: len(content) // 2], "emptied": b"", "overwritten": b"x" * 999, "foreign": foreign}
    replace(path, damaged[damage])
    bank = make(tmp_path, backend)
    assert backend.count == 6 and torch.equal(bank.weight("a", 3), weight)
    assert path.name in caplog.text and path.read_bytes() == content


def replace(path, content):
    """Give a file other content without touching the old one, which is mapped into memory."""
    path.unlink()
    path.write_bytes(content)


def test_other_weights_or_options_have_files_of_their_own(tmp_path, backend):
    make(tmp_path, backend)
    make(tmp_path, backend, fingerprint="other")
    assert backend.count == 8
    make(tmp_path, Counting(make_backend({"name": "reference", "group_size": 32})))
    assert len(list(tmp_path.glob("*.safetensors"))) == 6


def test_a_calibrated_backend_is_given_the_hessian_of_each_linear(tmp_path):
    asked = []

    def hessian(name):
        asked.append(name)
        return torch.eye(linears()[name].in_features)

    make(tmp_path, make_backend("reference-gptq"), bits=(3,), hessian=hessian)
    assert asked == ["a", "b"]


def test_shapes_that_the_backend_refuses_are_named_before_anything_is_quantized(tmp_path, backend):
    class Fussy(Counting):
        def supports(self, bits, out_features, in_features):
            return "in_features must be 64" if in_features != 64 else None

    fussy = Fussy(make_backend("reference"))
    with pytest.raises(ValueError, match="b: in_features must be 64"):
        make(tmp_path, fussy)
    assert fussy.count == 0


def test_dequantized_weights_are_kept_only_if_that_is_asked_for(tmp_path, backend):
    kept, sparing = make(tmp_path, backend), make(tmp_path, backend, keep_weights=False)
    first = kept.weight("a", 3)
    assert kept.weight("a", 3) is first
    assert sparing.weight("a", 3) is not sparing.weight("a", 3) and torch.equal(sparing.weight("a", 3), first)


def test_a_shared_tensor_is_counted_once():
    model = nn.Module()
    model.a, model.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    model.b.weight = model.a.weight
    model.register_buffer("c", torch.zeros(3, dtype=torch.int8))
    assert tensor_bytes(model) == 64 + 3
