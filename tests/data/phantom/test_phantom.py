"""The phantom: the same anatomy at every size, exact masks, and grey levels like those of real images."""

import json

import numpy as np
import pytest
from PIL import Image

from ldm_us.data.audit.statistics import SIZE, image_statistics
from ldm_us.data.phantom.bmode import Scanner, depth_gain, point_spread, speckle
from ldm_us.data.phantom.grid import PIXELS, Grid, smooth_field, warp
from ldm_us.data.phantom.lesion import draw_lesion
from ldm_us.data.phantom.simulate import simulate

SCANNER = Scanner(
    frequency=8.0, cycles=2.0, focus=15.0, tgc=0.4, dynamic_range=60.0, gain=0.0, gamma=1.2, noise_floor=-70.0
)
GRID = Grid(side=40.0)


def average_down(image: np.ndarray, factor: int) -> np.ndarray:
    """Mean over blocks of factor x factor pixels."""
    side = image.shape[0] // factor
    return image.astype(float).reshape(side, factor, side, factor).mean(axis=(1, 3))


@pytest.mark.parametrize("label", ["normal", "benign", "malignant"])
def test_the_same_seed_and_number_give_the_same_pixels(label):
    first, again = (simulate(3, 5, label, 64) for _ in range(2))
    assert np.array_equal(first.image, again.image)
    assert all(np.array_equal(a, b) for a, b in zip(first.masks, again.masks, strict=True))


def test_another_number_or_seed_gives_another_breast():
    image = simulate(3, 5, "benign", 64).image
    for other in (simulate(3, 6, "benign", 64), simulate(4, 5, "benign", 64)):
        assert np.abs(other.image.astype(float) - image).mean() > 10


def test_anatomy_and_speckle_are_the_same_at_every_size():
    small, large = simulate(1, 1, "benign", 64), simulate(1, 1, "benign", 256)
    correlation = np.corrcoef(small.image.ravel(), average_down(large.image, 4).ravel())[0, 1]
    assert correlation > 0.98
    assert str(small.lesions) == str(large.lesions)
    assert abs(small.masks[0].mean() - large.masks[0].mean()) < 0.004


def test_a_rescan_has_the_same_lesion_and_other_speckle():
    first, second = simulate(1, 2, "malignant", 64), simulate(1, 2, "malignant", 64, rescan=1)
    assert np.array_equal(first.masks[0], second.masks[0])
    difference = first.image.astype(float) - second.image
    assert np.abs(difference).mean() > 1
    assert np.corrcoef(first.image.ravel(), second.image.ravel())[0, 1] > 0.8


def test_normal_breasts_have_no_mask_and_the_others_have_one():
    assert simulate(0, 0, "normal", 32).masks == []
    for label in ("benign", "malignant"):
        (mask,) = simulate(0, 0, label, 64).masks
        assert mask.shape == (64, 64)
        assert mask.dtype == bool
        assert mask.any()


def test_several_lesions_do_not_touch():
    counts = []
    for number in range(6):
        phantom = simulate(8, number, "benign", 96, lesions=2)
        counts.append(len(phantom.masks))
        assert np.sum(phantom.masks, axis=0).max() == 1
    assert counts.count(2) >= 4


def test_a_mask_is_the_sign_of_the_outline():
    phantom = simulate(2, 4, "malignant", 128)
    (lesion,) = phantom.lesions
    at = (np.arange(128) + 0.5) * phantom.side / 128
    ratio = lesion.ratio(at[:, None].astype(np.float32), at[None, :].astype(np.float32))
    assert np.array_equal(phantom.masks[0], ratio < 1)


def test_an_outline_without_waves_is_an_ellipse_of_the_stated_area():
    rng = np.random.default_rng(0)
    lesion = draw_lesion(rng, "benign", 40.0)
    smooth = lesion.__class__(**(vars(lesion) | {"orders": np.zeros((3, 0), np.float32)}))
    area = (smooth.ratio(GRID.z, GRID.x) < 1).mean() * GRID.side**2
    assert area == pytest.approx(np.pi * smooth.width * smooth.height, rel=0.02)


def test_lesion_areas_are_those_of_busi_within_a_quarter():
    for label, busi_median in (("benign", 0.038), ("malignant", 0.115)):
        areas = []
        for i in range(200):
            lesion = draw_lesion(np.random.default_rng(i), label, 40.0)
            areas.append(np.pi * lesion.width * lesion.height / 40.0**2)
        assert np.median(areas) == pytest.approx(busi_median, rel=0.25)


def test_smooth_fields_have_unit_variance_and_the_stated_coarseness():
    rng = np.random.default_rng(0)
    fields = np.stack([smooth_field(rng, GRID, 2.0, 6.0) for _ in range(40)])
    assert fields.mean() == pytest.approx(0, abs=0.1)
    assert fields.std() == pytest.approx(1, abs=0.05)
    steps = [np.square(np.diff(fields, axis=axis)).mean() for axis in (1, 2)]
    assert steps[0] / steps[1] == pytest.approx(9, rel=0.15)  # (6 / 2)^2


def test_warping_by_nothing_changes_nothing_and_a_shift_moves_the_picture():
    image = np.random.default_rng(0).random((PIXELS, PIXELS), dtype=np.float32)
    rows, columns = np.meshgrid(*[np.arange(PIXELS, dtype=np.float32)] * 2, indexing="ij")
    assert np.allclose(warp(image, rows, columns)[:-1, :-1], image[:-1, :-1], atol=1e-4)
    assert np.allclose(warp(image, rows + 2, columns)[:-4, :-1], image[2:-2, :-1], atol=1e-3)


def test_uniform_scatterers_give_fully_developed_speckle():
    """The intensity of n independent looks has mean 1 and a squared contrast of 1 / n; SHARED makes it larger."""
    rng = np.random.default_rng(0)
    intensity = np.stack([speckle(rng, GRID, np.ones((PIXELS, PIXELS), np.float32), SCANNER) for _ in range(4)])
    assert intensity.mean() == pytest.approx(1, rel=0.05)
    contrast = intensity.std() / intensity.mean()
    assert 3**-0.5 < contrast < 0.66


def test_the_beam_is_narrowest_at_the_focus():
    lateral, axial = point_spread(GRID, SCANNER)
    peaks = lateral.max(axis=0)  # of unit energy: the narrower, the higher
    assert abs(GRID.z[int(np.argmax(peaks)), 0] - SCANNER.focus) < 0.2
    assert np.allclose(np.linalg.norm(lateral, axis=0), 1, atol=1e-5)
    assert np.linalg.norm(axial) == pytest.approx(1)


def test_attenuation_darkens_by_two_f_alpha_z_less_the_time_gain():
    class Silent(np.random.Generator):
        """Stripes and contact of size 0."""

        def uniform(self, *bounds):
            return 0.0

        def standard_normal(self, size=None, dtype=np.float32):
            return np.zeros(size, dtype)

    attenuation = np.full((PIXELS, PIXELS), 0.6, np.float32)
    gain = depth_gain(Silent(np.random.PCG64(0)), GRID, attenuation, SCANNER)
    assert gain[-1].mean() == pytest.approx(2 * 8.0 * (0.4 - 0.6) * 4.0, rel=1e-3)  # 4 cm


# What `python -m ldm_us.data statistics` prints for 617 images of BUSI.
BUSI = {
    "mean": 82.9,
    "std": 50.8,
    "depth_profile": [129.7, 118.6, 109.7, 92.8, 75.0, 57.1, 44.8, 35.8],
    "axial": [0.79, 0.42, 0.18],
    "lateral": [0.93, 0.81, 0.70],
}
LESIONS = {"benign": (-57, 35), "malignant": (-44, -7)}  # contrast with the ring; strip behind, less its flanks


@pytest.fixture(scope="module")
def statistics():
    """Figures of 90 phantoms: {label: list}."""
    figures = {}
    for label in ("normal", "benign", "malignant"):
        phantoms = [simulate(11, i, label, SIZE) for i in range(30)]
        figures[label] = [image_statistics(p.image, p.masks[0] if p.masks else None) for p in phantoms]
    return figures


def test_grey_levels_and_texture_are_those_of_busi(statistics):
    pooled = [figure for figures in statistics.values() for figure in figures]
    means = {name: np.mean([figure[name] for figure in pooled], axis=0) for name in BUSI}
    assert means["mean"] == pytest.approx(BUSI["mean"], abs=8)
    assert means["std"] == pytest.approx(BUSI["std"], abs=6)
    assert np.abs(means["depth_profile"] - BUSI["depth_profile"]).max() < 18
    assert np.abs(means["axial"] - BUSI["axial"]).max() < 0.1
    assert np.abs(means["lateral"] - BUSI["lateral"]).max() < 0.06


def test_lesions_are_as_dark_as_those_of_busi_and_throw_such_shadows(statistics):
    for label, (contrast, posterior) in LESIONS.items():
        assert np.nanmean([f["lesion_contrast"] for f in statistics[label]]) == pytest.approx(contrast, abs=10)
        assert np.nanmean([f["posterior"] for f in statistics[label]]) == pytest.approx(posterior, abs=12)


def test_statistics_of_a_drawn_lesion_are_those_drawn():
    image, mask = np.full((SIZE, SIZE), 100, np.uint8), np.zeros((SIZE, SIZE), bool)
    mask[80:120, 100:150] = True
    image[mask] = 30
    image[120:, 100:150] = 130
    figures = image_statistics(image, mask)
    assert figures["posterior"] == pytest.approx(30)
    assert -80 < figures["lesion_contrast"] < -70  # the ring holds a little of the bright strip
    assert json.dumps(figures["depth_profile"])


def test_statistics_without_a_lesion_are_not_numbers():
    figures = image_statistics(np.asarray(Image.new("L", (SIZE, SIZE), 7)), np.zeros((SIZE, SIZE), bool))
    assert np.isnan(figures["lesion_contrast"])
    assert np.isnan(figures["posterior"])
    assert figures["mean"] == 7
    assert figures["std"] == 0
