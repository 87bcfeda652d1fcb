"""The examples: short, without options, and each does what it says, here at sizes that take seconds."""

import ast
import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ldm_us
import sample
from ldm_us.config import TextConfig, UNetConfig, VAEConfig

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted(ROOT.glob("examples/*.py"))


@pytest.fixture
def example(tmp_path, monkeypatch):
    """A function: import an example with other constants, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def load(name: str, **constants: object):
        spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for constant, value in constants.items():
            assert hasattr(module, constant), f"{name}.py has no {constant}"
            monkeypatch.setattr(module, constant, value)
        return module

    return load


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_has_no_options(path):
    text = path.read_text()
    assert len(text.splitlines()) < 90
    assert "argparse" not in text
    assert "sys.argv" not in text
    assert f"python examples/{path.name}" in ast.get_docstring(ast.parse(text)), "it says how it is run"


def test_from_scratch_learns_and_draws(example, capsys):
    micro = dict(groups=4, res_blocks=1)
    scratch = example("from_scratch", IMAGES=6, VAE_STEPS=40, UNET_STEPS=40, SAMPLES=2, SAMPLING_STEPS=2)
    config = dataclasses.replace(
        scratch.CONFIG,
        image_size=16,
        vae=VAEConfig(width=8, multipliers=(1, 2), **micro),
        text=TextConfig(width=8, heads=2, layers=1, mlp_width=16),
        unet=UNetConfig(width=8, multipliers=(1, 2), attention=(False, True), heads=2, context_width=8, **micro),
    )
    scratch.CONFIG = config
    scratch.main()
    losses = [line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert [name.split(",")[0] for name, _ in losses] == ["autoencoder"] * 2 + ["denoiser"] * 2
    assert float(losses[1][1]) < float(losses[0][1])
    assert float(losses[3][1]) < float(losses[2][1])
    assert pixels(Path("from_scratch.png")).shape == (3 * 16, 2 * 16, 3)


def test_sd15_imports_original_weights_and_draws_with_them(example, inputs):
    """Tiny weights in the names of the original file."""
    sd15 = example("sd15", ORIGINAL=inputs / "model.safetensors", PRESET="tiny", STEPS=2)
    sd15.main()
    first = pixels(Path("sd15.png"))
    assert first.shape == (64, 64, 3)
    assert ldm_us.load_model("sd15.safetensors").config == ldm_us.PRESETS["tiny"]
    sd15.ORIGINAL = Path("gone")
    sd15.main()  # from the file that the first call wrote
    assert np.array_equal(pixels(Path("sd15.png")), first)


def test_own_condition_trains_a_controlnet_and_no_other_part(example, capsys):
    own = example("own_condition", IMAGES=3, STEPS=20, BATCH=2, SHOWN=2, SAMPLING_STEPS=2)
    own.main()
    assert "step 20: loss" in capsys.readouterr().out
    assert pixels(Path("own_condition.png")).shape == (3 * 128, 2 * 128, 3)
    before = ldm_us.load_model(ldm_us.BUNDLED).state_dict()
    after = ldm_us.load_model("own_condition.safetensors").state_dict()
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"controlnet"}


def test_the_sample_by_hand_is_that_of_sample_py_bit_for_bit(example, tmp_path):
    """DDIM Eq. 12, Guidance Eq. 6, ControlNet Eq. 2: written out, against what the commands use."""
    by_hand = example("by_hand", STEPS=3)
    by_hand.main()
    options = ["--class", "benign", "--mask", str(by_hand.MASK), "--seed", str(by_hand.SEED), "--n", "1"]
    options += [
        "--guidance",
        str(by_hand.GUIDANCE),
        "--sampler",
        "ddim",
        "--steps",
        "3",
        "--out",
        str(tmp_path / "samples"),
    ]
    sample.main(options)
    (drawn,) = (tmp_path / "samples").glob("0000_*_seed3.png")
    assert np.array_equal(pixels(Path("by_hand.png")), pixels(drawn))


def test_the_command_in_by_hand_is_the_one_that_it_computes(example):
    by_hand = example("by_hand")
    (command,) = (line.strip() for line in by_hand.__doc__.splitlines() if line.strip().startswith("python sample.py"))
    for option in (f"--seed {by_hand.SEED}", f"--guidance {by_hand.GUIDANCE:g}", f"--steps {by_hand.STEPS}"):
        assert f"{option} " in f"{command} "
    assert str(by_hand.MASK.relative_to(ROOT)) in command


def test_the_training_step_by_hand_lowers_its_loss(example):
    by_hand = example("by_hand")
    model = ldm_us.load_model(ldm_us.BUNDLED)
    losses = [by_hand.training_step(model) for _ in range(3)]  # the same t and eps, from a seed
    assert losses[2] < losses[1] < losses[0]
