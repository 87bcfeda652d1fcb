"""The autoencoder by slices and tiles: one call is the plain form, and what tiles give is near it within a bound."""

import itertools

import pytest
import torch

import sample
from ldm_us.config import BUNDLED
from ldm_us.diffusion.editing import encode_images
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.noise import decoder_noise, generators_of
from ldm_us.diffusion.sampling import Sampling, computing, decode
from ldm_us.diffusion.tiles import blended, noise_of_tile, rising, starts
from ldm_us.files.checkpoint import load_model
from ldm_us.runtime.entry import run_command


@pytest.mark.parametrize("length", [8, 9, 15, 16, 17, 40, 63])
@pytest.mark.parametrize("side", [8, 12, 16])
def test_tiles_cover_every_place_overlap_and_end_with_the_picture_whether_they_divide_it_or_not(length, side):
    overlap, side = side // 4, min(side, length)
    begun = starts(length, side, overlap)
    assert begun[0] == 0
    assert begun[-1] + side == length
    assert sorted(set(begun)) == begun
    assert all(later - before <= side - overlap for before, later in itertools.pairwise(begun))
    assert bool((rising(side, overlap) > 0).all())


@pytest.mark.parametrize(("h", "w", "side"), [(17, 29, 8), (8, 40, 12), (5, 6, 8)])
def test_tiles_of_what_no_call_changes_are_the_picture_itself(h, w, side):
    z = torch.randn(2, 4, h, w, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(blended(lambda cut, *_: cut, z, side, 1, 1), z)
    large = z.repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(blended(lambda cut, *_: cut[:, :, ::4, ::4], large, side, 4, 1), z)

    def enlarge(cut, top, left):
        assert torch.equal(cut, z[:, :, top : top + side, left : left + side])
        return cut.repeat_interleave(4, 2).repeat_interleave(4, 3)

    torch.testing.assert_close(blended(enlarge, z, side, 1, 4), large)


@pytest.fixture(scope="module")
def model():
    return load_model(BUNDLED)


def grey_levels(model, z, tile):
    with computing(model, Sampling(tile=tile)) as tiled:
        return 255 * (decode(tiled, z) - decode(model, z)).abs()


@pytest.fixture(scope="module")
def z_0(model):
    """Latents of a picture twice as large as those that the model was trained on, smooth as of an image."""
    coarse = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic")


def test_a_picture_of_tiles_of_the_models_size_is_within_five_grey_levels_of_the_whole_on_average(model, z_0):
    """Group norms see a tile alone: smaller tiles are further away. Measured: docs/LOG.md."""
    assert 0 < float(grey_levels(model, z_0, 128).mean()) < 5
    assert float(grey_levels(model, z_0, 256).max()) == 0, "one tile is the picture itself"


def test_latents_of_tiles_are_near_those_of_the_whole(model, z_0):
    x = decode(model, z_0) * 2 - 1
    whole = encode_images(model, x)
    with computing(model, Sampling(tile=128)) as tiled:
        apart = encode_images(tiled, x) - whole
    assert 0 < float(apart.square().mean().sqrt()) < 0.2 * float(whole.std())
    assert model.tile is None


def test_images_are_encoded_by_slices_with_the_bits_of_one_after_the_other(model, monkeypatch):
    monkeypatch.setattr("ldm_us.diffusion.tiles.PLACES", 32 * 32)
    x = torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(encode_images(model, x), torch.cat([encode_images(model, each[None]) for each in x]))


def test_a_tile_of_a_noisy_decoder_is_given_its_part_of_the_pictures_noise(micro):
    model = LatentDiffusion(micro)
    model.add_decoder_noise(2)
    z = torch.zeros(2, 4, 12, 10)
    noise = decoder_noise(model, z, generators_of([1, 2]))
    assert torch.equal(noise_of_tile(model, noise, z.shape[2:], 0, 0, z), noise)
    part = noise_of_tile(model, noise, z.shape[2:], 3, 2, z[:, :, 3:11, 2:10])
    assert part.shape == (2, model.vae.noise_size(8, 8))
    last = noise[:, -12 * 4 * 10 * 4 :].view(2, 48, 40)
    assert torch.equal(part[:, -32 * 32 :].view(2, 32, 32), last[:, 12:44, 8:40])
    with torch.no_grad(), computing(model, Sampling(tile=32)) as tiled:
        assert decode(tiled, z, noise).shape == (2, 3, 48, 40)


@pytest.mark.parametrize("tile", [-8, 0, 24, 66])
def test_tiles_that_are_no_whole_number_of_latents_or_too_small_are_one_sentence(tmp_path, capsys, tile):
    argv = ["--n", "1", "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "out"), "--tile", str(tile)]
    assert run_command(lambda: sample.main(argv)) == 2
    assert f"error: --tile {tile}: us128 needs a multiple of 4 pixels, 32 or more." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_picture_of_tiles_says_so_and_verifies(tmp_path, capsys):
    argv = ["--class", "benign", "--n", "1", "--steps", "1", "--device", "cpu", "--tile", "96"]
    assert run_command(lambda: sample.main([*argv, "--out", str(tmp_path / "out")])) == 0
    (path,) = (tmp_path / "out").glob("0000_*.png")
    assert run_command(lambda: sample.main(["--verify", str(path), "--device", "cpu"])) == 0
    assert "tile" in path.read_bytes().decode("latin1")
