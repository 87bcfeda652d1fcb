"""Cached latents and text states: the same training without the frozen networks, computed again only when needed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ldm_us.files.checkpoint import load_model, on_meta, read_metadata
from ldm_us.networks.clip import TextEncoder
from ldm_us.networks.vae import VAE
from ldm_us.training.cache import ENCODER, TEXT, Cache, open_cache, weights_hash
from ldm_us.training.stages import Stage
from ldm_us.training.start import random_model


@pytest.fixture
def calls(monkeypatch):
    """How often each frozen network is called: {"vae": n, "text": n}."""
    counts = {"vae": 0, "text": 0}
    moments, forward = VAE.moments, TextEncoder.forward

    def counted_moments(self, x):
        counts["vae"] += 1
        return moments(self, x)

    def counted_forward(self, tokens):
        counts["text"] += 1
        return forward(self, tokens)

    monkeypatch.setattr(VAE, "moments", counted_moments)
    monkeypatch.setattr(TextEncoder, "forward", counted_forward)
    return counts


@pytest.fixture
def train_unet(run, chain, own_busi, tmp_path):
    """A function of a name and flags: an epoch of the unet stage on images of one's own, all of them."""

    def call(name, *flags, weights=None):
        flags = ("--epochs", 1, "--held-out", 0, *flags)
        return run("unet", tmp_path / name, *flags, weights=weights or chain["vae"].path, data=own_busi)

    return call


@pytest.fixture(scope="module")
def kept(run, chain, busi, tmp_path_factory):
    """That epoch on the same images, to be read only; its cache lies beside it."""
    folder = tmp_path_factory.mktemp("kept")
    return run("unet", folder / "first", "--epochs", 1, "--held-out", 0, weights=chain["vae"].path)


@pytest.fixture
def first(kept, tmp_path):
    """The same with a copy of its cache, which a second run finds."""
    shutil.copytree(kept.out.parent / "cache", tmp_path / "cache")
    return kept


def assert_equal(a, b):
    assert a.weights.keys() == b.weights.keys()
    assert all(torch.equal(value, b.weights[name]) for name, value in a.weights.items())


def test_a_second_run_calls_neither_frozen_network_and_trains_the_same_bits(train_unet, calls):
    first = train_unet("first")
    assert calls == {"vae": 2 * 11, "text": 4}, "each image and its mirror image once, each prompt and the empty one"
    second = train_unet("second")
    assert calls == {"vae": 2 * 11, "text": 4}
    assert_equal(first, second)


def test_without_a_cache_on_disk_training_gives_the_same_bits(train_unet, first, tmp_path):
    second = train_unet("second", "--cache", tmp_path / "other")
    assert_equal(first, second)
    folders = tmp_path / "cache", tmp_path / "other"
    files = [{path.name: path.stat().st_size for path in folder.rglob("*-*/*.rows")} for folder in folders]
    assert files[0] == files[1]
    assert sorted(files[0]) == ["2x8x4x4.rows", "77x8.rows"]


@pytest.mark.parametrize("stage", ["unet", "controlnet"])
def test_while_the_denoiser_trains_autoencoder_and_text_encoder_are_not_loaded(
    run, chain, tmp_path, monkeypatch, stage
):
    seen = []
    loss = Stage.loss

    def look(self, batch):
        seen.append((on_meta(self.model.vae), on_meta(self.model.text)))
        return loss(self, batch)

    monkeypatch.setattr(Stage, "loss", look)
    start = chain["unet"].path
    result = run(stage, tmp_path / "run", "--sample-every", 1, "--validate-every", 1, weights=start)
    assert set(seen) == {(True, True)}
    before = load_file(start)
    for name, value in result.weights.items():
        if name.startswith(("vae.", "text.")):
            assert torch.equal(value, before[name]), "the result holds them all the same"


def test_a_changed_image_is_encoded_again_and_no_other(train_unet, first, own_busi, calls):
    path = own_busi / "benign" / "benign (9001).png"
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    train_unet("second")
    assert calls == {"vae": 2, "text": 0}


def test_a_renamed_image_is_not_encoded_again(train_unet, first, own_busi, calls):
    for path in (own_busi / "benign").glob("benign (9001)*"):
        path.rename(path.with_name(path.name.replace("9001", "9801")))
    train_unet("second")
    assert calls["vae"] == 0


def test_another_way_to_resize_or_decode_an_image_has_latents_of_its_own(train_unet, first, calls, monkeypatch):
    """Whatever Pillow does: the values are named after the pixels that the autoencoder is given."""
    resize = Image.Image.resize
    monkeypatch.setattr("ldm_us.data.decoded.decoder", lambda more=(): "another version of Pillow")
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, *_: resize(self, size, Image.Resampling.BILINEAR))
    train_unet("second")
    assert calls == {"vae": 22, "text": 0}


def test_another_kind_of_device_and_another_precision_have_folders_of_their_own(micro, tmp_path, monkeypatch):
    model = random_model("micro", seed=0)
    folders = {open_cache(tmp_path, values, model, None, [1]).folder for values in ("moments", "states")}
    folders |= {
        open_cache(tmp_path, values, model.half().float(), None, [1]).folder for values in ("moments", "states")
    }
    assert len(folders) == 4, "half precision has other weights"
    rounded = {open_cache(tmp_path, values, model.half(), None, [1]).folder for values in ("moments", "states")}
    assert len(folders | rounded) == 6, "and computes otherwise with the same"
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    assert (
        len(rounded | {open_cache(tmp_path, values, model, None, [1]).folder for values in ("moments", "states")}) == 4
    )


def changed(path, out, part):
    """A copy of a model file in which one weight of a part is another."""
    state = load_file(path)
    name = next(name for name in state if name.startswith(part))
    state[name] = state[name] + 0.5
    save_file(state, out, read_metadata(path))
    return out


@pytest.mark.parametrize(
    ("part", "again"),
    [
        ("vae.encoder.", {"vae": 22, "text": 0}),
        ("vae.quant_conv.", {"vae": 22, "text": 0}),
        ("vae.decoder.", {"vae": 0, "text": 0}),
        ("unet.", {"vae": 0, "text": 0}),
        ("text.", {"vae": 0, "text": 4}),
    ],
)
def test_changed_weights_invalidate_what_depends_on_them_and_no_more(
    train_unet, first, chain, calls, tmp_path, part, again
):
    train_unet("second", weights=changed(chain["vae"].path, tmp_path / "changed.safetensors", part))
    assert calls == again


def test_another_size_has_latents_of_its_own(train_unet, first, calls):
    train_unet("second", "--size", 24)
    assert calls["vae"] == 22


def test_a_damaged_file_of_the_cache_is_computed_and_written_again(train_unet, first, calls, tmp_path):
    path = next((tmp_path / "cache").glob("moments-*/*.rows"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert_equal(train_unet("second"), first)
    assert calls["vae"] == 2
    assert path.read_bytes() == whole


def test_the_values_of_another_vae_under_this_ones_name_are_refused(first, chain, refused, own_busi, tmp_path):
    (folder,) = (tmp_path / "cache").glob("moments-*")
    weights = changed(chain["vae"].path, tmp_path / "changed.safetensors", "vae.encoder.")
    folder.rename(open_cache(tmp_path / "cache", "moments", load_model(weights), weights, [1]).folder)
    sentence = refused("unet", tmp_path / "second", "--epochs", 1, "--held-out", 0, weights=weights, data=own_busi)
    assert "holds values of other weights than its name says" in sentence
    assert "Delete the folder" in sentence


def test_only_images_that_the_steps_will_see_are_encoded(run, chain, own_busi, tmp_path, calls):
    run("unet", tmp_path / "run", "--steps", 1, "--held-out", 0, weights=chain["vae"].path, data=own_busi)
    assert calls["vae"] <= 2 * (2 + 2), "two images of the step, two of the one whose loss is checked before a save"


def test_the_hash_of_weights_is_the_same_in_memory_in_a_file_and_in_half_precision(micro, chain, tmp_path):
    path = chain["vae"].path
    loaded, absent = load_model(path), load_model(path, parts=("unet",))
    for prefixes in (ENCODER, TEXT):
        assert weights_hash(loaded, None, prefixes) == weights_hash(absent, path, prefixes)
    model = random_model("micro", seed=0)
    rounded = random_model("micro", seed=0).half()
    assert weights_hash(model.half().float(), None, ENCODER) == weights_hash(rounded, None, ENCODER)
    assert weights_hash(model, None, ENCODER) != weights_hash(random_model("micro", seed=1), None, ENCODER)


def test_a_value_is_read_as_it_was_written_and_absent_ones_are_none(tmp_path):
    cache = Cache(tmp_path / "x", "abc", (2, 3))
    value = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert cache.read(["a prompt"]) == {}
    cache.write(["a prompt"], value[None])
    found = Cache(tmp_path / "x", "abc", (2, 3)).read(["another", "a prompt"])
    assert list(found) == [1]
    assert torch.equal(found[1], value)


def test_the_values_that_an_older_version_left_in_files_of_their_own_are_used(tmp_path):
    """One is damaged: it is computed again."""
    value = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    for key, name in {"a": "ca978112ca1bbdcafac231b39a23dc4d", "b": "3e23e8160039594a33894f6564e1b134"}.items():
        save_file({"value": value * (1 + (key == "b"))}, tmp_path / f"{name}.safetensors", {"network": "abc"})
    (tmp_path / "3e23e8160039594a33894f6564e1b134.safetensors").write_bytes(b"torn")
    found = Cache(tmp_path, "abc", (2, 3)).read(["a", "b", "c"])
    assert list(found) == [0]
    assert torch.equal(found[0], value)


def test_a_parent_that_changed_meanwhile_is_not_mixed_into_the_result(run, refused, chain, tmp_path, monkeypatch):
    """The frozen parts of the result are read from it at the end."""
    weights = shutil.copy(chain["vae"].path, tmp_path / "start.safetensors")
    other = changed(chain["vae"].path, tmp_path / "other.safetensors", "vae.")
    loss, path = Stage.loss, Path(weights)

    def swap(self, batch):
        if path.is_file():
            path.unlink()
            shutil.copy(other, path)
        return loss(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "loss", swap)
        assert "has changed since the run started" in refused("unet", tmp_path / "run", weights=path)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    shutil.copy(chain["vae"].path, path)
    assert run("unet", tmp_path / "run", weights=path).weights is not None
