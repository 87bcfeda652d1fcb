"""The judge: what the network computes, and what training teaches it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_us.data.organ import BREAST, UNKNOWN
from ldm_us.data.readers.busi import read_busi
from ldm_us.data.records import Record
from ldm_us.evaluation.judge.network import Judge, JudgeConfig, JudgeOutput, fresh_judge, judge
from ldm_us.evaluation.judge.training import (
    LEARNING_RATE,
    ZOOM,
    augment,
    check_teachable,
    judge_loss,
    learning_rate_at,
    measure_judge,
    train_judge,
    zoom_and_shift,
)
from ldm_us.training.dataset import load_training_set

SIDE = 32


def draw(label: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noise; in it a dark ellipse, wide where benign, tall and with a shadow below where malignant."""
    y, x = np.mgrid[:SIDE, :SIDE]
    image, mask = rng.normal(150, 15, (SIDE, SIDE)), np.zeros((SIDE, SIDE), bool)
    if label != "normal":
        centre_y, centre_x = rng.uniform(10, 20), rng.uniform(10, 22)
        height, width = (5, 8) if label == "benign" else (7, 5)
        mask = ((y - centre_y) / height) ** 2 + ((x - centre_x) / width) ** 2 <= 1
        if label == "malignant":
            image[(abs(x - centre_x) < width) & (y > centre_y)] -= 50
        image[mask] = rng.normal(60, 10, int(mask.sum()))
    return image.clip(0, 255).astype(np.uint8), mask.astype(np.uint8) * 255


def write_toy(root: Path, each: int, seed: int) -> Path:
    """A BUSI folder of drawn images, numbered so high that no near-duplicate list knows them."""
    rng = np.random.default_rng(seed)
    for label in BREAST.classes:
        (root / label).mkdir(parents=True)
        for i in range(each):
            image, mask = draw(label, rng)
            Image.fromarray(image).save(root / label / f"{label} ({9001 + i}).png")
            Image.fromarray(mask).save(root / label / f"{label} ({9001 + i})_mask.png")
    return root


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> list[Record]:
    return read_busi(write_toy(tmp_path_factory.mktemp("toy") / "train", 10, 0))


@pytest.fixture(scope="module")
def other_toy(tmp_path_factory) -> list[Record]:
    return read_busi(write_toy(tmp_path_factory.mktemp("toy") / "other", 10, 1))


@pytest.fixture(scope="module")
def trained(toy) -> Judge:
    return train_judge(toy, SIDE, steps=60, batch=12, seed=0)


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.rand(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("h", "w"), [(16, 16), (128, 128), (32, 48)])
def test_every_image_gets_a_score_a_class_and_a_score_a_pixel(h, w):
    output = fresh_judge(JudgeConfig(), 0)(torch.rand(2, 1, h, w))
    assert output.class_logits.shape == (2, len(BREAST.classes))
    assert output.lesion_logits.shape == (2, 1, h, w)


def test_the_judge_is_small():
    assert 2e5 < sum(parameter.numel() for parameter in fresh_judge(JudgeConfig(), 0).parameters()) < 5e5


def test_an_image_is_judged_for_itself_whatever_else_is_in_the_batch(trained, noise):
    together, alone = trained(noise), [trained(image[None]) for image in noise]
    for got, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.allclose(got, torch.cat(parts), atol=1e-4)


def test_images_of_another_size_are_judged_at_the_trained_size_and_get_masks_of_their_own(trained, toy):
    data = load_training_set(toy, SIDE)
    images = data.pixels[:].float() / 255
    larger = torch.nn.functional.interpolate(images, scale_factor=2.0, mode="nearest")
    verdict, verdict_larger = judge(trained, images), judge(trained, larger, batch=7)
    assert verdict_larger.labels == verdict.labels
    assert verdict_larger.masks.shape == larger.shape
    shrunk = torch.nn.functional.avg_pool2d(verdict_larger.masks, 2)
    assert float((shrunk - verdict.masks).abs().mean()) < 0.02


def test_an_untrained_judge_knows_nothing_and_a_trained_one_names_and_marks_images_it_has_not_seen(
    toy, other_toy, trained
):
    before, after = measure_judge(fresh_judge(JudgeConfig(size=SIDE), 0), other_toy), measure_judge(trained, other_toy)
    assert before["accuracy"]["all"]["share"] < 0.5
    assert before["dice"]["all"]["mean"] < 0.4
    assert after["accuracy"]["all"]["share"] > 0.9
    assert after["dice"]["all"]["mean"] > 0.8
    assert after["no_lesion_found_where_none_is"]["share"] == 1.0
    assert measure_judge(trained, toy)["dice"]["all"]["mean"] > 0.8


def test_figures_count_every_image_once_in_its_class(trained, other_toy):
    figures = measure_judge(trained, other_toy)
    assert figures["images"] == 30
    assert all(sum(row.values()) == 10 for row in figures["confusion"].values())
    hits = sum(figures["confusion"][label][label] for label in BREAST.classes)
    assert figures["accuracy"]["all"]["share"] == pytest.approx(hits / 30, abs=5e-4)
    assert set(figures["dice"]) == {"all", "benign", "malignant"}, "normal images have no lesion to find"


def test_the_same_seed_gives_the_same_judge_and_another_seed_another(toy):
    first, again, other = (train_judge(toy, SIDE, 3, 4, seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.weight"], other["stem.weight"])


def test_training_leaves_the_global_random_state_alone(toy):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    train_judge(toy, SIDE, 1, 2, seed=0)
    assert torch.equal(torch.rand(1), expected)


def test_on_step_sees_every_step_and_its_loss(toy):
    seen = []
    train_judge(toy, SIDE, 4, 2, 0, lambda step, loss: seen.append((step, loss)))
    assert [step for step, _ in seen] == [1, 2, 3, 4]
    assert all(loss > 0 for _, loss in seen)


def test_the_learning_rate_rises_to_its_height_then_falls_to_near_nothing():
    rates = [learning_rate_at(step, 100) for step in range(100)]
    assert max(rates) == rates[9] == LEARNING_RATE
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.01 * LEARNING_RATE
    assert learning_rate_at(0, 1) == LEARNING_RATE


def test_the_loss_of_a_certain_and_right_judge_is_0_and_every_mistake_costs():
    labels = torch.tensor([0, 2])
    masks = torch.zeros(2, 1, 4, 4)
    masks[0, :, 1:3, 1:3] = 1
    right = JudgeOutput(100 * torch.nn.functional.one_hot(labels, 3).float(), 200 * masks - 100)
    assert float(judge_loss(right, labels, masks)) == pytest.approx(0, abs=1e-4)
    assert float(judge_loss(right, labels.flip(0), masks)) > 50
    assert float(judge_loss(right, labels, masks.flip(0))) > 20


def test_the_dice_part_of_the_loss_is_its_closed_form():
    """Half sure everywhere: overlap 8 of 16 pixels, and 8 + 16 in total."""
    labels, masks = torch.tensor([1]), torch.ones(1, 1, 4, 4)
    output = JudgeOutput(torch.tensor([[0.0, 100.0, 0.0]]), torch.zeros(1, 1, 4, 4))
    expected = np.log(2) + 1 - (2 * 8 + 1) / (8 + 16 + 1)
    assert float(judge_loss(output, labels, masks)) == pytest.approx(expected, rel=1e-5)


def test_augmentation_mirrors_image_and_mask_together_and_keeps_the_range():
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(16, 1, SIDE, SIDE)
    masks[..., 8:16, 2:10] = 1
    images, moved = augment(0.7 - 0.5 * masks, masks, generator)
    assert images.min() >= 0
    assert images.max() <= 1
    left = moved[..., :16].flatten(1).any(1)
    assert 0 < int(left.sum()) < 16, "some are mirrored, some are not"
    for image, mask in zip(images, moved, strict=True):
        assert float(image[mask > 0].mean()) < float(image[mask == 0].mean()) - 0.1


def test_zoom_and_shift_move_image_and_mask_alike_and_lesions_are_of_other_sizes_in_other_places():
    masks = torch.zeros(64, 1, SIDE, SIDE)
    masks[..., 10:22, 8:20] = 1
    images, moved = zoom_and_shift(0.8 - 0.6 * masks, masks, torch.Generator().manual_seed(0))
    inside, outside = (float(images[moved == side].mean()) for side in (1, 0))
    assert (inside, outside) == pytest.approx((0.2, 0.8), abs=0.05)
    areas = moved.flatten(1).sum(1) / 144
    assert float(areas.min()) < 0.75
    assert float(areas.max()) > 1.4
    assert float(areas.max()) < 1.1 * np.exp(2 * ZOOM)
    rows = moved.any(dim=3).float().squeeze(1)
    middles = (rows * torch.arange(SIDE)).sum(1) / rows.sum(1)
    assert float(middles.max() - middles.min()) > 0.1 * SIDE


def test_a_lesion_never_leaves_the_view():
    """Lesions in a corner: a shift would lose most of some of them, so those images stay as they are."""
    masks = torch.zeros(200, 1, SIDE, SIDE)
    masks[..., :3, :3] = 1
    images, moved = zoom_and_shift(1 - masks, masks, torch.Generator().manual_seed(0))
    unmoved = (moved == masks).flatten(1).all(1)
    assert 0 < int(unmoved.sum()) < 200
    assert torch.equal(images[unmoved], 1 - masks[unmoved])
    assert float(moved.flatten(1).sum(1).min()) >= 0.5 * 9 * np.exp(-2 * ZOOM) - 1
    empty = torch.zeros(4, 1, SIDE, SIDE)
    assert not zoom_and_shift(empty + 0.5, empty, torch.Generator().manual_seed(0))[1].any()


def test_images_that_cannot_teach_are_refused(toy):
    with pytest.raises(ValueError, match=r"all images are benign, and a judge tells classes apart\."):
        check_teachable(load_training_set(toy[:10], SIDE))
    unmarked = [*toy[1:], Record(toy[0].image, (), "benign", toy[0].prompt, "")]
    with pytest.raises(ValueError, match="a benign image without a lesion in its mask"):
        check_teachable(load_training_set(unmarked, SIDE))
    unlabelled = [*toy, Record(toy[0].image, (), UNKNOWN, "a cyst", "")]
    with pytest.raises(ValueError, match=r"a judge learns classes, and this image has none\. Add its class"):
        check_teachable(load_training_set(unlabelled, SIDE))


@pytest.mark.parametrize("size", [0, 8, 100, -16])
def test_a_size_that_cannot_be_halved_is_refused(size):
    with pytest.raises(ValueError, match=f"image size {size}: a judge needs a multiple of 16"):
        fresh_judge(JudgeConfig(size=size), 0)
