"""Validation: held-out figures that depend on the averaged weights alone, and never on the training around them."""

import json
import shutil

import pytest
import torch
from PIL import Image, ImageOps

import train
from ldm_us.data.records import trained_framing
from ldm_us.diffusion.ddpm import q_sample
from ldm_us.files.checkpoint import load_model, read_metadata
from ldm_us.training.command_line import parse_options
from ldm_us.training.dataset import load_training_set, split_data
from ldm_us.training.progress import BANDS, band_batch, held_out_stage, others_of_their_class, spread_out, validate
from ldm_us.training.reconstruction import reconstruction_psnr
from ldm_us.training.stages import Stage
from ldm_us.training.start import framing_of

SPEED = {"images_per_s", "data_share"}
STAGES = ("vae", "unet", "controlnet")
START = {"vae": None, "unet": "vae", "controlnet": "unet"}
BAND_NAMES = {f"val_loss_{first}_{first + 249}" for first in (0, 250, 500, 750)}
MASK_NAMES = {"val_loss_true_mask", "val_loss_shuffled_mask", "val_loss_empty_mask", "control_gap"}
BUSI_SHARE = 0.5  # held out: 6 of the 11 images, 4 of them with a lesion


@pytest.fixture(scope="module")
def data(busi, tmp_path_factory):
    """The small BUSI folder, with malignant masks that no benign image has."""
    folder = shutil.copytree(busi, tmp_path_factory.mktemp("data") / "busi")
    for path in folder.glob("malignant/*_mask.png"):
        ImageOps.flip(Image.open(path)).save(path)
    return folder


@pytest.fixture
def train_stage(run, chain, data):
    """A function of stage, folder and flags: train from the stage before, half of the images held out."""

    def call(stage, out, *flags):
        weights = None if START[stage] is None else chain[START[stage]].path
        return run(stage, out, "--held-out", BUSI_SHARE, "--ema", 0.5, *flags, weights=weights, data=data)

    return call


@pytest.fixture
def held_out(arguments, data, tmp_path):
    """A function of a stage, its weights and flags: the stage on held-out images."""

    def build(stage, path, *flags):
        options = parse_options(arguments(stage, tmp_path / "unused", "--validate-every", 1, *flags, weights=path))
        training, evaluation = split_data([data], BUSI_SHARE)
        model = load_model(path)
        framing = framing_of(options, model.config)
        stage = Stage(model, load_training_set(training, framing), options)
        return held_out_stage(stage, load_training_set(spread_out(evaluation), framing))

    return build


def validations(result):
    return [line for line in result.log if "loss" not in line]


def without_speed(result):
    return [{name: value for name, value in line.items() if name not in SPEED} for line in result.log]


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_is_validated_before_it_starts_every_n_steps_and_at_its_end(train_stage, tmp_path, stage):
    result = train_stage(stage, tmp_path / "run", "--steps", 5, "--validate-every", 2)
    lines = validations(result)
    assert [line["step"] for line in lines] == [0, 2, 4, 5]
    assert [line["step"] for line in result.log] == [0, 1, 2, 2, 3, 4, 4, 5, 5]
    names = {"vae": {"val_psnr_db", "val_l1"}, "unet": {"val_loss"} | BAND_NAMES}
    names["controlnet"] = names["unet"] | MASK_NAMES | {name for name in lines[0] if name.startswith("zero_conv_norm")}
    assert all(line.keys() - {"step"} == names[stage] for line in lines)
    assert lines[0] != lines[1] | {"step": 0}, "the weights have moved"


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_weights_give_the_same_figures_whatever_the_step_or_the_seed(train_stage, tmp_path, stage):
    seeds = (3,) if stage == "vae" else (3, 4)  # the weights of a first stage are the seed's
    flags = ("--lr", 1e-30, "--validate-every", 1, "--seed")
    still = [validations(train_stage(stage, tmp_path / str(seed), *flags, seed)) for seed in seeds]
    figures = [{name: v for name, v in line.items() if name != "step"} for lines in still for line in lines]
    assert len(figures) == 3 * len(seeds)
    assert all(figure == figures[0] for figure in figures)


@pytest.mark.parametrize("stage", STAGES)
def test_the_last_line_is_of_the_result_and_the_batch_changes_nothing(train_stage, held_out, tmp_path, stage):
    """The averaged weights: with a decay of 0.5 they are others than the trained ones."""
    result = train_stage(stage, tmp_path / "run", "--validate-every", 1, "--lr", 1e-2)
    expected = validations(result)[-1]
    for batch in (1, 4, 100):
        figures = validate(held_out(stage, result.path, "--batch", batch))
        assert figures == pytest.approx({n: v for n, v in expected.items() if n != "step"}, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_validating_changes_no_weight_no_loss_and_no_random_number(train_stage, tmp_path, stage):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    seen = train_stage(stage, tmp_path / "seen", "--validate-every", 1)
    unseen = train_stage(stage, tmp_path / "unseen", "--validate-every", 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, unseen.weights[name]) for name, value in seen.weights.items())
    training = [{n: v for n, v in line.items() if n not in SPEED} for line in seen.log if "loss" in line]
    assert training == without_speed(unseen)
    assert not validations(unseen)


def test_each_band_sees_every_image_once_at_timesteps_spread_over_all_of_it(chain, held_out):
    stage = held_out("unet", chain["unet"].path)
    n = len(stage.data)
    stage.encode(range(n))
    batches = [band_batch(stage, band, 250 * band, 250 * band + 249) for band in range(BANDS)]
    for band, batch in enumerate(batches):
        places = ((batch.t - 250 * band).double() / 250 * n).floor().sort().values
        assert places.tolist() == pytest.approx(list(range(n)), abs=1), "one timestep in each n-th of the band"
        assert batch.t.min() >= 250 * band
        assert batch.t.max() <= 250 * band + 249
    assert not torch.equal(batches[0].eps, batches[1].eps)
    assert not torch.equal(batches[0].t.argsort(), batches[1].t.argsort()), "which image gets which t is drawn"


def test_the_loss_is_the_mean_squared_error_of_the_noise_over_bands_and_images(train_stage, held_out, tmp_path):
    """Image by image, with the networks called by hand."""
    path = train_stage("controlnet", tmp_path / "run", "--lr", 1e-2).path
    stage = held_out("controlnet", path)
    figures, model = validate(stage), stage.model
    losses = torch.zeros(BANDS, len(stage.data))
    for band in range(BANDS):
        batch = band_batch(stage, band, 250 * band, 250 * band + 249)
        for i in range(len(stage.data)):
            z_0, index, mask, t, eps = (value[i : i + 1] for value in batch)
            z_t = q_sample(model.schedule, z_0, t, eps)
            context = model.encode_prompts(stage.data.records[i].prompt)
            assert stage.data.prompts[index] == stage.data.records[i].prompt
            assert torch.equal(mask[0], stage.data.masks[i])
            hint = model.controlnet.hint_of(mask.float())
            eps_hat = model.unet(z_t, t, context, model.controlnet(z_t, t, context, hint))
            losses[band, i] = float(((eps_hat - eps) ** 2).mean())
    assert figures["val_loss"] == pytest.approx(float(losses.mean()), rel=1e-4)
    assert figures["val_loss_250_499"] == pytest.approx(float(losses[1].mean()), rel=1e-4)
    lesion = stage.data.masks[:].flatten(1).any(dim=1)
    assert figures["val_loss_true_mask"] == pytest.approx(float(losses[:, lesion].mean()), rel=1e-4)


def test_the_autoencoder_is_judged_as_by_the_evaluation(train_stage, held_out, data, tmp_path):
    path = train_stage("vae", tmp_path / "run").path
    model = load_model(path)
    framing = trained_framing(read_metadata(path), model.config)
    assert framing.rule == "bucket"
    expected = reconstruction_psnr(model, split_data([data], BUSI_SHARE)[1], framing)
    assert validate(held_out("vae", path))["val_psnr_db"] == pytest.approx(sum(expected) / len(expected), abs=1e-3)


def test_a_fresh_controlnet_has_no_gap_and_zero_norms_and_training_moves_both(train_stage, tmp_path):
    first, *_, last = validations(
        train_stage("controlnet", tmp_path / "run", "--validate-every", 9, "--lr", 1e-2, "--steps", 6)
    )
    norms = [name for name in first if name.startswith("zero_conv_norm")]
    assert norms == [f"zero_conv_norm_{i:02d}" for i in range(5)], "four skips and the middle"
    assert [first[name] for name in norms] == [0.0] * len(norms)
    assert first["control_gap"] == 0.0
    assert first["val_loss_true_mask"] == first["val_loss_empty_mask"]
    assert all(last[name] > 0 for name in norms)
    assert last["control_gap"] != 0.0
    assert last["control_gap"] == last["val_loss_shuffled_mask"] - last["val_loss_true_mask"]


def test_shuffled_masks_are_those_of_other_lesions_and_empty_ones_are_empty(chain, held_out):
    stage = held_out("controlnet", chain["controlnet"].path, "--batch", 100)
    masks = []
    loss = stage.loss
    stage.loss = lambda batch: (masks.append(batch.mask), loss(batch))[1]
    validate(stage)
    true, shuffled, empty, without = masks[:4]
    assert len(masks) == 4 * BANDS
    assert (len(true), len(without)) == (4, 2)
    assert true.flatten(1).any(dim=1).all()
    assert not without.any()
    assert not empty.any()
    assert not (true == shuffled).flatten(1).all(dim=1).any()
    assert sorted(true.sum(dim=(1, 2, 3)).tolist()) == sorted(shuffled.sum(dim=(1, 2, 3)).tolist())


def test_with_a_single_held_out_lesion_there_is_a_loss_and_no_gap(run, chain, own_busi, tmp_path):
    lesions = [record for record in split_data([own_busi], 0.1)[1] if record.label != "normal"]
    for record in lesions[1:]:
        record.masks[0].unlink()
    flags = ("--validate-every", 1, "--held-out", 0.1)
    result = run("controlnet", tmp_path / "run", *flags, weights=chain["unet"].path, data=own_busi)
    assert all("val_loss" in line and not MASK_NAMES & line.keys() for line in validations(result))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("flags", [("--held-out", 0, "--validate-every", 1), ("--validate-every", 0)])
def test_without_held_out_images_or_when_not_wanted_nothing_is_validated(train_stage, tmp_path, stage, flags):
    assert not validations(train_stage(stage, tmp_path / "run", *flags))


def test_a_negative_rhythm_is_refused(refused, tmp_path):
    assert "--validate-every -1" in refused("vae", tmp_path / "run", "--validate-every", -1)


class PowerCutError(Exception):
    """What no code of ours catches."""


def test_a_killed_and_resumed_run_has_every_line_once_and_the_first_one_too(train_stage, tmp_path, monkeypatch):
    flags = ("--steps", 4, "--save-every", 2, "--validate-every", 1)
    straight = train_stage("unet", tmp_path / "straight", *flags)

    def die(run, where, values):
        if where == "step 4":
            raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(train, "check_finite", die)
        with pytest.raises(PowerCutError):
            train_stage("unet", tmp_path / "killed", *flags)
    killed = [json.loads(line)["step"] for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert killed == [0, 1, 1, 2, 2, 3, 3], "step 3 was trained and validated after the newest state"
    assert without_speed(train_stage("unet", tmp_path / "killed", *flags)) == without_speed(straight)
    before = (tmp_path / "killed" / "log.jsonl").read_bytes()
    train_stage("unet", tmp_path / "killed", *flags)
    assert (tmp_path / "killed" / "log.jsonl").read_bytes() == before


def test_a_run_that_starts_again_from_nothing_has_one_first_line(train_stage, tmp_path):
    """As if it had been killed before its first state."""
    train_stage("unet", tmp_path / "run", "--validate-every", 1)
    for path in (*(tmp_path / "run" / "state").iterdir(), tmp_path / "run" / "model.safetensors"):
        path.unlink()
    again = train_stage("unet", tmp_path / "run", "--validate-every", 1)
    assert [line["step"] for line in again.log] == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("stage", STAGES)
def test_every_run_with_pictures_has_one_of_before(train_stage, tmp_path, stage):
    pictures = tmp_path / "run" / "samples"
    train_stage(stage, tmp_path / "run", "--sample-every", 2)
    assert sorted(path.name for path in pictures.iterdir()) == ["step_00000000.png", "step_00000002.png"]
    before, after = (path.read_bytes() for path in sorted(pictures.iterdir()))
    assert before != after
    (pictures / "step_00000000.png").write_bytes(b"of the first start")
    train_stage(stage, tmp_path / "run", "--sample-every", 2, "--steps", 3)
    assert (pictures / "step_00000000.png").read_bytes() == b"of the first start"


def test_without_pictures_there_is_none_of_before(train_stage, tmp_path):
    train_stage("vae", tmp_path / "run", "--sample-every", 0)
    assert not list((tmp_path / "run" / "samples").iterdir())


def test_masks_are_shuffled_within_a_class_and_none_stays_in_place():
    labels = ["benign", "malignant", "benign", "benign", "malignant", "benign"]
    others = others_of_their_class(labels).tolist()
    assert [labels[i] for i in others] == labels
    assert sorted(others) == list(range(6))
    assert all(i != other for i, other in enumerate(others))


@pytest.mark.parametrize("labels", [["a", "b"], ["a", "b", "b"], ["a", "a", "b"], ["a", "b", "c", "c", "c"]])
def test_a_lesion_that_is_alone_in_its_class_gets_the_mask_of_another_class(labels):
    """Its own would make the control gap 0 by construction."""
    others = others_of_their_class(labels).tolist()
    assert all(i != other for i, other in enumerate(others))
