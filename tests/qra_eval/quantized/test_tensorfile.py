"""A tensor file comes back as it was written, or is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from qra_eval.quantized.tensorfile import CHECKSUMS, DamagedFile, open_tensors, write_tensors

TENSORS = {
    "a::codes": torch.arange(7, dtype=torch.uint8),
    "a::scale": torch.linspace(0, 1, 6).view(2, 3).half(),
    "b::weight": torch.linspace(-1, 1, 4).bfloat16(),
    "empty": torch.zeros(0, 5, dtype=torch.int8),
    "number": torch.tensor(2.5),
}


@pytest.fixture
def path(tmp_path):
    write_tensors(TENSORS, tmp_path / "new" / "a.safetensors")
    return tmp_path / "new" / "a.safetensors"


def test_what_was_written_comes_back(path):
    assert same(open_tensors(path)) and [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_flip_of_any_byte_is_found_or_harmless(path):
    content, found = path.read_bytes(), 0
    data = len(content) - sum(t.nbytes for t in TENSORS.values())
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 0b100
        copy = path.with_name(f"{at}.safetensors")
        copy.write_bytes(flipped)
        try:
            file = open_tensors(copy)
        except DamagedFile:
            found += 1
            continue
        assert at < data and same(file), f"byte {at} of {len(content)} was flipped unseen"
    assert found >= len(content) - data


def test_a_file_cut_off_or_without_checksums_is_refused(path, tmp_path):
    content = path.read_bytes()
    for length in (0, 7, 100, len(content) - 1):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(DamagedFile):
            open_tensors(tmp_path / "cut")
    save_file(TENSORS, tmp_path / "plain")
    with pytest.raises(DamagedFile, match="no checksums"):
        open_tensors(tmp_path / "plain")
    save_file(TENSORS, tmp_path / "list", metadata={CHECKSUMS: "[]"})
    with pytest.raises(DamagedFile, match="no checksums"):
        open_tensors(tmp_path / "list")


def same(file):
    return set(file.keys()) == set(TENSORS) and all(
        file.get_tensor(k).dtype == t.dtype and torch.equal(file.get_tensor(k), t) for k, t in TENSORS.items()
    )
