"""train.py vae with LDM's whole loss and a decoder that adds noise: what changes, what resumes, what is refused."""

import json
import math

import pytest
import torch

import train
from ldm_us.files.checkpoint import load_model, read_metadata
from ldm_us.networks.vae import DECODER_PARTS
from ldm_us.runtime.processes import ALONE
from ldm_us.training.adversary import Adversary
from tests.conftest import read_run
from tests.training.test_train_resume import PowerCutError, assert_same, die_at_step_4

WHOLE = ("--size", 24, "--adversarial", 0.5, "--perceptual", 0.1, "--noise-levels", 2)
TERMS = {"perceptual", "adversarial", "lambda", "discriminator"}


@pytest.fixture(scope="module")
def tuned(run, chain, tmp_path_factory):
    """A decoder trained alone, the adversary from the third step on."""
    flags = ("--decoder-only", "--steps", 4, "--adversarial-start", 2, "--sample-every", 4, *WHOLE)
    return run("vae", tmp_path_factory.mktemp("tuned") / "run", *flags, weights=chain["controlnet"].path)


def test_decoder_only_leaves_every_bit_but_those_of_the_decoder_which_has_gains(tuned, chain):
    before, after = chain["controlnet"].weights, tuned.weights
    gains = {name for name in after if "noise_gains" in name}
    assert gains == after.keys() - before.keys() == {f"vae.decoder.noise_gains.{i}" for i in range(4)}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    decoder = tuple(f"vae.{part}." for part in DECODER_PARTS)
    assert changed == {name for name in before if name.startswith(decoder)}
    assert all(float(after[name].abs().max()) > 0 for name in gains)


def test_the_terms_are_logged_and_0_before_the_adversary_starts(tuned):
    assert all(line.keys() > TERMS for line in tuned.log)
    assert [line["discriminator"] > 0 for line in tuned.log] == [False, False, True, True]
    assert [line["lambda"] > 0 for line in tuned.log] == [False, False, True, True]
    assert all(line["perceptual"] > 0 for line in tuned.log)


def test_the_result_says_what_it_was_trained_with_and_adds_noise_instead_of_grain(tuned):
    entry = json.loads(read_metadata(tuned.path)["lineage"])[-1]
    asked = {"adversarial": 0.5, "adversarial_start": 2, "perceptual": 0.1, "perceptual_network": None}
    assert entry | asked | {"noise_levels": 2} == entry
    model = load_model(tuned.path)
    assert model.config.vae.noise_levels == 2
    assert model.grain is None
    assert (tuned.out / "samples" / "step_00000004.png").is_file()


def test_a_later_run_goes_on_with_the_noise_levels_of_its_start(run, tuned, tmp_path):
    after = run("vae", tmp_path / "run", "--decoder-only", "--size", 24, weights=tuned.path).weights
    gains = [name for name in after if "noise_gains" in name]
    assert len(gains) == 4
    assert not any(torch.equal(after[name], tuned.weights[name]) for name in gains)


def test_stopped_and_killed_runs_end_where_an_uninterrupted_run_ends(run, tmp_path, monkeypatch):
    def long_run(out, steps):
        flags = ("--steps", steps, "--save-every", 2, "--warmup", 3, "--ema", 0.9, "--adversarial-start", 1, *WHOLE)
        return run("vae", out, *flags)

    straight = long_run(tmp_path / "straight", 4)
    long_run(tmp_path / "stopped", 2)
    torch.manual_seed(1)
    assert_same(long_run(tmp_path / "stopped", 4), straight)
    with monkeypatch.context() as patch:
        patch.setattr(train, "check_finite", die_at_step_4)
        with pytest.raises(PowerCutError):
            long_run(tmp_path / "killed", 4)
    torch.manual_seed(2)
    assert_same(long_run(tmp_path / "killed", 4), straight)
    states = [torch.load(tmp_path / name / "state" / "step_00000004.pt") for name in ("straight", "killed")]
    networks = [state["adversary"]["discriminator"] for state in states]
    assert all(torch.equal(value, networks[1][name]) for name, value in networks[0].items())


@pytest.mark.parametrize("kind", ["none", "no table", "another width", "no moments"])
def test_a_state_without_a_discriminator_that_fits_is_one_sentence(run, refused, tmp_path, kind):
    run("vae", tmp_path / "run", *WHOLE)
    path = tmp_path / "run" / "state" / "step_00000002.pt"
    state = torch.load(path)
    adversary = state.pop("adversary")
    other = Adversary(256, 0.5, 0, 0, torch.device("cpu"), ALONE).state_dict()
    damaged = {"no table": [1], "another width": other, "no moments": {**adversary, "optimizer": {}}}
    torch.save(state if kind == "none" else state | {"adversary": damaged[kind]}, path)
    sentence = refused("vae", tmp_path / "run", *WHOLE, "--steps", 4)
    assert "the state of step 2 has no discriminator that fits. Add --restart." in sentence


def test_one_step_in_bf16_is_finite(run, tmp_path):
    result = run("vae", tmp_path / "run", "--steps", 1, "--precision", "bf16", *WHOLE)
    (line,) = result.log
    assert all(math.isfinite(line[name]) for name in {"loss", "grad_norm", *TERMS})
    assert line["lambda"] > 0
    assert all(bool(value.isfinite().all()) for value in result.weights.values())


def test_a_batch_in_parts_gives_the_result_of_the_whole_batch(run, tmp_path):
    flags = ("--steps", 6, "--lr", 1e-4, "--ema", 0, *WHOLE)
    whole = run("vae", tmp_path / "whole", *flags, "--batch", 4)
    parts = run("vae", tmp_path / "parts", *flags, "--batch", 2, "--accumulate", 2)
    for name, value in whole.weights.items():
        torch.testing.assert_close(parts.weights[name], value, rtol=1e-3, atol=1e-5)
    for line, expected in zip(parts.log, whole.log, strict=True):
        assert {name: line[name] for name in TERMS} == pytest.approx({name: expected[name] for name in TERMS}, rel=1e-3)


def test_a_run_of_before_these_options_resumes_and_another_weight_is_another_run(run, refused, tmp_path):
    before = run("vae", tmp_path / "run", "--steps", 2)
    config = json.loads((before.out / "config.json").read_text())
    names = ("adversarial", "adversarial_start", "perceptual", "perceptual_network", "noise_levels")
    assert [config.pop(name) for name in names] == [None] * 5
    (before.out / "config.json").write_text(json.dumps(config))
    run("vae", before.out, "--steps", 3)
    assert [line["step"] for line in read_run(before.out).log] == [1, 2, 3]
    assert "perceptual was None, is 0.1" in refused("vae", before.out, "--steps", 3, "--perceptual", 0.1)


@pytest.mark.parametrize(
    ("stage", "flags", "named"),
    [
        ("unet", ("--adversarial", 0.5), "--adversarial belongs to the vae stage"),
        ("unet", ("--noise-levels", 1), "--noise-levels belongs to the vae stage"),
        ("controlnet", ("--perceptual", 1), "--perceptual belongs to the vae stage"),
        ("vae", ("--adversarial-start", 5), "--adversarial-start belongs to a term of the loss: add --adversarial X"),
        ("vae", ("--perceptual-network", "judge"), "add --perceptual X"),
        ("vae", ("--adversarial", 0), "--adversarial 0.0: use a finite number above 0"),
        ("vae", ("--adversarial", "nan"), "--adversarial nan: use a finite number above 0"),
        ("vae", ("--adversarial-start", -1, "--adversarial", 1), "--adversarial-start -1: use 0 or more"),
        ("vae", ("--perceptual", "inf"), "--perceptual inf"),
        ("vae", ("--perceptual", 0), "--perceptual 0.0: use a finite number above 0"),
        ("vae", ("--perceptual", -1), "--perceptual -1.0: use a finite number above 0"),
        ("vae", ("--noise-levels", 0), "--noise-levels 0: use 1 or more"),
        ("vae", ("--noise-levels", 4), "4 levels with noise: this decoder has 3"),
        ("vae", ("--adversarial", 0.5, "--compile"), "leave --compile away"),
        ("vae", ("--adversarial", 0.5), "the discriminator needs images of 24 pixels or more, not 16"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_written(refused, tmp_path, stage, flags, named):
    assert named in refused(stage, tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()
