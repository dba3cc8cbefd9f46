"""The reader gives what gguf's own reader gives, and refuses broken files in one line without using memory."""

from __future__ import annotations

import resource
import struct

import gguf
import numpy as np
import pytest
from gguf_files import write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qra_eval.models.gguf_reader import BadGGUF, file_digest, read_gguf


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, "llama", kind="Q8_0")
    return path


@pytest.fixture(scope="module")
def content(path):
    return path.read_bytes()


def header(tensors: int, pairs: int, *, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, pairs)


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def test_metadata_and_tensors_are_those_of_gguf_py(path):
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.metadata.keys() == fields.keys()
    for name, field in fields.items():
        assert ours.metadata[name] == field.contents(), name
    assert ours.tensors.keys() == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert ours.tensors[tensor.name].offset == tensor.data_offset
        np.testing.assert_array_equal(ours.read(tensor.name), expected)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_every_type_that_gguf_py_writes_is_read(tmp_path, kind):
    values = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    stored = gguf.GGMLQuantizationType[kind]
    data = values.astype(np.float16) if kind == "F16" else gguf.quantize(values, stored)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("x", data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = read_gguf(tmp_path / "x.gguf").read("x")
    assert read.dtype == np.float32 and read.shape == (3, 64)
    np.testing.assert_array_equal(read, gguf.dequantize(data, stored))
    np.testing.assert_allclose(read, values, atol=0.25)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "too few"),
        (b"GGUF", "too few"),
        (header(0, 0, magic=b"PK\x03\x04"), "not a GGUF file"),
        (header(0, 0, version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (header(2**63, 0), "header"),
        (header(0, 2**63), "header"),
        (header(0, 1) + text(b"k", 2**62) + bytes(40), "needs 4611686018427387904 bytes"),
        (header(0, 1) + text(b"k") + struct.pack("<I", 99) + bytes(40), "unknown type 99"),
        (header(0, 1) + text(b"k") + struct.pack("<IIQ", 9, 8, 2**60) + bytes(40), "truncated or broken"),
        (header(0, 1) + text(b"k") + struct.pack("<IIQ", 9, 4, 2**61) + bytes(40), "truncated or broken"),
        (header(0, 1) + text(b"k") + struct.pack("<IIQ", 9, 9, 1) + bytes(40), "unsupported type 9"),
        (header(0, 1) + text(b"\xff\xfe") + bytes(40), "UTF-8"),
        (header(0, 2) + (text(b"k") + struct.pack("<IB", 7, 1)) * 2 + bytes(40), "occurs twice"),
        (header(1, 0) + text(b"t") + struct.pack("<I", 9) + bytes(80), "9 dimensions"),
        (header(1, 0) + text(b"t") + struct.pack("<IQIQ", 1, 2**62, 0, 0) + bytes(80), "the file has"),
        (header(1, 0) + text(b"t") + struct.pack("<IQQIQ", 2, 2**62, 2**62, 0, 0) + bytes(80), "the file has"),
        (header(1, 0) + text(b"t") + struct.pack("<IQIQ", 1, 4, 0, 2**63) + bytes(80), "the file has"),
        (header(1, 0) + text(b"t") + struct.pack("<IQIQ", 1, 33, 8, 0) + bytes(80), "whole blocks of 32"),
        (header(1, 0) + text(b"t") + struct.pack("<IQIQ", 1, 0, 0, 0) + bytes(80), "whole blocks"),
        (header(1, 0) + text(b"t") + struct.pack("<IQIQ", 1, 4, 77, 0) + bytes(80), "unknown ggml type 77"),
        (header(2, 0) + (text(b"t") + struct.pack("<IQIQ", 1, 4, 0, 0)) * 2 + bytes(80), "occurs twice"),
        (
            header(2, 0) + b"".join(text(n) + struct.pack("<IQIQ", 1, 4, 0, 0) for n in (b"a", b"b")) + bytes(80),
            "overlap",
        ),
        (
            header(0, 1) + text(b"general.alignment") + struct.pack("<II", 4, 3) + bytes(40),
            "alignment 3 is not a power of two",
        ),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path, content, why):
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(BadGGUF, match=why) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_missing_is_refused_in_one_line(tmp_path):
    with pytest.raises(BadGGUF, match="cannot be read"):
        read_gguf(tmp_path / "none.gguf")


def test_a_file_cut_anywhere_is_refused(path, content, tmp_path):
    last = max(entry.offset + entry.nbytes for entry in read_gguf(path).tensors.values())
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 400, 7), *range(400, last, 4999), last - 1]:
        cut.write_bytes(content[:length])
        with pytest.raises(BadGGUF):
            read_gguf(cut)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changed_bytes_give_a_file_or_a_refusal(data, content, tmp_path):
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, 9000))] = data.draw(st.integers(0, 255))
    path = tmp_path / "changed.gguf"
    path.write_bytes(changed)
    try:
        file = read_gguf(path)
    except BadGGUF as error:
        assert "\n" not in str(error)
    else:
        assert sum(entry.nbytes for entry in file.tensors.values()) <= len(content)


def test_claims_of_a_small_file_take_no_memory(tmp_path):
    path = tmp_path / "claims.gguf"
    for claim in (2**40, 2**63):
        body = text(b"k") + struct.pack("<IIQ", 9, 8, claim) + bytes(64)
        path.write_bytes(header(0, 1) + body)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(BadGGUF):
            read_gguf(path)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_a_digest_tells_files_apart_by_size_and_content(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(bytes(1000))
    other.write_bytes(bytes(999) + b"\x01")
    assert file_digest(one) == file_digest(one) != file_digest(other)
    other.write_bytes(bytes(1001))
    assert file_digest(one) != file_digest(other)


def test_the_digest_of_a_large_file_is_a_sample_with_both_ends(tmp_path):
    path = tmp_path / "large"
    content = bytearray(1000)

    def digest():
        path.write_bytes(content)
        return file_digest(path, blocks=4, block_bytes=10)

    before = digest()
    content[995] = 1
    assert digest() != before
    content[995], content[3] = 0, 1
    assert digest() != before
    content[3], content[15] = 0, 1
    assert digest() == before
