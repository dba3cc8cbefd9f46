"""Every linear is quantized once; what comes back from disk is what was quantized."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import torch
from filelock import FileLock
from qra_backends import make_backend
from safetensors.torch import save

from qra_eval.models.linears import find_linears
from qra_eval.models.tiny import tiny_model
from qra_eval.quantized.bank import Bank
from qra_eval.quantized.blocks import Blocks
from qra_eval.quantized.build import build, run_in_threads
from qra_eval.tasks.batches import Batch
from qra_search.files import write_json

CPU = torch.device("cpu")
FIRST = "model.layers.0.self_attn.q_proj"
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
    return tiny_model().model


def batches():
    none = torch.zeros(0, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    return [Batch(torch.randint(3, 90, (2, n), generator=generator), none, none, 2 * n) for n in (9, 14)]


def make(model, folder, backend, bits=(3, 4), fingerprint="f", built=True, told=None, **options):
    found = find_linears(model)
    bank = Bank(
        {f.name: f.module for f in found},
        backend,
        bits,
        folder,
        fingerprint,
        layers={f.name: f.layer for f in found},
        **options,
    )
    if built:
        build(bank, Blocks(model, CPU, model.dtype), batches(), told)
    return bank


def test_a_linear_is_quantized_once_and_read_from_disk_as_the_backend_made_it_in_the_bytes_of_its_format(
    model, tmp_path, backend
):
    make(model, tmp_path, backend)
    assert backend.count == LAYERS * EACH and set(backend.levels) == {(3, 4)}
    bank = make(model, tmp_path, backend)
    assert backend.count == LAYERS * EACH
    for name, linear in bank.linears.items():
        x = torch.randn(2, linear.in_features).bfloat16()
        direct = backend.quantize(linear, 3)
        assert torch.equal(bank.load_module(name, 3)(x), direct(x))
        assert torch.equal(bank.load_weight(name, 3), backend.dequantize(direct))
        expected = backend.storage(3).bytes(linear.out_features, linear.in_features)
        assert sum(tensor.nbytes for tensor in bank.load_tensors(name, 3).values()) == expected


def test_sixteen_bits_are_the_linear_itself(model, tmp_path, backend):
    bank = make(model, tmp_path, backend, bits=(4, 16))
    assert bank.load_module(FIRST, 16) is bank.linears[FIRST]
    assert torch.equal(bank.load_weight(FIRST, 16), bank.linears[FIRST].weight)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "overwritten", "foreign"])
def test_of_a_damaged_file_the_layer_is_made_again_at_that_level_with_a_warning(
    model, tmp_path, backend, damage, caplog
):
    first = make(model, tmp_path, backend)
    path, weight = first.get_path(0, 3), first.load_weight(FIRST, 3).clone()
    content = path.read_bytes()
    foreign = save({"other::codes": torch.zeros(3)})
    damaged = {
        "truncated": content[: len(content) // 2],
        "emptied": b"",
        "overwritten": b"x" * 999,
        "foreign": foreign,
    }
    path.unlink()  # without touching the old file, which is mapped into memory
    path.write_bytes(damaged[damage])
    backend.levels.clear()
    bank = make(model, tmp_path, backend)
    assert backend.levels == [(3,)] * EACH and torch.equal(bank.load_weight(FIRST, 3), weight)
    assert path.name in caplog.text and path.read_bytes() == content


@pytest.mark.parametrize("content", ["", '{"damage": {"model.lay', "{}", '{"damage": {}, "spectrum": {}}'])
def test_figures_that_are_cut_off_are_as_none(model, tmp_path, backend, content):
    bank = make(model, tmp_path, backend)
    names = bank.list_names(1)
    whole = {"damage": {name: [1.0] for name in names}, "spectrum": {}}
    write_json(bank.get_figures_file(1), whole)
    assert bank.read_figures(1) == whole and bank.read_figures(2) is None
    bank.get_figures_file(1).write_text(content)
    assert bank.read_figures(1) is None


def test_other_weights_options_and_devices_have_files_of_their_own_and_calibrated_levels_other_rows(
    model, tmp_path
):
    def paths(spec="reference", **options):
        bank = make(model, tmp_path, make_backend(spec), (3, 8), built=False, **options)
        return bank.get_path(0, 3).name, bank.get_path(0, 8).name

    others = [
        paths(),
        paths({"name": "reference", "group_size": 32}),
        paths(fingerprint="other"),
        paths(devices={0: torch.device("cuda", 1)}),
    ]
    assert len({name for names in others for name in names}) == 8
    assert paths(devices={0: CPU}) == paths() and paths(devices={0: torch.device("cuda")}) == others[3]
    mixed = {"name": "mixed", "choice": {3: "reference-gptq", 8: "reference"}}
    one, two = (paths(mixed, calibration=rows) for rows in ("one", "two"))
    assert one[0] != two[0] and one[1] == two[1]


def test_a_level_that_is_added_leaves_the_others_as_they_are(model, tmp_path, backend):
    make(model, tmp_path, backend, bits=(3, 4))
    backend.levels.clear()
    make(model, tmp_path, backend, bits=(2, 3, 4))
    assert backend.levels == [(2,)] * LAYERS * EACH


def test_a_calibrated_backend_is_given_the_hessian_of_each_linear_and_equal_inputs_share_one(model, tmp_path):
    backend = Counting(make_backend("reference-gptq"))
    make(model, tmp_path, backend, bits=(3,))
    first = backend.hessians[:EACH]
    assert sorted(tuple(h.shape) for h in first) == [(64, 64)] * 6 + [(128, 128)]
    assert sorted(Counter(map(id, first)).values()) == [1, 1, 2, 3]  # down; o; gate and up; q, k and v


def test_a_layers_linears_are_the_same_by_one_thread_and_by_several(model, tmp_path):
    whole = torch.get_num_threads()
    banks = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            made, told = make_backend("reference-gptq"), []
            banks.append(
                make(model, tmp_path / str(threads), made, told=lambda *figures, to=told: to.append(figures))
            )
            assert told[-1] == ("quantize", LAYERS * EACH, LAYERS * EACH)
            done = [done for stage, done, _ in told if stage == "quantize"]
            assert done == sorted(done)
    finally:
        torch.set_num_threads(whole)
    one, three = banks
    for name in one.linears:
        assert all(
            torch.equal(tensor, three.load_tensors(name, 3)[key])
            for key, tensor in one.load_tensors(name, 3).items()
        )


def test_a_build_that_was_killed_goes_on_at_the_layer_where_it_was(model, tmp_path):
    backend = Counting(make_backend("reference-gptq"))

    class Killed(BaseException):
        pass

    def kill(stage, done, total):
        if done >= 2 * EACH + 3:
            raise Killed

    with pytest.raises(Killed):
        make(model, tmp_path / "broken", backend, told=kill)
    backend.count = 0
    resumed = make(model, tmp_path / "broken", backend)
    assert backend.count == 2 * EACH
    whole = make(model, tmp_path / "whole", backend)
    for name in whole.linears:
        assert all(
            torch.equal(t, whole.load_tensors(name, 3)[key])
            for key, t in resumed.load_tensors(name, 3).items()
        )


def test_a_bank_that_another_process_makes_is_awaited_and_that_process_named(model, tmp_path, backend):
    lock_file = make(model, tmp_path, backend, built=False).lock_file
    waiting, released, stages = threading.Event(), FileLock(lock_file, thread_local=False), []
    released.acquire()
    holder = lock_file.with_suffix(".holder")
    holder.write_text("process 7 on there, since now (qra plan --out runs/a)")
    other = make(model, tmp_path, Counting(make_backend("reference-gptq")))  # another bank does not wait
    assert other.backend.count and not other.find_missing()

    def listen(stage, done, total):
        if stage.startswith("wait"):
            stages.append(stage)
            waiting.set()

    second = Counting(make_backend("reference"))
    thread = threading.Thread(target=make, args=(model, tmp_path, second), kwargs={"told": listen})
    thread.start()
    assert waiting.wait(30) and not second.count
    assert (
        "wait for process 7 on there, since now (qra plan --out runs/a)" in stages[0]
        and "QRA_CACHE" in stages[0]
    )
    killed = make(model, tmp_path, backend, built=False)
    quantized = {name: backend.quantize(killed.linears[name], 3) for name in killed.list_names(0)}
    killed.write(0, 3, {name: backend.to_tensors(module) for name, module in quantized.items()})
    released.release()  # after one layer at one level
    thread.join(60)
    assert not thread.is_alive() and Counter(second.levels) == {(4,): EACH, (3, 4): (LAYERS - 1) * EACH}
    assert not holder.exists()


@pytest.fixture
def four_threads():
    whole = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(whole)


def test_items_are_worked_on_at_once_and_given_as_they_are_done(four_threads) -> None:
    together = threading.Barrier(2, timeout=30)
    seen: dict[str, int] = {}

    def work(item: str) -> None:
        together.wait()  # neither goes on alone
        seen[item] = torch.get_num_threads()

    finished = list(run_in_threads(work, ["a", "b"], 2))
    assert seen == {"a": 2, "b": 2} and sorted(finished) == ["a", "b"]
    assert torch.get_num_threads() == 4


def test_after_a_failure_no_further_item_starts_and_threads_are_given_back(four_threads) -> None:
    started = []

    def work(item: int) -> None:
        started.append(item)
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item"):
        list(run_in_threads(work, list(range(100)), 2))
    assert len(started) < 100 and torch.get_num_threads() == 4
