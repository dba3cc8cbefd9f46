"""The public test kit of backends: subclass `BackendConformance`, give a `backend` fixture, and run pytest."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from qra_backends.base import Backend, Level
from qra_backends.registry import make_backend
from qra_backends.storage import count_live_bytes, find_live_tensors

SHAPES = ((192, 64), (64, 192))  # out, in
ODD_SHAPES = ((7, 64), (40, 100), (33, 9))  # stored exactly, or refused with a reason
DTYPES = (torch.float32, torch.bfloat16)
ERROR_SLACK = 1.15  # over round-to-nearest with one scale a row
LEADING_SHAPES = ((1,), (2, 3), (20,))  # of inputs: a token, rows of tokens, more of them than are fused
_modules: WeakKeyDictionary[Backend, dict[tuple[Any, ...], nn.Module]] = WeakKeyDictionary()
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}  # of the largest output


class BackendConformance:
    """What every backend must do at every level that it has.

    Subclass it, and define a pytest fixture `backend` that returns the backend. Shapes (out, in) may be replaced if it
    does not store these: `shapes`, `shape` and `small`. A backend that is unavailable here is skipped with its reason.

        class TestMine(BackendConformance):
            @pytest.fixture(scope="class")  # a module that no test changes is then made once for all of them
            def backend(self):
                return MyBackend()
    """

    shapes: tuple[tuple[int, int], ...] = SHAPES
    shape: tuple[int, int] = (64, 192)
    small: tuple[int, int] = (64, 64)

    @pytest.fixture(autouse=True)
    def _available(self, backend: Backend) -> None:
        reason = backend.unavailable_reason()
        if reason is not None:
            pytest.skip(reason)

    def test_every_live_tensor_is_counted_to_the_byte(self, backend: Backend) -> None:
        every = [(shape, torch.float32) for shape in self.shapes]
        for shape, dtype in [(self.shapes[0], torch.bfloat16), *every]:
            for bits, _, module in iterate_levels(backend, shape, dtype):
                expected = backend.storage(bits).bytes(*shape)
                assert count_bytes(module) == expected, f"{bits} bits, {shape}, {dtype}"
                tensors = backend.to_tensors(module)
                assert sum(t.nbytes for t in tensors.values()) == expected, "as saved"
                known = backend.describe_tensors(bits, *shape)
                assert known == {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
                module(make_inputs(3, shape, dtype))
                assert count_bytes(module) == expected, f"after a forward: {bits} bits, {shape}, {dtype}"

    def test_levels_have_widths_in_order_and_bytes_below_sixteen_bits(self, backend: Backend) -> None:
        widths = [backend.width(bits) for bits in backend.bits]
        assert widths == sorted(widths) and widths[0] >= 1 and widths[-1] < 16
        for bits, width in zip(backend.bits, widths, strict=True):
            assert bits == width if isinstance(bits, int) else re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", bits)
            assert width <= 8 * backend.storage(bits).bytes(1536, 576) / (1536 * 576) < 16

    def test_odd_shapes_are_stored_exactly_or_refused_with_a_reason(self, backend: Backend) -> None:
        for bits, shape in itertools.product(backend.bits, ODD_SHAPES):
            source = make_linear(shape)
            if backend.unsupported_reason(bits, *shape) is None:
                module = quantize_linear(backend, bits, source)
                assert count_bytes(module) == backend.storage(bits).bytes(*shape), f"{bits} bits, {shape}"
                assert compute_relative_error(backend, module, source) < 1
            else:
                with pytest.raises(ValueError):
                    quantize_linear(backend, bits, source)

    def test_unknown_bits_and_values_that_are_not_finite_are_refused(self, backend: Backend) -> None:
        for unknown in (next(bits for bits in (5, 7, 9) if bits not in backend.bits), "unknown"):
            assert backend.unsupported_reason(unknown, 64, 64)
            for refused in (backend.storage, backend.width, backend.identity):
                with pytest.raises(ValueError):
                    refused(unknown)
            with pytest.raises(ValueError):
                quantize_linear(backend, unknown, make_linear(self.small))
        source = make_linear(self.small)
        source.weight.data[3, 5] = torch.nan
        with pytest.raises(ValueError):
            quantize_linear(backend, backend.bits[0], source)

    def test_error_is_between_rate_distortion_and_round_to_nearest(self, backend: Backend) -> None:
        """No b bits code a Gaussian better than 2^-b (Shannon); nobody needs to be worse than one scale a row."""
        errors: dict[float, list[float]] = {}
        for bits, source, module in iterate_levels(backend, self.shape):
            error = compute_relative_error(backend, module, source)
            shannon = 2 ** (-8 * backend.storage(bits).bytes(*self.shape) / math.prod(self.shape))
            weight = source.weight.detach()
            low, high = weight.aminmax(dim=1, keepdim=True)
            step = (high - low) / (2 ** int(backend.width(bits)) - 1)
            rounded = ((weight - low) / step).round() * step + low
            worst = ERROR_SLACK * ((rounded - weight).norm() / weight.norm()).item()
            assert shannon <= error <= worst, f"{bits} bits: {shannon:.5f} <= {error:.5f} <= {worst:.5f}"
            errors.setdefault(backend.width(bits), []).append(error)
        for narrow, wide in itertools.pairwise(errors.values()):
            assert min(narrow) >= max(wide), "more bits are closer"

    def test_scales_that_can_be_trained_are_counted_and_change_the_weight_as_they_say(
        self, backend: Backend
    ) -> None:
        for shape in self.shapes[:2]:
            for bits, _, module in iterate_levels(backend, shape):
                scales, before = backend.get_scales(module), backend.dequantize(module)
                counted = backend.count_trainable(bits, *shape)
                if scales is None:
                    assert counted == 0, f"{bits} bits, {shape}"
                    continue
                scale, offset, size = scales
                assert counted == scale.numel() + (0 if offset is None else offset.numel())
                assert offset is None or scale.shape == offset.shape
                assert torch.equal(backend.dequantize(backend.replace_scales(module, scales)), before)
                moved = None if offset is None else offset + scale
                changed = backend.replace_scales(module, scales._replace(scale=2 * scale, offset=moved))
                assert count_bytes(changed) == count_bytes(module)
                expected = 2 * before.float()
                if offset is not None:
                    # The offset was o, and is o + s: twice the weight has 2 o.
                    change = (scale.float() - offset.float()).repeat_interleave(size, 1)
                    expected += change[:, : shape[1]]
                assert torch.allclose(backend.dequantize(changed).float(), expected, rtol=1e-2, atol=1e-3)
                assert torch.equal(backend.dequantize(module), before), "the module given was changed"

    def test_extreme_weights_stay_finite(self, backend: Backend) -> None:
        source = make_linear(self.small)
        with torch.no_grad():
            source.weight[0] = 0
            source.weight[1] = 0.5
            source.weight[2] = 1e-9
            source.weight[3] *= 1000
            source.weight[4, 1:] = 0
        for bits in backend.bits:
            module = quantize_linear(backend, bits, source)
            assert torch.isfinite(backend.dequantize(module)).all(), f"{bits} bits"
            assert torch.isfinite(module(make_inputs(5, self.small))).all(), f"{bits} bits"
            assert backend.dequantize(module)[0].abs().max() < 1e-3, "a row of zeros"

    def test_output_and_gradient_are_those_of_the_dequantized_weight_and_the_bias(
        self, backend: Backend
    ) -> None:
        for dtype, bias in zip(TOLERANCE, (True, True, False), strict=True):
            for _, source, module in iterate_levels(backend, self.shape, dtype, bias=bias):
                weight = backend.dequantize(module)
                assert tuple(weight.shape) == self.shape and weight.dtype == dtype
                assert not weight.requires_grad
                some = torch.tensor([len(weight) - 1, 0, 5, 5], device=weight.device)
                assert torch.equal(backend.dequantize_rows(module, some), weight[some]), "rows"
                usual = torch.get_default_dtype()
                torch.set_default_dtype(torch.bfloat16)  # as engines have it while they load
                try:
                    assert torch.equal(backend.dequantize(module), weight), "under another default dtype"
                finally:
                    torch.set_default_dtype(usual)
                for rows in LEADING_SHAPES:
                    x = make_inputs(math.prod(rows), self.shape, dtype).view(*rows, -1).requires_grad_()
                    output = module(x)
                    seed = torch.randn(*rows, self.shape[0], generator=make_generator(9)).to(dtype)
                    assert output.dtype == dtype
                    assert_close(output, F.linear(x, weight, source.bias))
                    (grad,) = torch.autograd.grad(output, x, seed)
                    assert_close(grad, seed @ weight)

    def test_gradient_under_autocast_is_right(self, backend: Backend) -> None:
        for _, _, module in iterate_levels(backend, self.shape, bias=True):
            x = make_inputs(4, self.shape, torch.float32).requires_grad_()
            with torch.autocast(x.device.type, torch.bfloat16):
                output = module(x)
            (grad,) = torch.autograd.grad(output.float().sum(), x)
            assert_close(grad.to(torch.bfloat16), backend.dequantize(module).sum(0).expand_as(grad))

    def test_train_and_eval_mode_agree_and_eval_leaves_no_trace(self, backend: Backend) -> None:
        for dtype in DTYPES:
            for bits, _, module in iterate_levels(backend, self.shape, dtype, bias=True):
                weight, state = backend.dequantize(module), backend.to_tensors(module)
                for rows in (1, 7, 64):
                    x = make_inputs(rows, self.shape, dtype).requires_grad_()
                    before, grad_before = compute_output_and_grad(module.train(), x)
                    with torch.no_grad():
                        alone = module(x)
                    if rows <= getattr(module, "few_inputs", 0):  # multiplied without making the weight
                        assert_close(alone, before)
                    else:
                        assert torch.equal(alone, before), f"{bits} bits, {rows} rows, no_grad"
                    for mode in (module.eval, module.train):
                        mode()
                        with torch.no_grad():
                            assert torch.equal(module(x), alone), f"{bits} bits, {rows} rows, no_grad"
                            assert torch.equal(module(x.detach()), alone), f"{bits} bits, {rows} rows"
                        after, grad_after = compute_output_and_grad(module, x)
                        assert torch.equal(after, before) and torch.equal(grad_after, grad_before)
                assert torch.equal(backend.dequantize(module), weight)
                assert are_equal(backend.to_tensors(module), state)

    def test_mapped_from_a_file_it_is_the_same_and_the_file_is_neither_copied_nor_written_to(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        """A bank is a file mapped into memory, shared by processes. Tensors of another shape are refused."""
        shape: dict[str, Any] = dict(zip(("out_features", "in_features"), self.shape, strict=True))
        for dtype in DTYPES:
            for bits, source, module in iterate_levels(backend, self.shape, dtype, bias=True):
                path = tmp_path / f"{dtype}-{bits}.safetensors"
                save_file(backend.to_tensors(module), path)
                content = path.read_bytes()
                with safe_open(path, framework="pt") as file:
                    given = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
                kept = {name: tensor.clone() for name, tensor in given.items()}
                loaded = backend.from_tensors(given, bits=bits, **shape, bias=source.bias, dtype=dtype)
                assert count_bytes(loaded) == count_bytes(module)
                held = {tensor.data_ptr() for tensor in find_live_tensors(loaded)}
                assert {tensor.data_ptr() for tensor in given.values()} <= held, f"{bits} bits: copied"
                x = make_inputs(4, self.shape, dtype).requires_grad_()
                for mode in ("train", "eval"):
                    pairs = [compute_output_and_grad(getattr(each, mode)(), x) for each in (loaded, module)]
                    assert all(map(torch.equal, *pairs))
                    with torch.no_grad():
                        assert torch.equal(loaded(x), module(x))
                assert torch.equal(backend.dequantize(loaded), backend.dequantize(module))
                assert are_equal(backend.to_tensors(loaded), backend.to_tensors(module))
                for tensor in (backend.dequantize(loaded), *backend.to_tensors(loaded).values()):
                    tensor.zero_()
                assert are_equal(given, kept), f"{bits} bits: written to"
                assert path.read_bytes() == content
                with pytest.raises(ValueError):
                    backend.from_tensors(given, bits=bits, **{**shape, "out_features": 2 * self.shape[0]})

    def test_the_source_linear_is_untouched_and_not_shared(self, backend: Backend) -> None:
        for bits in backend.bits:
            source, fresh = (make_linear(self.shape, torch.bfloat16, bias=True) for _ in range(2))
            module, x = quantize_linear(backend, bits, source), make_inputs(4, self.shape, torch.bfloat16)
            assert torch.equal(source.weight, fresh.weight) and torch.equal(source.bias, fresh.bias)
            assert source.weight.requires_grad and type(source) is nn.Linear
            own = {tensor.untyped_storage().data_ptr() for tensor in find_live_tensors(module)}
            assert not own & {p.untyped_storage().data_ptr() for p in source.parameters()}
            before = module(x)
            with torch.no_grad():
                source.weight.zero_()
                source.bias.zero_()
            assert torch.equal(module(x), before)

    def test_a_quantized_module_is_frozen_survives_deepcopy_and_refuses_quantizing(
        self, backend: Backend
    ) -> None:
        for bits, _, module in iterate_levels(backend, self.shape, bias=True):
            assert not any(p.requires_grad for p in module.parameters())
            x, twin = make_inputs(4, self.shape), copy.deepcopy(module)
            assert torch.equal(twin(x), module(x))
            assert torch.equal(backend.dequantize(twin), backend.dequantize(module))
            assert count_bytes(twin) == count_bytes(module)
            with pytest.raises(ValueError):
                backend.quantize(module, bits, hessian=torch.eye(self.shape[1]))  # type: ignore[arg-type]

    def test_casting_the_whole_model_leaves_the_weight_alone(self, backend: Backend) -> None:
        """Trainers and PEFT call `model.to(dtype)`: scales must not be rounded by it."""
        for bits, _, module in iterate_levels(backend, self.shape):
            weight, state = backend.dequantize(module), backend.to_tensors(module)
            nn.Sequential(module).to(torch.bfloat16).to(torch.float32)
            assert torch.equal(backend.dequantize(module), weight), f"{bits} bits"
            assert are_equal(backend.to_tensors(module), state), f"{bits} bits"

    def test_levels_quantized_together_and_in_threads_are_those_quantized_alone(
        self, backend: Backend
    ) -> None:
        """Other weights at the same time, in another thread, where the backend says that it may be."""
        sources = [make_linear(self.shape, torch.bfloat16, bias=True) for _ in range(2)]
        sources[1].weight.data.mul_(2)
        hessian = torch.eye(self.shape[1]) if backend.calibrated else None

        def quantize_all(source: nn.Linear) -> dict[Level, nn.Module]:
            return backend.quantize_levels(source, backend.bits, hessian=hessian)

        with ThreadPoolExecutor(2 if backend.side_by_side else 1) as pool:
            together = [*pool.map(quantize_all, sources)]
        for source, made in zip(sources, together, strict=True):
            assert tuple(made) == tuple(backend.bits)
            for bits, module in made.items():
                alone = quantize_linear(backend, bits, source)
                assert are_equal(backend.to_tensors(module), backend.to_tensors(alone)), f"{bits} bits"
        assert backend.quantize_levels(sources[0], [], hessian=hessian) == {}
        with pytest.raises(ValueError):
            backend.quantize_levels(sources[0], [backend.bits[0], "unknown"], hessian=hessian)

    def test_spec_and_identities_tell_what_tensors_depend_on(self, backend: Backend) -> None:
        twin = make_backend(backend.spec)
        assert type(twin) is type(backend) and twin.spec == backend.spec and twin.bits == backend.bits
        texts = [json.dumps(backend.identity(bits), sort_keys=True) for bits in backend.bits]
        assert len(set(texts)) == len(texts), "a level's tensors are its own"
        assert texts == [json.dumps(twin.identity(bits), sort_keys=True) for bits in twin.bits]
        for bits, source, module in iterate_levels(backend, self.shape):
            identity = backend.identity(bits)
            assert json.loads(json.dumps(identity)) == identity, "the same when read from a file"
            assert isinstance(identity["revision"], int)
            assert make_backend(identity["spec"]).spec == identity["spec"]
            again = twin.to_tensors(quantize_linear(twin, bits, source))
            assert are_equal(backend.to_tensors(module), again), f"{bits} bits: an option is lost"


def iterate_levels(
    backend: Backend, shape: tuple[int, int], dtype: torch.dtype = torch.float32, *, bias: bool = False
) -> Iterator[tuple[Level, nn.Linear, nn.Module]]:
    """Every level, with a linear of its own and a copy of the module that the backend made of it, once."""
    known = _modules.setdefault(backend, {})
    for bits in backend.bits:
        source, key = make_linear(shape, dtype, bias=bias), (bits, shape, dtype, bias)
        if key not in known:
            known[key] = quantize_linear(backend, bits, source)
        yield bits, source, copy.deepcopy(known[key])


def make_linear(
    shape: tuple[int, int], dtype: torch.dtype = torch.float32, *, bias: bool = False
) -> nn.Linear:
    """Gaussian weights (out, in) of the usual size, the same at every call."""
    layer = nn.Linear(shape[1], shape[0], bias=bias)
    with torch.no_grad():
        layer.weight.copy_(0.05 * torch.randn(shape, generator=make_generator(0)))
        if bias:
            layer.bias.copy_(torch.randn(shape[0], generator=make_generator(1)))
    return layer.to(dtype)


def make_inputs(rows: int, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Gaussian inputs (rows, in) for a weight of `shape`."""
    return torch.randn(rows, shape[1], generator=make_generator(2)).to(dtype)


def make_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quantize_linear(backend: Backend, bits: Level, source: nn.Linear) -> nn.Module:
    """`source` at `bits`; a calibrated backend is told that inputs are uncorrelated."""
    hessian = torch.eye(source.in_features) if backend.calibrated else None
    return backend.quantize(source, bits, hessian=hessian)


def count_bytes(module: nn.Module) -> int:
    return count_live_bytes(module, skip=("bias",))


def compute_relative_error(backend: Backend, module: nn.Module, source: nn.Linear) -> float:
    weight = source.weight.detach()
    return ((backend.dequantize(module) - weight).norm() / weight.norm()).item()


def compute_output_and_grad(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    output = module(x)
    (grad,) = torch.autograd.grad(output.float().square().sum(), x)
    return output.detach(), grad


def assert_close(actual: Tensor, expected: Tensor) -> None:
    largest = (actual.float() - expected.float()).abs().max().item()
    assert largest <= TOLERANCE[actual.dtype] * expected.float().abs().max().item(), f"off by {largest}"


def are_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[k].dtype == second[k].dtype and torch.equal(first[k], second[k]) for k in first
    )
