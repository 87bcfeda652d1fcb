"""sample.py --drop-memorised: copies are drawn again, and nothing else changes."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.evaluation.memorisation.command import compared_fields
from ldm_us.evaluation.memorisation.dropping import ATTEMPTS, drop_copies, next_seed
from ldm_us.evaluation.memorisation.nearest_training import SCORES, describe, nearest_of_stream
from ldm_us.evaluation.sets.image_sets import read_set, stream
from ldm_us.files.checkpoint import load_model, save_model
from ldm_us.files.lineage import Lineage
from ldm_us.runtime.entry import run_command
from ldm_us.synthesis.drawing import Drawn, Wanted
from ldm_us.synthesis.recipe import Recipe
from ldm_us.training.dataset import data_hash, split_data


def draw(_model, wanted, *_):
    """An image that is its seed."""
    return [Drawn(torch.full((3, 2, 2), one.seed), {}) for one in wanted]


@pytest.fixture
def without_copies(monkeypatch):
    """A function of samples and of the seeds that count as copies."""
    monkeypatch.setattr("ldm_us.evaluation.memorisation.dropping.draw_samples", draw)

    def drop(wanted, is_copy):
        training = SimpleNamespace(hold=lambda x: is_copy(int(x[0, 0, 0])))
        return drop_copies(draw(None, wanted), wanted, training, None, Recipe())

    return drop


def test_copies_alone_are_drawn_again_with_seeds_that_follow_from_their_own(without_copies):
    bad = {5, next_seed(5, 1)}
    wanted = [Wanted("a", seed, None) for seed in (4, 5, 6)]
    drawn, tried = without_copies(wanted, bad.__contains__)
    assert tried == [[4], [5, next_seed(5, 1), next_seed(5, 2)], [6]]
    assert [int(x[0, 0, 0]) for x, _ in drawn] == [seeds[-1] for seeds in tried]
    assert without_copies(wanted[1:2], bad.__contains__)[1] == tried[1:2]


def test_further_seeds_are_valid_and_all_different():
    seeds = [next_seed(seed, attempt) for seed in range(50) for attempt in range(1, ATTEMPTS)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_model_that_makes_nothing_but_copies_is_refused(without_copies):
    with pytest.raises(ValueError, match=f"{ATTEMPTS} seeds in a row for 'a'.*memorised"):
        without_copies([Wanted("a", 0, None)], lambda seed: True)


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """60 images of noise, 16x16."""
    root = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for label in ("benign", "malignant", "normal"):
        (root / label).mkdir()
        for i in range(20):
            image = rng.integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(image).save(root / label / f"{label} ({9000 + i}).png")
            Image.new("L", (16, 16)).save(root / label / f"{label} ({9000 + i})_mask.png")
    return root


@pytest.fixture(scope="module")
def trained_on_noise(micro, noise, tmp_path_factory):
    """An untrained model whose file says that it was trained on the noise."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("trained") / "model.safetensors"
    train, _ = split_data([noise], 0.1)
    entry = {"stage": "unet", "held_out": 0.1, "data": [noise.name], "data_sha256": data_hash(train)}
    save_model(LatentDiffusion(micro), path, Lineage((entry,)).metadata())
    return path


@pytest.fixture
def report(trained_on_noise, noise, tmp_path):
    """A function: a report that flags by detail alone, below a threshold."""
    train, _ = split_data([noise], 0.1)
    compared = compared_fields(trained_on_noise, load_model(trained_on_noise), train, 16)

    def write(threshold):
        thresholds = {"pixels": 0.0, "detail": threshold, "features": 0.0}
        kept = {"thresholds": thresholds, "pairs": 99, "rank": 1, "expected_false_alarms": 0.03}
        path = tmp_path / "memorisation.json"
        path.write_text(json.dumps({"calibration": kept, "compared": compared}))
        return path

    return write


def run(weights, out, *options):
    words = ["--weights", weights, "--out", out, "--steps", "2", "--n", "4", *options]
    return run_command(partial(sample.main, [str(word) for word in words]))


def manifest(out):
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def detail_distances(out, training):
    """Of every sample in a folder, as the audit measures them."""
    known = describe(stream(training, 16), lambda x: x)
    samples = stream(read_set([out]), 16)
    return nearest_of_stream(samples, known, lambda x: x).scores[SCORES.index("detail")]


def test_dropped_samples_are_replaced_whatever_the_batch_and_can_be_verified(trained_on_noise, noise, report, tmp_path):
    """The threshold is one that four of the twelve samples pass."""
    assert run(trained_on_noise, tmp_path / "plain") == 0
    distances = detail_distances(tmp_path / "plain", split_data([noise], 0.1)[0]).sort().values
    given = ["--drop-memorised", report(float(distances[3:5].mean())), "--data", noise]
    out = tmp_path / "out"
    assert run(trained_on_noise, out, *given) == 0
    dropped = sum("dropped_seeds" in line for line in manifest(out))
    assert dropped == 4
    assert run(trained_on_noise, tmp_path / "again", *given, "--batch", "1") == 0
    lines, plain = manifest(out), manifest(tmp_path / "plain")
    assert manifest(tmp_path / "again") == lines
    for line, other in zip(lines, plain, strict=True):
        assert line["file_name"] == other["file_name"]
        assert (line["pixels_sha256"] == other["pixels_sha256"]) == ("dropped_seeds" not in line)
        assert line.get("dropped_seeds", [line["seed"]])[0] == other["seed"]
    redrawn = next(line for line in lines if "dropped_seeds" in line)
    words = ["--weights", str(trained_on_noise), "--verify", str(out / redrawn["file_name"])]
    assert run_command(partial(sample.main, words)) == 0


def test_a_report_of_other_data_or_no_report_at_all_is_refused(trained_on_noise, noise, report, tmp_path, capsys):
    path = report(0.1)
    fields = json.loads(path.read_text())
    fields["compared"]["size"] = 64
    del fields["compared"]["search"]  # of before the audit searched zooms and depths
    path.write_text(json.dumps(fields))
    assert run(trained_on_noise, tmp_path / "out", "--drop-memorised", path, "--data", noise) == 2
    assert "made with another size and search. Run" in capsys.readouterr().err
    path.write_text("{}")
    assert run(trained_on_noise, tmp_path / "out", "--drop-memorised", path, "--data", noise) == 2
    assert "no thresholds in it" in capsys.readouterr().err
    given = ["--drop-memorised", path, "--data", noise]
    assert run(trained_on_noise, tmp_path / "out", *given, "--init", noise / "none.png") == 2
    assert "meant to look like its original" in capsys.readouterr().err
    assert run(trained_on_noise, tmp_path / "out", *given, "--trajectory") == 2
    assert "no thresholds in it" in capsys.readouterr().err
    assert run(trained_on_noise, tmp_path / "out", "--data", noise) == 2
    assert "belong together" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
