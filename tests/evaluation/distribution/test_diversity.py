"""distribution/diversity.py: MS-SSIM of known pairs, independent pairs, and an interval that holds."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d

from ldm_us.data.records import Record
from ldm_us.evaluation.distribution.diversity import diversity, mean_with_interval, ms_ssim, random_pairs, scales_at


def noise(n: int, size: int, seed: int) -> torch.Tensor:
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed))


def save(folder: Path, images: list[np.ndarray], label: str = "benign") -> list[Record]:
    folder.mkdir(exist_ok=True)
    records = []
    for i, pixels in enumerate(images):
        path = folder / f"{label}{i}.png"
        Image.fromarray(pixels).save(path)
        records.append(Record(path, (), label, "", str(i)))
    return records


@pytest.mark.parametrize("size", [11, 22, 44, 99, 176])
def test_ms_ssim_of_an_image_with_itself_is_1_at_the_smallest_size_of_every_number_of_scales(size: int) -> None:
    x = noise(2, size, 0)
    assert ms_ssim(x, x).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert (ms_ssim(x, noise(2, size, 1)) < 0.5).all()


def test_ms_ssim_of_flat_images_is_the_closed_form_of_their_luminance() -> None:
    """Without structure only luminance counts, at the coarsest scale: (2 a b + C) / (a^2 + b^2 + C) to its exponent."""
    a, b, c = 0.2, 0.8, 0.01**2
    x, y = torch.full((1, 1, 128, 128), a), torch.full((1, 1, 128, 128), b)
    exponent = 0.2363 / (0.0448 + 0.2856 + 0.3001 + 0.2363)  # of the last of 4 scales, of sum 1
    expected = ((2 * a * b + c) / (a * a + b * b + c)) ** exponent
    assert ms_ssim(x, y).item() == pytest.approx(expected, abs=1e-4)


def test_ms_ssim_of_images_with_structure_is_wangs_definition_written_out() -> None:
    """2 scales at 32 pixels: the images, and the means of their squares of 2 x 2 pixels.

    Window of 11 pixels, deviation 1.5, where it lies in the image; contrast and structure alone of the finer scale. The
    coarsest scale is torchmetrics' own: mirrored at the border, every pixel has a window.
    """
    rng = np.random.default_rng(0)
    x = gaussian_filter(rng.random((32, 32)), 1) * 2 - 0.5
    y = 0.7 * x + 0.1 + 0.05 * rng.random((32, 32))
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    expected = 1.0
    for scale, exponent in enumerate((0.0448 / (0.0448 + 0.2856), 0.2856 / (0.0448 + 0.2856))):
        a, b = (one.reshape(32 >> scale, 1 << scale, 32 >> scale, 1 << scale).mean(axis=(1, 3)) for one in (x, y))
        if scale == 1:
            a, b = (np.pad(one, 5, mode="reflect") for one in (a, b))
        mean_a, mean_b, aa, bb, ab = (convolve2d(one, window, "valid") for one in (a, b, a * a, b * b, a * b))
        variances, covariance = aa - mean_a**2 + bb - mean_b**2, ab - mean_a * mean_b
        terms = (2 * covariance + 0.03**2) / (variances + 0.03**2)
        if scale == 1:
            terms = terms * (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
        expected *= terms.mean() ** exponent
    found = ms_ssim(*(torch.from_numpy(one)[None, None] for one in (x, y)))
    assert 0.5 < expected < 0.99
    assert found.item() == pytest.approx(expected, abs=1e-5)


def test_smaller_images_have_room_for_fewer_scales_and_the_smallest_for_none() -> None:
    assert [scales_at(size) for size in (11, 64, 128, 256, 512)] == [1, 3, 4, 5, 5]
    with pytest.raises(ValueError, match="needs at least 11 pixels"):
        scales_at(10)


def test_no_image_is_in_two_pairs() -> None:
    records = [Record(Path(str(i)), (), "benign", "", str(i)) for i in range(9)]
    pairs = random_pairs(records, 0)
    images = [record for pair in pairs for record in pair]
    assert len(pairs) == 4
    assert len(set(images)) == 8
    assert pairs == random_pairs(records, 0) != random_pairs(records, 1)


def test_the_interval_holds_the_true_mean_in_95_percent_of_small_samples() -> None:
    rng = np.random.default_rng(0)
    trials = 1000
    intervals = [mean_with_interval(rng.normal(3, 2, 5).tolist()) for _ in range(trials)]
    held = sum(one["low"] <= 3 <= one["high"] for one in intervals) / trials
    assert abs(held - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)


def test_a_class_of_one_picture_is_not_diverse_and_one_of_noise_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (24, 24), dtype=np.uint8) for _ in range(7)]
    records = (
        save(tmp_path, [images[0]] * 6) + save(tmp_path, images, "malignant") + save(tmp_path, images[:3], "normal")
    )
    found = diversity(records, 24, 3, 0)
    assert found["benign"] == {"mean": pytest.approx(1), "low": pytest.approx(1), "high": pytest.approx(1), "pairs": 3}
    assert found["malignant"]["high"] < 0.5
    assert found["normal"] == {"left_out": "3 images, but MS-SSIM needs at least 4."}
    assert diversity(records, 24, 100, 0) == found  # whatever the batch
