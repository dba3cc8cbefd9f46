"""A tensor file comes back as it was written, or is refused; its digest tells of every changed byte."""

from __future__ import annotations

import hashlib

import pytest
import torch

from qra_eval.quantized.bank import DamagedFile, open_tensors, write_tensors

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


def test_what_was_written_comes_back_with_a_digest_that_sha256sum_reads(path):
    file = open_tensors(path)
    assert set(file.keys()) == set(TENSORS)
    assert all(
        file.get_tensor(k).dtype == t.dtype and torch.equal(file.get_tensor(k), t) for k, t in TENSORS.items()
    )
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, path.name + ".sha256"]
    line = path.with_name(path.name + ".sha256").read_text()
    assert line == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"


def test_a_file_cut_off_or_foreign_is_refused(path, tmp_path):
    content = path.read_bytes()
    for damaged in (b"", content[:7], content[:100], content[:-1], b"x" * 999):
        (tmp_path / "cut").write_bytes(damaged)
        with pytest.raises(DamagedFile, match="not a complete tensor file"):
            open_tensors(tmp_path / "cut")
