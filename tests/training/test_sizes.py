"""Training on images of several sizes: batches of one size each, every image as often as any other, exact resumes."""

import copy
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ldm_us.data.framing import Frame, Framing
from ldm_us.data.readers.datasets import read_datasets
from ldm_us.data.records import Record, load_framed
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import load_model, read_metadata
from ldm_us.files.lineage import read_lineage
from ldm_us.networks.vae import posterior_from_moments
from ldm_us.runtime.processes import World
from ldm_us.training.__main__ import main
from ldm_us.training.batches import LatentBatch, step_indices, turn_of
from ldm_us.training.command_line import parse_options
from ldm_us.training.dataset import TrainingSet, image_moments, load_training_set
from ldm_us.training.measured import grain_of, latents_of, shown_to_prior
from ldm_us.training.progress import held_out_stage, validate
from ldm_us.training.result import measure_latents, set_latents
from ldm_us.training.stages import Stage
from ldm_us.training.start import random_model

SIDE = 32  # of a square: 24x40, 24x32, 32x32, 32x24 and 40x24 are the sizes of micro
SHAPES = [(32, 32)] * 4 + [(40, 54)] * 5 + [(54, 40)] * 2 + [(48, 80)]
FRAMING = Framing(SIDE, "bucket", 8)


def write_images(root, shapes, label="benign"):
    generator = np.random.default_rng(0)
    (root / label).mkdir(parents=True)
    for i, (h, w) in enumerate(shapes):
        name = root / label / f"{label} ({9001 + i})"
        Image.fromarray(generator.integers(0, 256, (h, w), dtype=np.uint8)).save(f"{name}.png")
        mask = np.zeros((h, w), np.uint8)
        mask[h // 4 : h // 2, i : w // 2] = 255
        Image.fromarray(mask).save(f"{name}_mask.png")
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """12 images of two classes and of four sizes."""
    root = write_images(tmp_path_factory.mktemp("images"), SHAPES[:7])
    return write_images(root, SHAPES[7:], "malignant")


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("squares"), [(32, 32), (40, 40)] * 4)


@pytest.fixture(scope="module")
def data(images):
    return load_training_set(read_datasets([images]), FRAMING)


def some_set(images, weights=None, folders=None):
    """Images of so many of each size, without pixels."""
    frames = [Frame(8, 8 * (k + 1)) for k, n in enumerate(images) for _ in range(n)]
    records = [Record(Path(f"{i}.png"), (), "benign", "", str(i)) for i in range(len(frames))]
    index = None if folders is None else torch.tensor(folders)
    return TrainingSet(
        records,
        None,
        torch.zeros(0),
        [""],
        torch.zeros(len(frames)).long(),
        weights=weights,
        folder_index=index,
        frames=frames,
    )


buckets = st.lists(st.integers(1, 30), min_size=2, max_size=6)


@given(buckets, st.integers(1, 9), st.integers(0, 3))
@settings(deadline=None, max_examples=50)
def test_every_step_is_of_one_size_and_every_image_comes_as_often_as_any_other(images, size, seed):
    data, seen = some_set(images), Counter()
    steps = 6 * sum(images) // size + 6
    for step in range(steps):
        index = step_indices(data, seed, step, size).tolist()
        assert len(index) == size
        assert len({data.frames[i] for i in index}) == 1
        seen.update(index)
    expected = steps * size / sum(images)
    spread = 2 * size + 2  # a bucket may be a turn or two ahead or behind
    for members in data.members.values():
        times = [seen[i] for i in members.tolist()]
        assert max(times) - min(times) <= 1, "within a size, epochs are whole"
        assert abs(sum(times) - expected * len(times)) <= spread + len(images) * size


@given(buckets, st.integers(1, 9), st.integers(0, 10**6))
@settings(deadline=None, max_examples=50)
def test_the_turn_of_a_step_is_a_function_of_seed_and_step_alone_and_turns_are_counted(images, size, step):
    images = tuple(images)
    turns = [turn_of(images, 5, s, size) for s in range(step, step + 20)]
    assert turns[7:] == [turn_of(images, 5, s, size) for s in range(step + 7, step + 20)]
    for k in range(len(images)):
        numbers = [turn.number for turn in turns if turn.bucket == k]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True


def test_with_weights_of_folders_steps_are_of_one_size_and_shares_are_kept():
    images, folders = [40, 20], [0] * 30 + [1] * 30
    data = some_set(images, (1.0, 3.0), folders)
    drawn = [step_indices(data, 0, step, 8) for step in range(600)]
    assert all(len({data.frames[i] for i in index.tolist()}) == 1 for index in drawn)
    share = (torch.cat(drawn) >= 30).double().mean()
    assert share == pytest.approx(0.75, abs=0.04)


def test_one_size_draws_what_it_always_drew():
    alone, before = some_set([12]), TrainingSet([], None, torch.zeros(12, 1, 8, 8), [""], torch.zeros(12).long())
    before.records = alone.records
    for step in range(9):
        assert torch.equal(step_indices(alone, 3, step, 5), step_indices(before, 3, step, 5))


def test_images_and_masks_of_every_size_are_those_of_load_pair(data):
    for i, record in enumerate(data.records):
        x, mask = load_framed(record, FRAMING)
        assert data.frame(i).size == x.shape[1:]
        torch.testing.assert_close(data.pixels[i].float() / 127.5 - 1, x[:1], atol=1e-6, rtol=0)
        assert torch.equal(data.masks[i], mask > 0.5)
    for part in data.of_each_size():
        assert part.pixels[:].shape[2:] == part.masks[:].shape[2:] == part.frame(0).size
    assert data.sizes() == {"40x24": 1, "32x32": 4, "24x32": 2, "32x24": 5}


@pytest.mark.parametrize("stage", ["vae", "controlnet"])
def test_processes_share_the_batch_that_one_alone_draws(micro, arguments, images, data, tmp_path, stage):
    options = parse_options(arguments(stage, tmp_path / "run", "--batch", 4, "--size", SIDE, data=images))
    model = random_model("micro", 0)
    model.add_controlnet()
    for i in range(len(data)):
        data.moments[i] = image_moments(model, data, i)
    whole = Stage(model, data, options, World())
    for step in range(8):
        shares = []
        for rank in range(2):
            share = copy.copy(whole)
            share.world = replace(World(), rank=rank, size=2)
            shares.append(share.batches(step)[0])
        batch = whole.batches(step)[0]
        for name, value in batch._asdict().items():
            together = torch.cat([getattr(share, name) for share in shares])
            assert torch.equal(together, value), name
        if isinstance(batch, LatentBatch):
            assert tuple(batch.mask.shape[2:]) == tuple(4 * side for side in batch.z_0.shape[2:])


FLAGS = ("--size", SIDE, "--save-every", 2, "--validate-every", 2, "--held-out", 0.3, "--sample-every", 4)


def stages(run, folder, images, *flags):
    """Three stages, each from the one before."""
    weights, results = None, {}
    for stage in ("vae", "unet", "controlnet"):
        results[stage] = run(stage, folder / stage, *FLAGS, *flags, weights=weights, data=images)
        weights = results[stage].path
    return results


@pytest.fixture(scope="module")
def trained(run, images, tmp_path_factory):
    return stages(run, tmp_path_factory.mktemp("trained"), images, "--steps", 4)


def without_speed(lines):
    return [{key: value for key, value in line.items() if key not in ("images_per_s", "data_share")} for line in lines]


def test_a_run_of_several_sizes_resumes_exactly(run, trained, images, tmp_path):
    weights = None
    for stage, straight in trained.items():
        out = tmp_path / stage
        run(stage, out, *FLAGS, "--steps", 2, weights=weights, data=images)
        again = run(stage, out, *FLAGS, "--steps", 4, weights=weights, data=images)
        assert all(torch.equal(value, again.weights[name]) for name, value in straight.weights.items())
        assert without_speed(again.log) == without_speed(straight.log)
        weights = straight.path


def test_the_model_file_says_how_it_was_trained_and_which_sizes_it_saw(trained):
    for entry in read_lineage(read_metadata(trained["controlnet"].path)).entries:
        assert entry["aspect"] == "bucket"
        assert sum(entry["sizes"].values()) == entry["images"]
        assert len(entry["sizes"]) > 1
    assert read_lineage(read_metadata(trained["unet"].path)).aspect == "bucket"
    assert read_lineage({}).aspect == "squash"


def test_square_images_give_the_same_bits_by_every_rule(run, squares, tmp_path):
    of_rule = {rule: stages(run, tmp_path / rule, squares, "--aspect", rule) for rule in ("bucket", "squash", "crop")}
    for stage, squashed in of_rule["squash"].items():
        for rule in ("bucket", "crop"):
            other = of_rule[rule][stage]
            assert all(torch.equal(value, other.weights[name]) for name, value in squashed.weights.items())
            assert without_speed(other.log) == without_speed(squashed.log)


def test_an_older_run_goes_on_squashed_with_a_note_and_another_rule_is_another_run(
    run, refused, images, tmp_path, capsys
):
    out = tmp_path / "run"
    run("vae", out, "--aspect", "squash", "--size", SIDE, "--steps", 2, data=images)
    config = json.loads((out / "config.json").read_text())
    assert "aspect was squash, is bucket" in refused("vae", out, "--size", SIDE, "--aspect", "bucket", data=images)
    assert config.pop("aspect") == "squash"
    (out / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    again = run("vae", out, "--size", SIDE, "--steps", 3, data=images)
    assert "goes on so: --aspect squash." in capsys.readouterr().err
    assert read_lineage(read_metadata(again.path)).aspect == "squash"


def test_validation_is_the_mean_over_all_images_whatever_their_sizes(micro, arguments, images, tmp_path):
    """Images of two sizes: the loss of both together is the mean of each alone, weighed by their numbers."""
    options = parse_options(arguments("unet", tmp_path / "run", "--size", SIDE, data=images))
    data, model = load_training_set(read_datasets([images]), FRAMING), random_model("micro", 0)
    together = validate(held_out_stage(Stage(model, data, options), data))["val_loss"]
    parts = data.of_each_size()
    assert len(parts) == 4
    alone = [validate(held_out_stage(Stage(model, part, options), part))["val_loss"] for part in parts]
    sums = sum(loss * len(part) for loss, part in zip(alone, parts, strict=True))
    assert together == pytest.approx(sums / len(data), rel=1e-5)


def test_latents_of_several_sizes_have_unit_deviation_and_a_prior(micro, data):
    model = random_model("micro", 0).requires_grad_(False)
    means, stds = measure_latents(model, data)
    assert means.shape == stds.shape
    assert means[0, 0].numel() == sum(data.frame(i).height * data.frame(i).width // 16 for i in range(len(data)))
    set_latents(model, data)
    data.moments.clear()
    for i in range(len(data)):
        data.moments[i] = image_moments(model, data, i)
    generator = torch.Generator().manual_seed(0)
    drawn = [
        posterior_from_moments(data.moments[i][:1], model.vae.scale).sample(generator).flatten()
        for _ in range(20)
        for i in range(len(data))
    ]
    assert float(torch.cat(drawn).std()) == pytest.approx(1, abs=0.02)
    assert shown_to_prior(21) == list(range(21))
    many = data.chosen(torch.arange(24) % len(data))
    assert latents_of(many, 1.0, flip=True).shape == (48, 4, 8, 8)
    assert "of one size, not" in grain_of(model, data.chosen(torch.tensor([0, 4, 9])))[1][0]


def test_the_prior_command_takes_the_sizes_of_the_model(micro, trained, images, tmp_path):
    out = tmp_path / "prior.safetensors"
    assert load_model(trained["unet"].path).prior is None
    call = ["prior", "--weights", trained["unet"].path, "--data", images, "--rank", 3, "--out", out]
    assert main([str(word) for word in call]) == 0
    assert load_model(out).prior.rank == 3
    assert isinstance(load_model(out), LatentDiffusion)
