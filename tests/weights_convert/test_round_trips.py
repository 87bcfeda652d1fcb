"""What goes in comes out: after an import and an export every tensor has the name, shape, type and bytes that it had.

At tiny size with real files through the commands. At the size of Stable Diffusion 1.5 through the same plans, over
every name of sd15_layouts.json, with tensors that are windows into one array: all different, in no memory of their own.
"""

import json
from functools import cache, partial
from hashlib import sha256
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ldm_us.config import SD15
from ldm_us.files.checkpoint import LazyTensor
from tests.golden.original import LAYOUTS, PREFIXES, diffusers_name, shapes, tiny_compvis, to_diffusers, to_open_clip
from weights_convert.convert import lazy, plan_source
from weights_convert.export_command import COMPVIS, COMPVIS_CONTROLNET, DIFFUSERS, plan_export, position_ids
from weights_convert.sources import COMPONENTS, Source

POSITION_IDS = f"{PREFIXES['text']}embeddings.position_ids"
PARTS = {"unet": "unet", "vae": "vae", "text_encoder": "text", "controlnet": "controlnet"}
TYPES = [torch.float32, torch.float16]


def as_stored(content):
    """A .safetensors read by hand: name -> type, shape and the hash of the bytes."""
    start = 8 + int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:start]), memoryview(content)[start:]
    header.pop("__metadata__", None)
    return {
        name: (entry["dtype"], entry["shape"], sha256(data[slice(*entry["data_offsets"])]).hexdigest())
        for name, entry in header.items()
    }


def stored_in(path):
    return as_stored(path.read_bytes())


def stored(tensors):
    return as_stored(safetensors.torch.save(tensors))


def original(*parts, types=TYPES):
    """Parts of the tiny model in CompVis's names, of several types in turn; position_ids keep theirs."""
    tensors = enumerate(tiny_compvis(*parts).items())
    return {k: v.to(types[i % len(types)]) if v.is_floating_point() else v for i, (k, v) in tensors}


def write_folder(folder, tensors, old=False):
    """Weights in diffusers' names, by the test suite's own way to them."""
    for component, part in PARTS.items():
        path = folder / component / COMPONENTS[component][0]
        path.parent.mkdir(parents=True)
        safetensors.torch.save_file(to_diffusers(tensors, part, old), path)
    return folder


@pytest.fixture
def files(tmp_path, convert, export):
    """Functions of names of files: import into, export to, and read what was written."""

    def take(source, out, *options, preset="tiny"):
        code, _, error = convert(source, "--out", tmp_path / out, *options, preset=preset)
        assert (code, error) == (0, "")
        return tmp_path / out

    def give(model, format, out):
        code, _, error = export(model, "--format", format, "--out", tmp_path / out)
        assert (code, error) == (0, "")
        return tmp_path / out

    return take, give


def test_a_compvis_file_and_a_controlnet_come_back_bit_for_bit_also_by_way_of_diffusers(files, tmp_path):
    take, give = files
    model, control = original("vae", "text", "unet"), original("controlnet")
    safetensors.torch.save_file(model, tmp_path / "in.safetensors")
    torch.save(control, tmp_path / "in.pth")
    ours = take(tmp_path / "in.safetensors", "a.safetensors", "--controlnet", tmp_path / "in.pth")
    folder = give(ours, "diffusers", "folder")
    again = take(folder, "b.safetensors", preset=None)  # the folder knows its config
    assert stored_in(again) == stored_in(ours)
    assert stored_in(give(again, "compvis", "m.safetensors")) == stored(model)
    assert stored_in(give(again, "controlnet", "c.safetensors")) == stored(control)
    assert stored(model)[POSITION_IDS][0] == "I64"


@pytest.mark.parametrize("old", [False, True])
def test_a_diffusers_folder_comes_back_bit_for_bit_the_older_names_of_its_vae_as_the_newer(files, tmp_path, old):
    take, give = files
    tensors = original()
    ours = take(write_folder(tmp_path / "in", tensors, old), "a.safetensors")
    folder = give(ours, "diffusers", "out")
    for component, part in PARTS.items():
        found = stored_in(folder / component / COMPONENTS[component][0])
        assert found == stored(to_diffusers(tensors, part))
    compvis = stored_in(give(ours, "compvis", "c.safetensors"))
    parts = tuple(PREFIXES[part] for part in ("vae", "text", "unet"))
    assert compvis == stored({name: value for name, value in tensors.items() if name.startswith(parts)})


def test_a_text_encoder_of_open_clip_and_a_moving_average_come_out_in_the_places_of_text_and_unet(files, tmp_path):
    take, give = files
    model = original("vae", "text", "unet", types=TYPES[:1])
    averaged = {key: value + 1 if key.startswith(PREFIXES["unet"]) else value for key, value in model.items()}
    ema = {f"model_ema.{k[6:].replace('.', '')}": v for k, v in averaged.items() if k.startswith("model.")}
    without_text = {key: value for key, value in model.items() if not key.startswith(PREFIXES["text"])}
    torch.save({"state_dict": without_text | ema}, tmp_path / "in.ckpt")
    safetensors.torch.save_file(to_open_clip(model), tmp_path / "clip.safetensors")
    ours = take(tmp_path / "in.ckpt", "a.safetensors", "--ema", "--text", tmp_path / "clip.safetensors")
    assert stored_in(give(ours, "compvis", "out.safetensors")) == stored(averaged)


# Stable Diffusion 1.5


@cache
def numbers():
    """Different int32: enough for a window of the largest tensor to start at every tensor's number.

    Neither half has its bit 14: as float16 or bfloat16 that is an exponent below that of infinity and NaN.
    """
    i = torch.arange(49408 * 768 + 4 * sum(map(len, LAYOUTS.values())), dtype=torch.int32)
    return (i & 0x3FFF) | ((i >> 14) << 16)


def window(start, shape, dtype):
    """A tensor whose first four bytes are those of number `start`, so that no two are equal."""
    count = torch.Size(shape).numel()
    words = -(-count * dtype.itemsize // 4)
    return numbers()[start : start + words].view(dtype)[:count].view(shape)


def full_size(layout, dtype, start=0):
    """One layout of sd15_layouts.json, every name in it."""
    entries = {}
    for i, (name, shape) in enumerate(shapes(layout, "sd15").items()):
        load = partial(window, start + i, shape, dtype)
        entries[name] = LazyTensor(name, shape, dtype, load)
        if name.endswith("position_ids"):
            entries[name] = LazyTensor(name, shape, torch.int64, lambda: torch.arange(77).view(1, 77))
    return entries


def imported(entries):
    """What an import makes of these tensors, each still to be loaded."""
    plan = plan_source(Source(Path("full size"), (), entries), SD15)
    found = {piece.target: lazy(piece, None) for piece in plan.pieces}
    return Source(Path("ours"), (), found)


def exported(ours, *layouts):
    """What an export makes of them."""
    tensors = [lazy(piece, None) for layout in layouts for piece in plan_export(ours, SD15, layout)]
    tensors += [tensor for layout in layouts for tensor in position_ids(SD15, layout)]
    assert len({tensor.name for tensor in tensors}) == len(tensors)
    return {tensor.name: tensor for tensor in tensors}


def assert_same(found, expected):
    """Names, shapes, types and every byte."""
    assert found.keys() == expected.keys()
    for name, entry in expected.items():
        value, wanted = found[name].load(), entry.load()
        assert (found[name].shape, value.shape, value.dtype) == (entry.shape, wanted.shape, wanted.dtype), name
        assert torch.equal(value.reshape(-1).view(torch.uint8), wanted.reshape(-1).view(torch.uint8)), name


@pytest.fixture
def dtype():
    """Of the files at full size; the other types make their round trips in small files."""
    return torch.float16


@pytest.mark.parametrize(
    ("layout", "written"),
    [("compvis_single_file", COMPVIS), ("lllyasviel_controlnet", (COMPVIS_CONTROLNET,))]
    + [(f"diffusers/{component}", (layout,)) for component, layout in DIFFUSERS.items()],
)
def test_at_full_size_every_tensor_of_a_layout_comes_back_bit_for_bit(layout, written, dtype):
    there = full_size(layout, dtype)
    assert_same(exported(imported(there), *written), there)


def test_at_full_size_compvis_to_diffusers_gives_the_names_that_the_test_suite_counts_itself_and_comes_back(dtype):
    control = full_size("lllyasviel_controlnet", dtype, start=2000)
    there = full_size("compvis_single_file", dtype) | control
    ours = imported(there)
    folder = {}
    for component, layout in DIFFUSERS.items():
        found = exported(ours, layout)
        folder |= {f"{component}/{name}": entry for name, entry in found.items()}
        part, start = PARTS[component], PREFIXES[PARTS[component]]
        expected = {}
        for name, entry in there.items():
            if name.startswith(start):
                theirs = diffusers_name(part, name.removeprefix(start))
                shape = tuple(LAYOUTS[f"diffusers/{component}"][theirs])
                load = lambda entry=entry, shape=shape: entry.load().view(shape)  # noqa: E731
                expected[theirs] = LazyTensor(theirs, shape, entry.dtype, load)
        assert_same(found, expected)
    again = imported(folder)
    assert_same(exported(again, *COMPVIS, COMPVIS_CONTROLNET), there)


def test_at_full_size_the_older_names_of_the_vae_and_open_clips_text_encoder_give_the_tensors_of_compvis(dtype):
    there = full_size("compvis_single_file", dtype)
    old = {}
    for name, entry in there.items():
        if name.startswith(PREFIXES["vae"]):
            old[diffusers_name("vae", name.removeprefix(PREFIXES["vae"]), old=True)] = entry
    assert any(".query." in name for name in old)
    vae = exported(imported(old), COMPVIS[1])
    assert_same(vae, {name: entry for name, entry in there.items() if name.startswith(PREFIXES["vae"])})

    tower = full_size("open_clip_text", dtype)
    text = exported(imported(tower), COMPVIS[2])
    assert {name: list(entry.shape) for name, entry in text.items()} == {
        name: shape for name, shape in LAYOUTS["compvis_single_file"].items() if name.startswith(PREFIXES["text"])
    }
    for i in range(12):
        for kind in ("weight", "bias"):
            qkv = [text[f"{PREFIXES['text']}encoder.layers.{i}.self_attn.{x}_proj.{kind}"].load() for x in "qkv"]
            joined = tower[f"transformer.resblocks.{i}.attn.in_proj_{kind}"].load()
            assert torch.equal(torch.cat(qkv).view(torch.uint8), joined.view(torch.uint8))
