"""Headers of .safetensors files: what the library writes passes, every lie is refused, and nothing large is parsed."""

import json
import os
import struct
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ldm_us.files.safetensors_header import open_safetensors, read_header
from ldm_us.files.stored_tensor import DESCRIPTION_LIMIT
from weights_convert.sources import open_source


def entry(offsets=(0, 16), shape=(4,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def write(path, header, numbers=bytes(16), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + numbers)
    return path


def refusal(path):
    with pytest.raises(SafetensorError) as error:
        read_header(path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400
    with pytest.raises(ValueError, match=r"not a sound .safetensors file"):
        open_source(path)
    return str(error.value)


ONE = json.dumps(entry())
LIES = {
    "overlap": ({"a": entry(), "b": entry((8, 24))}, 24, "overlap others"),
    "hole": ({"a": entry(), "b": entry((20, 36))}, 36, "leave a hole"),
    "hole at the begin": ({"a": entry((4, 20))}, 20, "leave a hole"),
    "more than the file has": ({"a": entry((0, 32), (8,))}, 16, "cut short: it describes"),
    "less than the file has": ({"a": entry()}, 20, "4 bytes follow its last tensor"),
    "backwards": ({"a": entry((16, 0))}, 16, "do not fit"),
    "negative offset": ({"a": entry((-16, 0))}, 16, "do not fit"),
    "offset of 2^64": ({"a": entry((0, 2**64))}, 16, "do not fit"),
    "a fraction as offset": ({"a": entry((0, 16.0))}, 16, "of a wrong kind"),
    "three offsets": ({"a": entry((0, 8, 16))}, 16, "of a wrong kind"),
    "true as offset": ({"a": entry((False, 16))}, 16, "of a wrong kind"),
    "another length": ({"a": entry(shape=(5,))}, 16, "do not fit"),
    "negative shape": ({"a": entry(shape=(-2, -2))}, 16, "natural numbers"),
    "a fraction in a shape": ({"a": entry(shape=(4.0,))}, 16, "natural numbers"),
    "2^63 in a shape": ({"a": entry((0, 0), (0, 2**63))}, 0, "larger than any memory"),
    "2^62 * 2^62 in a shape": ({"a": entry((0, 0), (0, 2**62, 2**62))}, 0, "larger than any memory"),
    "1000 axes": ({"a": entry((0, 4), (1,) * 1000)}, 4, "more than 16 axes"),
    "a shape that is a text": ({"a": entry() | {"shape": "4"}}, 16, "no list"),
    "a type of many letters": ({"a": entry(dtype="a" * 300)}, 16, "type of 300 characters"),
    "a type that breaks the line": ({"a": entry(dtype="F32\n")}, 16, "type of 4 characters"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 16]}}, 16, "not described by"),
    "one field more": ({"a": entry() | {"x": 1}}, 16, "not described by"),
    "a list": ([1], 0, "no JSON object"),
    "a tensor that is a number": ({"a": 1}, 0, "not described by"),
    "a name with a line end": ({"a\nb": entry()}, 16, "cannot be shown"),
    "a name with an escape": ({"a\x1b[2J": entry()}, 16, "cannot be shown"),
    "a long name": ({"a" * 501: entry()}, 16, "cannot be shown"),
    "a name of half a character": (b'{"\\ud800": %s}' % ONE.encode(), 16, "cannot be shown"),
    "metadata that are a list": ({"__metadata__": ["a"], "a": entry()}, 16, "not a map of texts"),
    "metadata with a number": ({"__metadata__": {"a": 1}, "a": entry()}, 16, "not a map of texts"),
    "a tensor twice": (f'{{"a": {ONE}, "a": {ONE}}}'.encode(), 16, "occurs twice"),
    "metadata twice": (b'{"__metadata__": {"a": "1", "a": "2"}}', 0, "occurs twice"),
    "NaN": (b'{"a": NaN}', 0, "not described by"),
    "no UTF-8": (b'{"\xff": 1}', 0, "utf-8"),
    "no JSON": (b'{"a": ', 0, "Expecting value"),
    "deep nesting": (b'{"a": ' + b"[" * 10**6 + b"]" * 10**6 + b"}", 0, "nested too deeply"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused_with_the_reason(lie, tmp_path):
    header, size, sentence = LIES[lie]
    assert sentence in refusal(write(tmp_path / "x.safetensors", header, bytes(size)))


@pytest.mark.parametrize("length", [0, 1, 10**6, DESCRIPTION_LIMIT, 2**31, 2**63, 2**64 - 1])
def test_a_header_of_another_length_is_refused(length, tmp_path):
    refusal(write(tmp_path / "x.safetensors", {"a": entry()}, length=length))


@pytest.mark.parametrize("size", range(17))
def test_a_file_without_a_whole_header_is_refused(size, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 16) + b"{" * (size - 8) if size > 8 else bytes(size))
    with pytest.raises(SafetensorError):
        read_header(tmp_path / "x.safetensors")


def test_a_header_larger_than_any_models_is_refused_unread(tmp_path):
    path = write(tmp_path / "x.safetensors", b"{}", length=DESCRIPTION_LIMIT + 1)
    os.truncate(path, 1 << 30)  # sparse: no disk is used
    began = time.process_time()
    assert "more than the 16777216 of any model" in refusal(path)
    assert time.process_time() - began < 1


def test_the_largest_header_that_is_parsed_takes_seconds(tmp_path, monkeypatch):
    """At an eighth of the limit, in about a second: were it quadratic in the names, it would take minutes."""
    monkeypatch.setattr("ldm_us.files.safetensors_header.DESCRIPTION_LIMIT", DESCRIPTION_LIMIT // 8)
    count = 28_000
    text = ",".join(f'"{i}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{i + 1}]}}' for i in range(count))
    assert 0.7 * DESCRIPTION_LIMIT < 8 * len(text) < DESCRIPTION_LIMIT
    path = write(tmp_path / "x.safetensors", f"{{{text}}}".encode(), bytes(count))
    began = time.process_time()
    assert len(read_header(path).tensors) == count
    assert time.process_time() - began < 10


values = st.integers(-3, 20) | st.sampled_from([2**63, 1.5, None, "F16", [], {}])
changes = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["dtype", "shape", "data_offsets"]), st.integers(0, 1), values),
    max_size=2,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=changes, cut=st.integers(-2, 2))
def test_what_passes_here_passes_the_library_with_the_same_shapes(changes, cut, tmp_path):
    header = {"a": entry((0, 16)), "b": entry((16, 24), (2, 1)), "c": entry((24, 24), (0, 3), "F16")}
    for name, field, at, value in changes:
        if not isinstance(header[name][field], list) or not header[name][field][at:]:
            header[name][field] = value
        else:
            header[name][field][at] = value
    path = write(tmp_path / "x.safetensors", header, bytes(24 + min(cut, 0) + max(cut, 0)))
    try:
        ours = {name: list(found.shape) for name, found in read_header(path).tensors.items()}
    except SafetensorError:
        return
    try:
        with safe_open(path, "pt") as file:
            assert ours == {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        assert "unknown variant" in str(error)  # a dtype that is left to the library


def test_what_the_library_writes_passes_with_its_metadata(tmp_path):
    tensors = {
        "half": torch.ones(2, 3).half(),
        "empty": torch.zeros(0, 2),
        "scalar": torch.tensor(3),
        "f8": torch.zeros(2).to(torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / "x.safetensors", {"a": "b"})
    header = read_header(tmp_path / "x.safetensors")
    assert {name: found.shape for name, found in header.tensors.items()} == {
        n: tuple(t.shape) for n, t in tensors.items()
    }
    assert header.metadata == {"a": "b"}
    with open_safetensors(tmp_path / "x.safetensors") as file:
        assert torch.equal(file.get_tensor("half"), tensors["half"])


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(SafetensorError, match="a device or a pipe"):
        open_safetensors(tmp_path / "x.safetensors")


def test_a_file_that_shrinks_after_it_was_opened_is_a_sentence_and_no_signal(tmp_path):
    save_file({"a": torch.ones(10_000)}, tmp_path / "x.safetensors")
    found = open_source(tmp_path / "x.safetensors").entries["a"]
    os.truncate(tmp_path / "x.safetensors", 5000)
    with pytest.raises(ValueError, match=r"x\.safetensors: the file was cut short while it was read"):
        found.load()
