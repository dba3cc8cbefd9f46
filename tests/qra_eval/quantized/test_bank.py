"""A linear that a plan asks for is quantized once; what comes back from disk is what was quantized."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch
from filelock import FileLock
from qra_backends import make_backend

from qra_eval.models.linears import find_linears
from qra_eval.models.tiny import make_tiny_model
from qra_eval.quantized import build as build_module
from qra_eval.quantized.bank import Bank, write_tensors
from qra_eval.quantized.blocks import Blocks
from qra_eval.quantized.build import fill_bank
from qra_eval.tasks.batches import Batch

CPU = torch.device("cpu")
FIRST, SECOND = "model.layers.0.self_attn.q_proj", "model.layers.3.mlp.up_proj"
LAYERS, EACH = 4, 7


class Counting:
    """A backend that counts what is quantized through it."""

    def __init__(self, backend):
        self.backend, self.count, self.levels, self.hessians = backend, 0, [], []

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def quantize_levels(self, linear, levels, **calibration):
        self.count += 1
        self.levels.append(tuple(levels))
        self.hessians.append(calibration["hessian"])
        return self.backend.quantize_levels(linear, levels, **calibration)


@pytest.fixture
def backend():
    return Counting(make_backend("reference"))


@pytest.fixture(scope="module")
def model():
    return make_tiny_model().model


def batches():
    none = torch.zeros(0, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    return [Batch(torch.randint(3, 90, (2, n), generator=generator), none, none, 2 * n) for n in (9, 14)]


def make(model, folder, backend, fingerprint="f", **options):
    found = find_linears(model)
    linears = {f.name: f.module for f in found}
    return Bank(linears, backend, folder, fingerprint, layers={f.name: f.layer for f in found}, **options)


def make_and_build(model, folder, backend, bits=(3, 4), told=None, names=None, **options):
    bank = make(model, folder, backend, **options)
    wanted = [(name, level) for name in names or bank.linears for level in bits]
    fill_bank(bank, wanted, Blocks(model, CPU, model.dtype), batches(), told)
    return bank


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """What a calibrated backend makes if nothing goes wrong."""
    return make_and_build(model, tmp_path_factory.mktemp("whole"), make_backend("reference-gptq"))


def assert_same_tensors(one, other, bits=3):
    for name in one.linears:
        expected = other.load_tensors(name, bits)
        assert all(torch.equal(tensor, expected[key]) for key, tensor in one.load_tensors(name, bits).items())


def test_a_linear_is_quantized_once_and_read_from_disk_as_the_backend_made_it_in_the_bytes_of_its_format(
    model, tmp_path, backend
):
    make_and_build(model, tmp_path, backend)
    assert backend.count == LAYERS * EACH and set(backend.levels) == {(3, 4)}
    bank = make_and_build(model, tmp_path, backend)
    assert backend.count == LAYERS * EACH
    for name, linear in bank.linears.items():
        x = torch.randn(2, linear.in_features).bfloat16()
        direct = backend.quantize(linear, 3)
        assert torch.equal(bank.load_module(name, 3)(x), direct(x))
        assert torch.equal(backend.dequantize(bank.load_module(name, 3)), backend.dequantize(direct))
        expected = backend.storage(3).bytes(linear.out_features, linear.in_features)
        assert sum(tensor.nbytes for tensor in bank.load_tensors(name, 3).values()) == expected


def test_what_is_not_asked_for_is_not_quantized(model, tmp_path, backend):
    bank = make_and_build(model, tmp_path, backend, bits=(3,), names=[FIRST])
    assert backend.levels == [(3,)]
    assert bank.find_missing([(FIRST, 3), (FIRST, 4), (SECOND, 3)]) == {FIRST: [4], SECOND: [3]}
    with pytest.raises(RuntimeError, match="missing or damaged"):
        bank.load_tensors(FIRST, 4)
    make_and_build(model, tmp_path, backend, bits=(3, 4), names=[FIRST])
    assert backend.levels == [(3,), (4,)]


def test_sixteen_bits_are_the_linear_itself(model, tmp_path, backend):
    bank = make_and_build(model, tmp_path, backend, bits=(16,))
    assert bank.load_module(FIRST, 16) is bank.linears[FIRST] and not backend.count


@pytest.mark.parametrize("damage", ["truncated", "emptied", "overwritten"])
def test_of_a_damaged_file_the_linear_is_made_again_at_that_level_with_a_warning(
    model, tmp_path, backend, damage, caplog
):
    first = make_and_build(model, tmp_path, backend)
    path, weight = first.get_path(FIRST, 3), backend.dequantize(first.load_module(FIRST, 3))
    content = path.read_bytes()
    damaged = {"truncated": content[: len(content) // 2], "emptied": b"", "overwritten": b"x" * 999}
    path.unlink()  # without touching the old file, which is mapped into memory
    path.write_bytes(damaged[damage])
    backend.levels.clear()
    bank = make_and_build(model, tmp_path, backend)
    assert backend.levels == [(3,)]
    assert torch.equal(backend.dequantize(bank.load_module(FIRST, 3)), weight)
    assert path.name in caplog.text and path.read_bytes() == content


def test_other_weights_options_and_devices_have_files_of_their_own_and_calibrated_levels_other_rows(
    model, tmp_path
):
    def paths(spec="reference", **options):
        bank = make(model, tmp_path, make_backend(spec), **options)
        return bank.get_path(FIRST, 3).name, bank.get_path(FIRST, 8).name

    others = [
        paths(),
        paths({"name": "reference", "group_size": 32}),
        paths(fingerprint="other"),
        paths(device=torch.device("cuda", 1)),
    ]
    assert len({name for names in others for name in names}) == 8
    assert paths(device=CPU) == paths() and paths(device=torch.device("cuda")) == others[3]
    mixed = {"name": "mixed", "choice": {3: "reference-gptq", 8: "reference"}}
    one, two = (paths(mixed, calibration=rows) for rows in ("one", "two"))
    assert one[0] != two[0] and one[1] == two[1]


def test_codes_are_the_same_by_moments_that_were_kept_and_by_a_pass_for_each_command(
    model, tmp_path, monkeypatch
):
    kept = make_and_build(model, tmp_path / "kept", make_backend("trellis"), bits=(3,))
    passes = []
    listen = lambda stage, *_: passes.append(stage)  # noqa: E731
    make_and_build(model, tmp_path / "kept", make_backend("trellis"), bits=(4,), told=listen)
    assert set(passes) == {"quantize"}
    monkeypatch.setattr(build_module, "MAX_DISK_SHARE", 0.0)
    half = list(kept.linears)[: len(kept.linears) // 2]
    make_and_build(model, tmp_path / "passed", make_backend("trellis"), bits=(3,), names=half)
    passed = make_and_build(model, tmp_path / "passed", make_backend("trellis"), bits=(3,))
    assert not list((tmp_path / "passed").glob("*moments*"))
    assert_same_tensors(kept, passed)


@pytest.mark.parametrize("damage", ["cut", "removed", "index"])
def test_of_moments_that_are_not_whole_the_rows_pass_again_to_the_same_codes(model, whole, tmp_path, damage):
    make_and_build(model, tmp_path, make_backend("reference-gptq"), bits=(4,))
    path = next(tmp_path.glob("*moments-*q_proj*" if damage != "index" else "*moments.json"))
    content = path.read_bytes()
    path.unlink()
    if damage != "removed":
        path.write_bytes(content[: len(content) // 2])
    assert_same_tensors(make_and_build(model, tmp_path, make_backend("reference-gptq"), bits=(3,)), whole)


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
def test_linears_are_the_same_by_one_thread_and_by_several(model, whole, tmp_path):
    told = []
    listen = lambda *figures: told.append(figures)  # noqa: E731
    bank = make_and_build(model, tmp_path, make_backend("reference-gptq"), told=listen)
    assert told[-1] == ("quantize", LAYERS * EACH, LAYERS * EACH)
    for stage in ("quantize", "calibrate, forward", "calibrate, backward"):
        done = [done for own, done, _ in told if own == stage]
        assert done == sorted(done)
    assert_same_tensors(bank, whole)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("room", [True, False])
def test_a_build_that_was_killed_goes_on_at_the_linear_where_it_was(
    model, whole, tmp_path, room, monkeypatch
):
    if not room:
        monkeypatch.setattr(build_module, "MAX_DISK_SHARE", 0.0)
    backend = Counting(make_backend("reference-gptq"))

    def kill(stage, done, total):
        if stage == "quantize" and done >= 2 * EACH + 3:
            raise Killed

    with pytest.raises(Killed):
        make_and_build(model, tmp_path, backend, told=kill)
    assert backend.count >= 2 * EACH + 3
    resumed = make_and_build(model, tmp_path, backend)
    assert backend.count == LAYERS * EACH
    assert_same_tensors(resumed, whole)


def test_a_pass_that_was_killed_leaves_no_moments_that_are_taken_for_whole(model, whole, tmp_path):
    def kill(stage, done, total):
        if stage == "calibrate, backward" and done > 0.8 * total:
            raise Killed

    with pytest.raises(Killed):
        make_and_build(model, tmp_path, make_backend("reference-gptq"), told=kill)
    assert list(tmp_path.glob("*moments-*"))
    assert_same_tensors(make_and_build(model, tmp_path, make_backend("reference-gptq")), whole)


def test_on_a_full_disk_the_error_is_raised_and_what_was_written_is_whole(
    model, tmp_path, backend, monkeypatch
):
    count, write = itertools.count(1), build_module.write_tensors

    def fail(tensors, path, **options):
        if next(count) > 5:
            raise OSError(28, "No space left on device", str(path))
        write(tensors, path, **options)

    monkeypatch.setattr(build_module, "write_tensors", fail)
    with pytest.raises(OSError, match="No space left"):
        make_and_build(model, tmp_path, backend)
    monkeypatch.setattr(build_module, "write_tensors", write)
    levels = len(backend.levels)
    bank = make_and_build(model, tmp_path, backend)
    again = [level for levels in backend.levels[levels:] for level in levels]
    assert len(again) == 2 * LAYERS * EACH - 5 and not bank.find_missing((n, 3) for n in bank.linears)


def test_a_linear_that_another_process_makes_is_awaited_and_that_process_named(model, tmp_path, backend):
    lock_file = make(model, tmp_path, backend).lock_file
    waiting, released, stages = threading.Event(), FileLock(lock_file, thread_local=False), []
    released.acquire()
    holder = lock_file.with_suffix(".holder")
    holder.write_text("process 7 on there, since now (qra plan --out runs/a)")
    other = Counting(make_backend("reference-gptq"))  # another bank does not wait
    make_and_build(model, tmp_path, other)
    assert other.count

    def listen(stage, done, total):
        if stage.startswith("wait"):
            stages.append(stage)
            waiting.set()

    second = Counting(make_backend("reference"))
    options = {"told": listen, "names": [FIRST, SECOND]}
    thread = threading.Thread(target=make_and_build, args=(model, tmp_path, second), kwargs=options)
    thread.start()
    assert waiting.wait(30) and not second.count
    assert (
        "wait for process 7 on there, since now (qra plan --out runs/a)" in stages[0]
        and "QRA_CACHE" in stages[0]
    )
    killed = make(model, tmp_path, backend)
    tensors = backend.to_tensors(backend.quantize(killed.linears[FIRST], 3))
    write_tensors(tensors, killed.get_path(FIRST, 3))
    released.release()  # after one linear at one level
    thread.join(60)
    assert not thread.is_alive() and sorted(second.levels) == [(3, 4), (4,)]
    assert not holder.exists()


def test_the_first_eighth_of_the_units_is_like_all_and_those_that_take_long_come_next():
    weights = {(f"linear {i}",): 10 + i % 4 for i in range(80)} | {("table",): 400}
    order = build_module.order_units(weights)
    assert sorted(order) == sorted(weights) and order[10] == ("table",)
    assert sorted(weights[unit] for unit in order[:10]) == [10, 10, 11, 11, 11, 12, 12, 13, 13, 13]
