"""Pickles: what torch.save writes is read as torch reads it; what a hostile one asks for is named, and not run."""

import io
import os
import pickle
import struct
import time
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ldm_us.files.pickle_file import read_pickle_file, read_weights
from ldm_us.files.pickle_program import MAX_WORK
from ldm_us.files.stored_tensor import StoredTensor

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def storage(elements=4, key="0", kind="FloatStorage"):
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(elements) + b"tQ"


def tensor(shape, stride, offset=0, elements=4):
    axes = [b"(" + b"".join(map(number, sizes)) + b"t" for sizes in (shape, stride)]
    arguments = (
        storage(elements) + number(offset) + axes[0] + axes[1] + b"\x89" + name("collections", "OrderedDict") + b")R"
    )
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def pickled(value):
    """A pickle of {"a": value}."""
    return b"\x80\x02}" + text("a") + value + b"s."


def write_zip(path, content, numbers=bytes(16), **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("x/data.pkl", content)
        archive.writestr("x/data/0", numbers)
    return path


def write_old(path, content, numbers=bytes(16)):
    start = [pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    keys = pickle.dumps(["0"], protocol=2)
    path.write_bytes(b"".join(start) + content + keys + struct.pack("<q", len(numbers) // 4) + numbers)
    return path


WRITERS = pytest.mark.parametrize("write", [write_zip, write_old])


def refusal(path, within=5.0):
    """The sentence that refuses a file, quickly."""
    began = time.process_time()
    with pytest.raises(ValueError, match=r"[nN]othing in it was run") as error:
        read_pickle_file(path)
    assert time.process_time() - began < within
    said = str(error.value)
    assert said.startswith(f"{path}: ")
    assert said.isprintable()
    assert len(said) < 600
    return said


def resolved(value):
    """Every tensor of a content read."""
    if isinstance(value, dict):
        return {key: resolved(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(resolved(item) for item in value)
    return value.read() if isinstance(value, StoredTensor) else value


def equal(ours, theirs):
    if isinstance(theirs, torch.Tensor):
        return ours.dtype == theirs.dtype and ours.stride() == theirs.stride() and torch.equal(ours, theirs)
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(equal(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return type(ours) is type(theirs) and ours == theirs


@st.composite
def tensors(draw):
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 3), max_size=4))
    made = torch.randint(0, 2, shape).to(dtype)
    how = draw(st.sampled_from(["whole", "transposed", "part", "parameter"]))
    if how == "parameter" and dtype.is_floating_point:
        return torch.nn.Parameter(made)
    if how == "part":
        return torch.cat([made.reshape(-1), made.reshape(-1)])[1:]
    return made.t() if how == "transposed" and made.dim() == 2 else made


plain = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5)
contents = st.recursive(
    plain | tensors() | st.binary(min_size=1, max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=contents, new=st.booleans())
def test_what_torch_saves_is_read_as_torch_reads_it(content, new, tmp_path):
    path = tmp_path / "x.pt"
    torch.save(content, path, _use_new_zipfile_serialization=new)
    assert equal(resolved(read_pickle_file(path)), torch.load(path, weights_only=True))


def test_tensors_that_share_numbers_each_read_their_own(tmp_path):
    whole = torch.arange(6.0)
    for new in (True, False):
        torch.save(
            {"whole": whole, "end": whole[4:], "matrix": whole.view(2, 3).t()},
            tmp_path / "x.pt",
            _use_new_zipfile_serialization=new,
        )
        read = resolved(read_pickle_file(tmp_path / "x.pt"))
        assert (read["end"].tolist(), read["matrix"].tolist()) == ([4.0, 5.0], [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]])


@pytest.mark.parametrize("new", [True, False])
def test_the_weights_of_a_file_are_one_flat_dictionary_wherever_a_trainer_put_them(new, tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).bfloat16()
    state = network.state_dict()  # an OrderedDict with _metadata, and a counter of whole numbers
    parallel = {f"module.{name}": value for name, value in state.items()}
    for content in (
        state,
        dict(network.named_parameters()) | dict(network.named_buffers()),
        {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
        {"model": {"model_state_dict": parallel}},
    ):
        torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
        weights = read_weights(tmp_path / "x.pth")
        assert weights.keys() == state.keys()
        assert all(weights[name].dtype == state[name].dtype for name in state)
        assert all(torch.equal(weights[name], state[name]) for name in state)
        assert not any(isinstance(value, torch.nn.Parameter) for value in weights.values())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (torch.nn.Linear(2, 3), "refused: this pickle asks for torch.nn.modules.linear.Linear"),
        ([torch.ones(1)], "holds a list, not a dictionary of tensors"),
        ({"a": torch.ones(1), "gain": 0.5}, "entry 'gain' is a float, not a tensor. Give a file with a state dict, or"),
        ({3: torch.ones(1)}, "a tensor is named by a int, not by a text"),
        ({"a\nb": torch.ones(1)}, "cannot be shown"),
    ],
)
def test_what_is_no_dictionary_of_named_tensors_is_refused_in_one_sentence(content, sentence, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth") as error:
        read_weights(tmp_path / "x.pth")
    assert sentence in str(error.value)
    assert str(error.value).isprintable()


HOSTILE = {  # what a pickle asks for
    ("os", "system"): "os.system",
    ("posix", "system"): "posix.system",
    ("builtins", "eval"): "builtins.eval",
    ("__builtin__", "eval"): "__builtin__.eval",
    ("builtins", "getattr"): "builtins.getattr",
    ("builtins", "bytearray"): "builtins.bytearray",
    ("torch", "load"): "torch.load",
    ("torch.storage", "UntypedStorage"): "torch.storage.UntypedStorage",
    ("torch.serialization", "load"): "torch.serialization.load",
    ("torch._utils", "_rebuild_sparse_tensor"): "torch._utils._rebuild_sparse_tensor",
    ("torch._utils", "_rebuild_qtensor"): "torch._utils._rebuild_qtensor",
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): "torch._utils._rebuild_meta_tensor_no_storage",
    ("numpy.core.multiarray", "fromfile"): "numpy.core.multiarray.fromfile",
    ("torch._utils", "_rebuild_tensor_v2.__globals__"): "torch._utils._rebuild_tensor_v2.__globals__",
}


@WRITERS
@pytest.mark.parametrize("asked", HOSTILE)
def test_a_name_that_weights_do_not_need_is_refused_by_name(asked, write, tmp_path):
    said = refusal(write(tmp_path / "x.ckpt", pickled(name(*asked) + text("ls") + b"\x85R")))
    assert f"asks for {HOSTILE[asked]}," in said


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x04}\x8c\x01a\x8c\x05posix\x8c\x06system\x93s.",  # STACK_GLOBAL
        b"(S'ls'\niposix\nsystem\n.",  # INST
        pickled(name("collections", "OrderedDict") + b"(" + name("posix", "system") + text("ls") + b"\x85Rt" + b"R"),
    ],
    ids=["protocol 4", "protocol 0", "nested call"],
)
def test_the_other_ways_to_name_something_are_refused_by_name_too(program, tmp_path):
    assert "asks for posix.system," in refusal(write_zip(tmp_path / "x.ckpt", program))


@pytest.mark.parametrize("called", [name("torch", "FloatStorage"), text("posix.system"), b"]", storage()])
def test_a_call_of_what_is_no_function_is_refused(called, tmp_path):
    assert "this pickle calls" in refusal(
        write_zip(tmp_path / "x.ckpt", pickled(called + number(2**31 - 1) + b"\x85R"))
    )


@WRITERS
@pytest.mark.parametrize(
    ("claimed", "sentence"),
    [
        (tensor((1000, 1000), (1000, 1)), "reaches beyond its 4 numbers"),
        (tensor((4,), (1,), offset=1), "reaches beyond its 4 numbers"),
        (tensor((4,), (1,), offset=-1), "an offset or strides that are none"),
        (tensor((4,), (-1,), offset=3), "no list of natural numbers"),
        (tensor((-4,), (1,)), "no list of natural numbers"),
        (tensor((4,), (1, 1)), "an offset or strides that are none"),
        (tensor((10**9, 1000), (0, 0)), "repeats its 4 numbers"),
        (tensor((2**31 - 1,) * 3, (0,) * 3), "larger than any memory"),
        (tensor((1,) * 100, (1,) * 100), "more than 16 axes"),
        (tensor((1000,), (1,), elements=1000), "1000 numbers are described|not as long as it says"),
    ],
)
def test_a_tensor_that_claims_more_than_its_storage_has_is_refused(write, claimed, sentence, tmp_path):
    said = refusal(write(tmp_path / "x.ckpt", pickled(claimed)))
    assert any(part in said for part in sentence.split("|"))


PAIRS = b")" + b"q\x00h\x00\x86" * 100  # () * 2^100 to whoever walks it


@WRITERS
@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        (b"\x80\x02}" + PAIRS + b"Ns.", "a tuple as the key"),
        (pickled(name("collections", "OrderedDict") + b"]]" + PAIRS + b"aNaa\x85R"), "a tuple as the key"),
        (pickled(name("builtins", "set") + b"]" + PAIRS + b"a\x85R") + b"", None),  # sets stay lists: never hashed
        (pickled(b"(" + text("storage") + name("torch", "FloatStorage") + PAIRS + b"NKatQ"), "in an unknown way"),
        (pickled(b"\x8a\xff" + b"\x7f" * 255), None),  # 2040 bits
        (pickled(b"X\xff\xff\xff\xffabc"), "expected 4294967295 bytes"),
        (pickled(b"]r\xff\xff\xff\xff"), None),  # a memo of 2^32 - 1 places, if it were a list
        (pickled(b"]" + b"\x85" * 200_000), None),  # 200,000 tuples in each other
        (
            pickled(b"(](" + b"N" * 10_000 + b"eq\x01" + (name("builtins", "set") + b"h\x01\x85R") * 1000 + b"t"),
            "more than 1000000 instructions",
        ),
        (b"\x80\x02.", "damaged"),
        (b"\x80\x02}", "exhausted|unknown"),  # an old file goes on, with what is no instruction
        (b"", "exhausted|unknown"),
    ],
)
def test_a_program_made_to_fill_time_or_memory_ends_soon(write, program, sentence, tmp_path):
    path = write(tmp_path / "x.ckpt", program, b"")
    if sentence is not None:
        said = refusal(path)
        assert any(part in said for part in sentence.split("|"))
        return
    began = time.process_time()
    content = read_pickle_file(path) if write is write_zip else None
    assert time.process_time() - began < 5
    assert content is None or list(content) == ["a"]


def test_a_program_that_does_not_end_is_stopped(tmp_path):
    path = write_zip(tmp_path / "x.ckpt", b"\x80\x02" + b"]" * (MAX_WORK + 1), b"")
    assert "more than 1000000 instructions" in refusal(path)


def patched(content, mark, at, value, which=0):
    """A ZIP with two bytes changed behind one of its marks."""
    content = bytearray(content)
    places = [place for place in range(len(content)) if content.startswith(mark, place)]
    content[places[which] + at : places[which] + at + 4] = struct.pack("<I", value)
    return bytes(content)


ENTRY, END = b"PK\x01\x02", b"PK\x05\x06"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda zipped: patched(patched(zipped, ENTRY, 20, 2**31, 1), ENTRY, 24, 2**31, 1), "overlap, or reach beyond"),
        (lambda zipped: patched(zipped, ENTRY, 24, 2**31, 1), "compressed or encrypted"),
        (lambda zipped: patched(zipped, ENTRY, 42, 0, 1), "overlap, or reach beyond"),
        (lambda zipped: patched(zipped, END, 12, 2**31), "zip"),
        (lambda zipped: zipped[:-1], "zip"),
        (lambda zipped: zipped[: len(zipped) // 2], "zip"),
        (lambda zipped: zipped.replace(b"x/data/0", b"x/data/1"), "damaged"),
        (lambda zipped: zipped.replace(b"x/data.pkl", b"x/data.pk_"), "without a data.pkl"),
    ],
)
def test_a_zip_whose_list_of_entries_lies_is_refused(change, sentence, tmp_path):
    path = write_zip(tmp_path / "x.ckpt", pickled(tensor((4,), (1,))))
    path.write_bytes(change(path.read_bytes()))
    assert sentence in refusal(path).lower() or sentence in refusal(path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = write_zip(tmp_path / "x.ckpt", pickled(b"N"), bytes(1 << 26), compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    assert "compressed or encrypted" in refusal(path, within=0.5)


def test_a_name_that_a_zip_has_twice_is_refused(tmp_path):
    path = write_zip(tmp_path / "x.ckpt", pickled(b"N"))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("x/data/0", b"")
    assert "two of its entries have the same name" in refusal(path)


@pytest.mark.parametrize("new", [True, False])
def test_a_file_cut_at_any_byte_is_refused_or_has_every_number(new, tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(3.0)}, buffer, _use_new_zipfile_serialization=new)
    path = tmp_path / "x.ckpt"
    for length in range(1, len(buffer.getvalue())):
        path.write_bytes(buffer.getvalue()[:length])
        refusal(path)


@pytest.mark.parametrize("changed", ["shorter", "other numbers"])
def test_a_file_that_shrinks_or_changes_after_it_was_opened_is_a_sentence_and_no_signal(changed, tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"a": torch.ones(10_000)}, path)
    content = read_pickle_file(path)
    if changed == "shorter":
        os.truncate(path, 5000)
    else:
        path.write_bytes(path.read_bytes().replace(struct.pack("<f", 1.0), struct.pack("<f", 2.0)))
    with pytest.raises(ValueError, match="cut short while it was read" if changed == "shorter" else "checksum"):
        content["a"].read()


@pytest.mark.skipif(not hasattr(torch.serialization, "set_crc32_options"), reason="this torch always writes checksums")
def test_a_file_saved_without_checksums_is_refused_with_that_reason(tmp_path):
    checked = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(2)}, tmp_path / "x.ckpt")
    finally:
        torch.serialization.set_crc32_options(checked)
    assert "Bad CRC-32" in (said := refusal(tmp_path / "x.ckpt"))
    assert "saved with torch's checksums turned off" in said


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="a device or a pipe"):
        read_pickle_file(tmp_path / "x.ckpt")


def test_a_tar_archive_is_named(tmp_path):
    (tmp_path / "x.pt").write_bytes(bytes(257) + b"ustar" + bytes(1000))
    assert "a tar archive, as PyTorch wrote before version 0.1.10" in refusal(tmp_path / "x.pt")
