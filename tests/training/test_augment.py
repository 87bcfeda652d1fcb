"""train.py --augment: a function of seed, step and place, the same numbers otherwise, and runs that resume exactly."""

import pytest
import torch

from ldm_us.config import AUGMENTATIONS, PRESETS
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import read_metadata
from ldm_us.files.lineage import read_lineage
from ldm_us.training.batches import LatentBatch, PixelBatch, image_batch, latent_batch
from ldm_us.training.dataset import image_moments, load_training_set, split_data
from ldm_us.training.stages import Stage

SHAPE = (4, 4, 4)


@pytest.fixture
def data(busi, micro):
    records, _ = split_data([busi], 0.0)
    data = load_training_set(records, 16)
    torch.manual_seed(0)
    model = LatentDiffusion(micro)
    data.moments = {i: image_moments(model, data, i) for i in range(len(records))}
    return data


def varied(data, own=slice(None), step=3, seed=0, variations=AUGMENTATIONS):
    return latent_batch(data, 1.0, 1000, seed, step, 6, True, 0.3, 0.1, True, own, variations, SHAPE)


def test_all_other_numbers_of_a_batch_are_those_without_variations(data):
    plain, found = varied(data, variations=()), varied(data)
    assert isinstance(plain, LatentBatch)
    assert isinstance(found, PixelBatch)
    for name in ("prompt_index", "t", "eps"):
        assert torch.equal(getattr(plain, name), getattr(found, name))
    assert not torch.equal(plain.mask, found.mask)
    assert torch.equal(varied(data, variations=("gain",)).mask, plain.mask)


def test_the_share_of_a_process_is_its_places_of_the_whole_batch(data):
    whole, own = varied(data), torch.tensor([1, 4, 5])
    for value, share in zip(whole, varied(data, own), strict=True):
        assert torch.equal(value[own], share)
    pixels = [image_batch(data, SHAPE, 0, 3, 6, True, 0, places, ("gain", "turn")).x for places in (slice(None), own)]
    assert torch.equal(pixels[0][own], pixels[1])


def test_variations_depend_on_seed_and_step_alone(data):
    first = varied(data)
    torch.manual_seed(5)
    assert all(torch.equal(a, b) for a, b in zip(first, varied(data), strict=True))
    assert not torch.equal(first.x, varied(data, step=4).x)
    assert not torch.equal(first.x, varied(data, seed=1).x)


@pytest.mark.parametrize("stage", ["vae", "unet", "controlnet"])
def test_a_varied_run_resumes_bit_for_bit_and_says_what_was_varied(run, chain, tmp_path, stage):
    weights = {"vae": None, "unet": chain["vae"].path, "controlnet": chain["unet"].path}[stage]
    flags = ("--augment", "gain", "shift", "turn", "--save-every", 2, "--validate-every", 2)
    straight = run(stage, tmp_path / "straight", *flags, "--steps", 4, weights=weights)
    run(stage, tmp_path / "parts", *flags, "--steps", 2, weights=weights)
    resumed = run(stage, tmp_path / "parts", *flags, "--steps", 4, weights=weights)
    assert all(torch.equal(value, resumed.weights[name]) for name, value in straight.weights.items())
    plain = run(stage, tmp_path / "plain", *flags[4:], "--steps", 4, weights=weights)
    assert any(not torch.equal(value, straight.weights[name]) for name, value in plain.weights.items())
    assert plain.log[0] == straight.log[0]  # the validation of what a run starts from: nothing is varied there
    (*_, entry) = read_lineage(read_metadata(straight.path)).entries
    assert entry["augment"] == ["gain", "shift", "turn"]


def test_latents_of_varied_images_are_those_that_the_autoencoder_gives(run, chain, tmp_path, monkeypatch):
    seen, encoded = [], Stage.encoded

    def look(self, batch):
        latents = encoded(self, batch)
        posterior = self.model.vae.encode(batch.x)
        assert torch.allclose(latents.z_0, posterior.mean + posterior.std * batch.noise, atol=1e-4)
        seen.append(batch)
        return latents

    monkeypatch.setattr(Stage, "encoded", look)
    run("unet", tmp_path / "run", "--augment", "all", weights=chain["vae"].path)
    assert len(seen) >= 2


def test_another_name_is_refused(arguments, tmp_path, capsys):
    from train import main

    with pytest.raises(SystemExit):
        main(arguments("unet", tmp_path / "run", "--augment", "elastic"))
    assert "elastic" in capsys.readouterr().err
    assert "micro" in PRESETS
