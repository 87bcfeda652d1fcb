"""realism/two_sample.py: sees grain, finds nothing where there is nothing, and tests on images that it has not seen."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from ldm_us.evaluation.realism.crops import CROP, fresh_network, random_crops, score_crops, train_network
from ldm_us.evaluation.realism.measures import Measured
from ldm_us.evaluation.realism.two_sample import FEWEST, equally_many, halves, shown, two_sample_tests

SIDE = 64
CLASSES = ("benign", "malignant")


def noise(seed: int, count: int = FEWEST, sigma: float = 0.0, labels: tuple[str, ...] = CLASSES) -> Measured:
    """White noise of 100 +- 25 grey levels; `sigma` pixels of blur leave mean and spread of an image as they are."""
    rng, measured = np.random.default_rng(seed), Measured()
    for i in range(count):
        texture = gaussian_filter(rng.normal(size=(SIDE, SIDE)), sigma, mode="wrap")
        grey = np.rint(np.clip(100 + 25 * texture / texture.std(), 0, 255)).astype(np.uint8)
        measured.add(f"{labels[i % len(labels)]} ({i})", labels[i % len(labels)], grey, {}, 0)
    return measured


def test_a_blur_that_changes_neither_mean_nor_spread_is_seen_and_between_the_halves_of_one_set_nothing():
    against, of_halves = two_sample_tests(noise(0), noise(1, sigma=0.7), steps=25, seed=0)
    assert against["auc"] > 0.95
    assert 0.5 < against["low"] <= against["auc"] <= against["high"] <= 1
    assert of_halves["auc"] < 0.7
    assert of_halves["low"] < of_halves["auc"] < of_halves["high"]
    assert (against["trained_on"], against["tested_on"]) == ([20, 20], [20, 20])
    assert (of_halves["trained_on"], of_halves["tested_on"]) == ([10, 10], [10, 10])


def test_intervals_of_sets_of_one_distribution_hold_one_half_in_about_95_of_100():
    tests = [test for seed in range(10) for test in two_sample_tests(noise(2 * seed), noise(2 * seed + 1), 1, seed)]
    assert sum(test["low"] < 0.5 < test["high"] for test in tests) >= 17, "of 20"


def test_the_same_seed_gives_the_same_figures_and_another_seed_other_images():
    sets = noise(0), noise(1, sigma=0.3)
    first, again, other = (two_sample_tests(*sets, steps=1, seed=seed) for seed in (7, 7, 8))
    assert first == again != other
    assert [one.place for one in shown(sets[0], 7)] != [one.place for one in shown(sets[0], 8)]


def test_files_of_one_name_are_on_one_side_and_every_class_is_on_both():
    real, reconstructed = (shown(noise(seed, 61), 3) for seed in (0, 1))
    sides = [halves(images) for images in (real, reconstructed)]
    for own, its in zip(*sides, strict=True):
        assert [one.place for one in own] == [one.place for one in its]
        assert {one.label for one in own} == set(CLASSES)
    assert not {one.place for one in sides[0][0]} & {one.place for one in sides[0][1]}
    assert sum(map(len, sides[0])) == 61


def test_both_sets_have_as_many_of_each_class_and_a_set_of_unknown_classes_is_one_class():
    three, two = noise(0, 90, labels=("benign", "malignant", "normal")), noise(1, 50)
    counts = [[one.label for one in images] for images in equally_many(shown(three, 0), shown(two, 0))]
    assert sorted(counts[0]) == sorted(counts[1]) == ["benign"] * 25 + ["malignant"] * 25
    unknown = noise(2, 44, labels=("unknown",))
    assert [len(images) for images in equally_many(shown(three, 0), shown(unknown, 0))] == [44, 44]


def test_too_few_images_and_images_that_are_all_black_are_refused_in_one_sentence():
    with pytest.raises(ValueError, match="it needs 40 images of each set, of the same classes, not 38"):
        two_sample_tests(noise(0), noise(1, 38), steps=1, seed=0)
    black = noise(0)
    black.greys = [grey // 30 for grey in black.greys]
    with pytest.raises(ValueError, match="no crop of 32x32 pixels that is not black"):
        two_sample_tests(noise(1), black, steps=1, seed=0)


def test_crops_are_those_of_the_image_mirrored_or_not_and_the_scored_ones_leave_black_out():
    images = torch.arange(2 * 40 * 50).reshape(2, 40, 50)
    crops = random_crops(images, 20, torch.Generator().manual_seed(0))
    assert crops.shape == (20, 1, CROP, CROP)
    rights = crops[:, 0, 0, 1] - crops[:, 0, 0, 0]
    assert set(rights.tolist()) == {-1, 1}
    for crop, right in zip(crops[:, 0], rights, strict=True):
        plain = crop if right == 1 else crop.flip(1)
        number, y, x = (int(v) for v in np.unravel_index(int(plain[0, 0]), images.shape))
        assert torch.equal(plain, images[number, y : y + CROP, x : x + CROP])
    pictures = torch.full((3, 128, 128), 90, dtype=torch.uint8)
    pictures[1, :, :64] = 3
    _, image = score_crops(fresh_network(0).eval().requires_grad_(False), pictures)
    assert np.bincount(image).tolist() == [16, 8, 16]


def test_training_leaves_the_images_and_the_global_generator_alone():
    images = torch.randint(0, 255, (4, 40, 40), dtype=torch.uint8)
    before, state, steps = images.clone(), torch.get_rng_state(), []
    train_network(images, images, 2, 0, lambda: steps.append(1))
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(steps) == 2
