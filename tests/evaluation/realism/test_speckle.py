"""realism/speckle.py and the lesion figures: known answers for simulated speckle, grains and lesions."""

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import nakagami

from ldm_us.data.audit.statistics import HIGH_PASS, SIZE, autocorrelation, high_passed, inside_and_ring, lesion_figures
from ldm_us.evaluation.realism.measures import gcnr, has_black_corners
from ldm_us.evaluation.realism.speckle import (
    correlation_width,
    envelope,
    envelope_snr,
    homogeneous_blocks,
    nakagami_m,
    speckle_figures,
    widest,
    without_slope,
)

RAYLEIGH_SNR = math.sqrt(math.pi / (4 - math.pi))  # 1.913
FWHM_OF_SIGMA = 2 * math.sqrt(2 * math.log(2))


def rayleigh(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """The envelope of many scatterers: the modulus of a complex Gaussian."""
    return np.abs(rng.normal(size=shape) + 1j * rng.normal(size=shape))


def b_mode(amplitude: np.ndarray, level_db: float = -25, dynamic_range: float = 60) -> np.ndarray:
    """The log-compressed picture of an envelope whose mean intensity is at level_db."""
    db = 20 * np.log10(amplitude / np.sqrt((amplitude**2).mean())) + level_db
    return np.rint(np.clip(1 + db / dynamic_range, 0, 1) * 255).astype(np.uint8)


def test_rayleigh_speckle_has_an_m_of_1_and_an_snr_of_1_91():
    amplitude = rayleigh(np.random.default_rng(0), (1000, 1000))
    assert nakagami_m(amplitude) == pytest.approx(1, abs=0.01)
    assert envelope_snr(amplitude) == pytest.approx(RAYLEIGH_SNR, abs=0.01)


@pytest.mark.parametrize("m", [0.5, 1.0, 2.0, 5.0])
def test_m_of_a_gamma_intensity_is_its_shape(m):
    intensity = np.random.default_rng(1).gamma(m, 3.0, 400_000)
    assert nakagami_m(np.sqrt(intensity)) == pytest.approx(m, rel=0.03)
    assert envelope_snr(np.sqrt(intensity)) == pytest.approx(nakagami.mean(m) / nakagami.std(m), rel=0.02)


def test_the_envelope_undoes_the_log_compression():
    amplitude = 10 ** (np.linspace(-55, -1, 50) / 20)
    grey = (1 + 20 * np.log10(amplitude) / 60) * 255
    assert envelope(grey) == pytest.approx(amplitude)
    assert envelope(np.array([0.0, 255.0]), 40) == pytest.approx([0.01, 1])


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_a_picture_of_rayleigh_speckle_gives_both_figures_whatever_the_gain_along_depth(slope):
    """Blocks of 32x32, so that the bias of a median over blocks is small; a slope of 0.3 makes 77 grey levels."""
    grey = b_mode(rayleigh(np.random.default_rng(2), (256, 256)))
    grey = np.clip(grey + slope * (np.arange(256) - 128)[:, None], 0, 255).astype(np.uint8)
    m, snr = speckle_figures(grey, homogeneous_blocks(grey))
    assert m == pytest.approx(1, abs=0.06)
    assert snr == pytest.approx(RAYLEIGH_SNR, abs=0.06)


def test_another_dynamic_range_gives_another_m():
    grey = b_mode(rayleigh(np.random.default_rng(2), (256, 256)))
    blocks = homogeneous_blocks(grey)
    assert speckle_figures(grey, blocks, 40)[0] > 1.5 > speckle_figures(grey, blocks, 60)[0]


def test_a_plane_is_taken_off_and_the_mean_kept():
    rows, columns = np.mgrid[:8, :8]
    assert without_slope(100 + 3.0 * rows - 2.0 * columns) == pytest.approx(np.full((8, 8), 100 + 3 * 3.5 - 2 * 3.5))


def test_blocks_avoid_lesions_dark_saturated_and_flat_places_and_edges():
    rng = np.random.default_rng(3)
    grey = b_mode(rayleigh(rng, (128, 128)))
    lesion = np.zeros((128, 128), bool)
    lesion[:32] = True
    grey[32:64] = 0
    grey[64:80] = 255
    grey[80:96] = 90
    assert {block[0].start for block in homogeneous_blocks(grey, lesion)} <= {88, 96, 104, 112}
    assert homogeneous_blocks(np.full((128, 128), 90, np.uint8)) == []
    assert all(math.isnan(value) for value in speckle_figures(grey, []))

    grey = rng.integers(90, 110, (128, 128)).astype(np.uint8)
    grey[:, 60:] += 80
    assert all(block[1].stop <= 60 or block[1].start >= 60 for block in homogeneous_blocks(grey))


@pytest.mark.parametrize("sigma", [1.0, 1.7, 3.0])
def test_the_width_of_gaussian_noise_is_that_of_its_autocorrelation(sigma):
    """Its autocorrelation is a Gaussian of sqrt(2) sigma."""
    noise = np.random.default_rng(4).normal(size=(700, 700))
    detail = gaussian_filter(noise, (sigma, 2 * sigma), mode="wrap", truncate=6)
    assert correlation_width(detail) == pytest.approx(FWHM_OF_SIGMA * math.sqrt(2) * sigma, rel=0.03)
    assert correlation_width(detail.T) == pytest.approx(FWHM_OF_SIGMA * math.sqrt(2) * 2 * sigma, rel=0.04)


def test_the_width_of_a_picture_is_that_of_the_high_passed_autocorrelation_in_closed_form():
    """G_s - G_sqrt(s^2 + h^2) of white noise has the autocorrelation G(2 s^2) - 2 G(2 s^2 + h^2) + G(2 s^2 + 2 h^2)."""
    sigma, cut = 2.0, HIGH_PASS * 512 / SIZE

    def in_2d(lag: np.ndarray, variance: float) -> np.ndarray:
        return np.exp(-(lag**2) / (2 * variance)) / variance

    lag = np.linspace(0, 12, 12_001)
    parts = [(1, 2 * sigma**2), (-2, 2 * sigma**2 + cut**2), (1, 2 * sigma**2 + 2 * cut**2)]
    rho = sum(weight * in_2d(lag, variance) for weight, variance in parts)
    expected = 2 * lag[np.argmax(rho / rho[0] <= 0.5)]
    smooth = gaussian_filter(np.random.default_rng(5).normal(size=(512, 512)), sigma, mode="wrap")
    image = np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)
    assert correlation_width(high_passed(image)) == pytest.approx(expected, rel=0.03)


def test_a_flat_image_has_no_width_and_one_without_an_end_of_its_grain_the_end_of_the_window_as_a_lower_bound():
    assert math.isnan(correlation_width(np.zeros((64, 64))))
    assert correlation_width(np.repeat(np.linspace(-1, 1, 64)[None], 64, axis=0)) == widest(64) == 16
    noise = np.random.default_rng(4).normal(size=(128, 128))
    found = [correlation_width(gaussian_filter(noise, (sigma, 0), mode="wrap")) for sigma in (1, 3, 5, 12, 30)]
    assert sorted(found) == found
    assert found[2] < widest(128) == found[3] == found[4], "a measured width is below that of every wider grain"


def test_the_autocorrelation_is_that_of_a_loop_at_every_lag():
    detail = np.random.default_rng(6).normal(size=(12, 9))
    expected = [
        np.mean([detail[i, j] * detail[i + lag, j] for i in range(12 - lag) for j in range(9)]) / np.mean(detail**2)
        for lag in (1, 4)
    ]
    assert autocorrelation(detail, (1, 4)) == pytest.approx(expected)


@pytest.mark.parametrize("distance", [0.5, 1.0, 3.0])
def test_gcnr_of_two_gaussians_is_the_error_function_of_their_distance(distance):
    """The overlap of N(0, 1) and N(d, 1) is 2 Phi(-d / 2), so that gCNR = erf(d / sqrt(8))."""
    rng = np.random.default_rng(7)
    inside, outside = (rng.normal(100 + 20 * d, 20, 200_000) for d in (0, distance))
    assert gcnr(inside, outside) == pytest.approx(math.erf(distance / math.sqrt(8)), abs=0.02)


def test_gcnr_is_0_for_the_same_1_for_disjoint_levels_and_unknown_without_pixels():
    levels = np.array([10, 10, 70, 200])
    assert gcnr(levels, np.repeat(levels, 5)) == 0
    assert gcnr(levels, np.array([40, 100])) == 1
    assert math.isnan(gcnr(levels, np.empty(0)))


def test_lesion_figures_do_not_depend_on_the_size_of_the_image():
    image, mask = np.full((SIZE, SIZE), 100, np.uint8), np.zeros((SIZE, SIZE), bool)
    mask[80:120, 100:148] = True
    image[mask] = 30
    image[120:, 100:148] = 130
    large, small = (lesion_figures(image[::step, ::step] * 1.0, mask[::step, ::step]) for step in (1, 2))
    assert small == pytest.approx(large, abs=0.5)
    inside, ring = inside_and_ring(image[::2, ::2], mask[::2, ::2])
    assert (inside.size, ring.size) == (20 * 24, 28 * 32 - 20 * 24), "a ring of 8 pixels at 256 is one of 4 at 128"
    mask[:] = False
    mask[10:18, 10:17] = True
    assert [part.size for part in inside_and_ring(image, mask)] == [0, 0], "56 pixels are too few at 256"
    assert [part.size for part in inside_and_ring(image[::2, ::2], mask[::2, ::2])] == [16, 144 - 16]


def test_both_upper_corners_must_be_black():
    grey = np.full((128, 128), 80, np.uint8)
    assert not has_black_corners(grey)
    grey[:8, :8] = 3
    assert not has_black_corners(grey)
    grey[:8, -8:] = 3
    assert has_black_corners(grey)
    grey[:8, -8:] = 12
    assert not has_black_corners(grey)
