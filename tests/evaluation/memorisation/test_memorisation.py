"""Nearest training images, thresholds and the command: copies are found, other images are not."""

import csv
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ldm_us.data.phantom.files import Plan, write_phantoms
from ldm_us.data.records import Record, load_image
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.evaluation.__main__ import main
from ldm_us.evaluation.memorisation import thresholds
from ldm_us.evaluation.memorisation.nearest_training import (
    SCORES,
    SIDE,
    Nearest,
    best_alignment,
    describe,
    detail_correlations,
    details_of,
    l2,
    nearest,
    ratio_to_neighbours,
)
from ldm_us.evaluation.memorisation.planted_copies import KINDS, OUTSIDE, at_depth, blur, crop, plant, rotate
from ldm_us.evaluation.memorisation.thresholds import (
    Thresholds,
    calibrate,
    count_copied,
    difference_of_shares,
    false_alarms_at_most,
    families_needed,
)
from ldm_us.files.checkpoint import save_model
from ldm_us.files.lineage import Lineage
from ldm_us.files.pictures import save_png, to_picture
from ldm_us.runtime.entry import run_command
from ldm_us.training.dataset import data_hash, split_data

PHANTOMS, SHARE = 210, 0.15  # some 160 families to calibrate on: with fewer the false alarms vary too much
SIZE = 64  # pixels of a side
COPIES = 20  # of the samples below; the others are held-out images


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Breasts, every tenth scanned twice."""
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    write_phantoms(Plan(PHANTOMS, SIZE, seed=0), folder)
    return folder


@pytest.fixture(scope="module")
def weights(micro, phantoms, tmp_path_factory):
    """An untrained model, whose file says that it was trained on all phantoms but those held out."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    train, _ = split_data([phantoms], SHARE)
    entry = {"stage": "unet", "held_out": SHARE, "data": [phantoms.name], "data_sha256": data_hash(train)}
    save_model(LatentDiffusion(micro), path, Lineage((entry,)).metadata())
    return path


def write_samples(folder, images):
    """A folder as sample.py makes it."""
    folder.mkdir()
    lines = []
    for number, (name, x) in enumerate(images):
        save_png(to_picture(x), folder / name)
        lines.append(json.dumps({"number": number, "file_name": name, "class": "benign"}) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines))
    return folder


def load(record):
    return load_image(record.image, SIZE)[:1] / 2 + 0.5


@pytest.fixture(scope="module")
def audit(phantoms, weights, tmp_path_factory):
    """The folder of an audit of changed copies of training images and of equally changed held-out images."""
    train, held_out = split_data([phantoms], SHARE)
    generator = torch.Generator().manual_seed(1)
    copies = [(f"copy{i}.png", plant(load(train[3 * i]), "all", generator)) for i in range(COPIES)]
    others = [(f"other{i}.png", plant(load(record), "all", generator)) for i, record in enumerate(held_out)]
    root = tmp_path_factory.mktemp("audit")
    samples = write_samples(root / "samples", [*copies, *others])
    words = ["--weights", weights, "--data", phantoms, "--generated", samples, "--out", root / "out"]
    assert main(["memorisation", *map(str, words), "--size", str(SIZE), "--planted", "8"]) == 0
    return root / "out"


def test_planted_copies_of_every_kind_are_found_and_held_out_images_are_not_flagged(audit, phantoms):
    report = json.loads((audit / "memorisation.json").read_text())
    assert set(report["planted_copies_found"]) == {*KINDS, *OUTSIDE}
    for kind in KINDS:
        found = report["planted_copies_found"][kind]
        assert found["any"]["share"] >= 0.95
        assert found["detail"]["share"] >= 0.95
    assert report["held_out"]["false_alarms"]["any"]["share"] < 0.05
    assert {row["any"]["n"] for row in report["held_out"]["false_alarms_changed"].values()} == {
        report["held_out"]["images"]
    }
    assert report["held_out"]["false_alarms_changed"]["blurred"]["detail"]["share"] < 0.1
    train, _ = split_data([phantoms], SHARE)
    assert report["calibration"]["pairs"] == len({record.group for record in train}) < report["training_images"]


def test_copies_among_samples_are_flagged_with_the_name_of_their_original(audit, phantoms):
    train, _ = split_data([phantoms], SHARE)
    rows = {row["file"]: row for row in csv.DictReader((audit / "samples.csv").read_text().splitlines())}
    for i in range(COPIES):
        assert "detail" in rows[f"copy{i}.png"]["flagged_by"].split()
        assert rows[f"copy{i}.png"]["nearest_by_detail"] == train[3 * i].image.name
    others = [row for name, row in rows.items() if name.startswith("other")]
    assert sum(bool(row["flagged_by"]) for row in others) < 0.05 * len(others)
    report = json.loads((audit / "memorisation.json").read_text())
    assert report["samples"] == report["flagged"]["any"]["n"] == len(rows)
    assert report["flagged"]["any"]["share"] == round(
        sum(bool(row["flagged_by"]) for row in rows.values()) / len(rows), 3
    )
    limits = report["calibration"]["thresholds"]
    originals = set()
    for row in rows.values():
        suspicion = {name: float(row[f"{name}_ratio"]) / limits[name] for name in ("pixels", "features")}
        suspicion["detail"] = (1 - float(row["detail_correlation"])) / limits["detail"]
        if row["flagged_by"]:
            originals.add(row[f"nearest_by_{min(suspicion, key=suspicion.__getitem__)}"])
    assert report["training_images_copied"] == len(originals)
    share = report["flagged"]["any"]["share"] - report["held_out"]["false_alarms"]["any"]["share"]
    beyond = report["flagged_beyond_false_alarms"]
    assert beyond["difference"] == pytest.approx(share, abs=2e-3)
    assert beyond["low"] < beyond["difference"] < beyond["high"]


def test_a_flagged_sample_is_a_copy_of_one_original_though_its_scores_name_three():
    limits = Thresholds(torch.full((len(SCORES),), 0.5), 100, 1, 0.03)
    scores = torch.tensor([[0.4, 0.6, 0.4], [0.1, 0.7, 0.45], [0.3, 0.8, 0.2]])
    index = torch.tensor([[0, 3, 0], [1, 4, 2], [2, 5, 1]])
    found = Nearest(scores, index, scores)
    training = [Record(Path(str(i)), (), "benign", "", str(i)) for i in range(6)]
    assert count_copied(training, found, limits) == 1


def test_the_difference_of_shares_is_newcombes_published_example_and_has_a_width_at_the_edge():
    """Newcombe 1998, Table II, method 10: 56/70 - 48/80 is 0.2000 [0.0524, 0.3339], and 10/10 - 0/10 [0.6075, 1]."""
    hits = [[i < hits for i in range(n)] for hits, n in ((56, 70), (48, 80), (10, 10), (0, 10))]
    assert difference_of_shares(*hits[:2]) == {"difference": 0.2, "low": 0.052, "high": 0.334}
    assert difference_of_shares(*hits[2:]) == {"difference": 1.0, "low": 0.608, "high": 1.0}


def test_all_scores_together_keep_their_bound_in_95_of_100_calibrations():
    """Three independent uniform scores: the rate after a calibration is 1 - product of (1 - k-th smallest)."""
    rng, m, k = np.random.default_rng(0), 199, 2
    smallest = np.sort(rng.random((3000, 3, m)), axis=2)[:, :, k - 1]
    rates = 1 - np.prod(1 - smallest, axis=1)
    bound = false_alarms_at_most(Thresholds(torch.zeros(3), m, k, 0.03))
    assert rates.mean() == pytest.approx(0.03, abs=0.001)
    assert (rates <= bound).mean() > 0.95
    assert bound < 0.12


def test_a_rotation_turns_the_image_and_a_blur_keeps_its_mean():
    x = torch.zeros(1, 64, 64)
    x[:, 20:44, 30:34] = 1
    turned = rotate(x, 90.0)
    assert torch.allclose(turned, x.rot90(1, (1, 2)), atol=1e-4) or torch.allclose(
        turned, x.rot90(-1, (1, 2)), atol=1e-4
    )
    soft = blur(x[None])
    assert float(soft.mean()) == pytest.approx(float(x.mean()), abs=1e-3)
    assert soft.std() < x.std()


def test_correlation_of_detail_is_numpys_over_every_mirror_image_crop_zoom_depth_and_shift():
    """Written out: shrink with the same filter, cut what overlaps, np.corrcoef; the largest of all."""
    generator = torch.Generator().manual_seed(0)
    x, training = torch.rand(1, 1, 64, 64, generator=generator), torch.rand(2, SIDE, SIDE, generator=generator)
    inside = [(h, w) for h in (48, 46, 45, 43) for w in (48, 46, 45, 43)] + [
        (side, side) for side in (41, 39, 37, 35, 33)
    ]
    ways = [(h, w, t, left) for h, w in inside[1:] for t in range(49 - h) for left in range(49 - w)]
    ways += [(48, 48, top, left) for top in range(-2, 3) for left in range(-2, 3)]
    ways += [(h, 48, top, 0) for h in range(33, 70) if h < 47 or h in range(50, 70, 2) for top in (-1, 0, 1)]
    shrunk = {(h, w): details_of(x, h, w)[0].numpy() for h, w, *_ in ways}
    expected = np.full(2, -1.0)
    for h, w, top, left in ways:
        for view in (shrunk[h, w], shrunk[h, w][:, ::-1]):
            low = [max(0, -top), max(0, -left)]
            high = [min(h, 48 - top), min(w, 48 - left)]
            part = view[low[0] : high[0], low[1] : high[1]].ravel()
            for i in range(2):
                there = training[i].numpy()[low[0] + top : high[0] + top, low[1] + left : high[1] + left].ravel()
                expected[i] = max(expected[i], np.corrcoef(part, there)[0, 1])
    found = detail_correlations(x, training)
    assert np.allclose(found[0], expected, atol=1e-5)
    assert best_alignment(x[0], training[1])[0] == pytest.approx(expected[1], abs=1e-5)


@pytest.mark.parametrize("change", ["zoom", "depth"])
def test_what_a_scanners_zoom_and_depth_do_is_laid_back_on_the_original(change):
    """A zoom of .75 keeps rows and columns 8 to 56 of 64; a depth of .75 shows the upper 48 rows, of 1.25 16 more."""
    x = F.interpolate(torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0)), 64, mode="bicubic")
    x = x.clamp(0, 1)
    there = details_of(x, SIDE, SIDE)[0]
    cases = {
        "zoom": [(crop(x[0, :, 8:56, 8:56], 1.0, 1.0, torch.Generator()), 0.75, 0.75, 6)],
        "depth": [(at_depth(x[0], 0.75), 0.75, 1.0, 0), (at_depth(x[0], 1.25), 1.25, 1.0, 0)],
    }
    for copy, down, across, corner in cases[change]:
        copy = F.interpolate(copy[None], (64, 64), mode="bicubic")[0]
        correlation, mirrored, found = best_alignment(copy.flip(-1), there)
        assert correlation > 0.7
        assert mirrored
        assert (found.height, found.width) == pytest.approx((SIDE * down, SIDE * across), abs=1)
        assert (found.top, found.left) == pytest.approx((corner, corner), abs=1)


def test_the_ratio_to_neighbours_is_the_smallest_distance_over_the_mean_of_the_50_nearest():
    """Carlini et al., arXiv 2301.13188, section 5, without their factor."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(3, 8, generator=generator), torch.rand(70, 8, generator=generator)
    distance = np.sqrt(((a[:, None] - b).numpy().astype(float) ** 2).mean(axis=2))
    expected = [min(row) / np.mean(sorted(row)[:50]) for row in distance]
    assert np.allclose(l2(a, b), distance, atol=1e-5)
    assert np.allclose(ratio_to_neighbours(l2(a, b)), expected, atol=1e-5)


def test_gain_mirroring_and_batches_change_no_score_and_excluded_images_are_never_the_nearest():
    generator = torch.Generator().manual_seed(0)
    x = F.interpolate(torch.rand(60, 1, 16, 16, generator=generator), 64, mode="bicubic").clamp(0, 1)

    def encode(images):
        return images.flatten(1)[:, ::7]

    known = describe(x.split(25), encode)
    itself = nearest(0.5 * x[:4].flip(-1) + 0.25, known, encode)
    assert itself.image[:2].tolist() == [[0, 1, 2, 3]] * 2  # by pixels and by detail
    assert itself.scores[:2].max() < 0.02
    excluded = torch.eye(60, dtype=torch.bool)[:4]
    other = nearest(x[:4], known, encode, excluded)
    assert (other.image != torch.arange(4)).all()
    assert other.scores.min() > 0.1


@pytest.mark.parametrize("rate", [0.01, 0.03, 0.04, 0.3])
def test_the_least_number_of_families_is_the_least_that_gives_a_threshold_a_rank(rate):
    def rank(families):
        return math.floor(rate / 3 * (families + 1) + 1e-9)

    assert rank(families_needed(rate)) >= 1 > rank(families_needed(rate) - 1)


def test_thresholds_rest_on_the_first_image_of_each_family(monkeypatch):
    scores = torch.tensor([[0.5, 0.3, 0.1, 0.4, 0.0]] * 3)
    monkeypatch.setattr(thresholds, "nearest_of_stream", lambda *_: Nearest(scores, scores, scores))
    found = calibrate([], None, None, ["a", "b", "a", "c", "b"], 0.75)
    assert found.values.tolist() == pytest.approx([0.3] * 3)  # of 0.5, 0.3 and 0.4
    assert (found.pairs, found.rank) == (3, 1)


def test_near_duplicates_at_another_depth_that_no_family_knows_do_not_decide_what_a_copy_is():
    """Two of 61 training images are one scan at two depths: as a pair of strangers they would have the least score."""
    x = F.interpolate(torch.rand(60, 1, 24, 24, generator=torch.Generator().manual_seed(0)), 64, mode="bicubic")
    x = torch.cat([x, at_depth(x[0], 0.8)[None]]).clamp(0, 1)

    def encode(images):
        return images.flatten(1)[:, ::7]

    known = describe([x], encode)
    assert float(detail_correlations(x[:1], known.details[60:])) > 0.6
    found = calibrate([x], known, encode, [str(i) for i in range(61)], 0.1)
    assert found.rank == 2
    assert float(found.values[SCORES.index("detail")]) > 0.5


def refused(capsys, *words):
    capsys.readouterr()
    assert run_command(partial(main, ["memorisation", *map(str, words)])) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_bad_input_is_refused_in_one_sentence(phantoms, weights, audit, micro, tmp_path, capsys):
    samples = audit.parent / "samples"
    common = ["--weights", weights, "--data", phantoms, "--generated", samples]
    assert "need 299" in refused(capsys, *common, "--false-alarms", "0.01")
    assert "pixel for pixel, images of --data" in refused(capsys, *common[:4], "--generated", phantoms)
    assert "has memorisation.json already" in refused(capsys, *common, "--out", audit)
    assert "--planted 0" in refused(capsys, *common, "--planted", "0")
    assert "--false-alarms 1.5" in refused(capsys, *common, "--false-alarms", "1.5")
    nameless = tmp_path / "nameless.safetensors"
    save_model(LatentDiffusion(micro), nameless)
    assert "was not trained here" in refused(capsys, "--weights", nameless, *common[2:])
    assert sorted(path.name for path in audit.iterdir()) == ["closest.png", "memorisation.json", "samples.csv"]
