"""A fast B-mode scan of an anatomy: scatterers, point spread, attenuation, time gain, log compression.

Speckle is the envelope of complex Gaussian scatterers seen through the point spread function of the transducer (Wagner
et al., IEEE Trans. Sonics Ultrason. 30 (1983) 156). Attenuation: Szabo, "Diagnostic Ultrasound Imaging", ch. 4.
"""

from dataclasses import dataclass

import numpy as np

from ldm_us.data.phantom.grid import PIXELS, Array, Grid, smooth_curve, smooth_field

SPEED_OF_SOUND = 1.54  # mm / us
F_NUMBER = 2.8
AMPLITUDE = np.float32(np.log(10) / 20)  # exp(AMPLITUDE * dB) is an amplitude, exp(2 * AMPLITUDE * dB) a power
DEPTH_OF_FIELD = 14.0  # mm, over which the beam widens by sqrt(2)
LOOKS = 3  # compounded in intensity, as a scanner averages transmit angles
SHARED = 0.1  # of the speckle energy is the same in all looks


@dataclass(frozen=True)
class Scanner:
    """Settings of one scan."""

    frequency: float  # MHz, f0
    cycles: float  # of the pulse, N
    focus: float  # mm
    tgc: float  # dB/cm/MHz that the time gain compensates
    dynamic_range: float  # dB between black and white
    gain: float  # dB; at 0, scatterers of 0 dB near the skin are white
    gamma: float  # of the grey map
    noise_floor: float  # dB, relative to full scale


def draw_scanner(rng: np.random.Generator) -> Scanner:
    """Random settings of a linear breast probe."""
    return Scanner(
        frequency=rng.uniform(7.5, 10.0),
        cycles=rng.uniform(1.6, 2.0),
        focus=rng.uniform(10, 22),
        tgc=rng.uniform(0.30, 0.42),
        dynamic_range=rng.uniform(52, 62),
        gain=rng.normal(0.3, 2.0),
        gamma=rng.uniform(1.15, 1.5),
        noise_floor=rng.uniform(-72, -62),
    )


def scan(rng: np.random.Generator, grid: Grid, echo: Array, gain: Array, scanner: Scanner) -> Array:
    """The displayed image (PIXELS, PIXELS), 0 to 1, of maps in dB. `rng` draws the speckle and the noise."""
    intensity = speckle(rng, grid, np.exp(echo * AMPLITUDE), scanner)
    return display(rng, intensity * np.exp(2 * AMPLITUDE * gain), scanner)


def display(rng: np.random.Generator, received: Array, scanner: Scanner) -> Array:
    """The grey levels, 0 to 1, of received intensities, which get the scanner's noise first."""
    noise = np.float32(10 ** (scanner.noise_floor / 10)) * rng.standard_exponential(received.shape, dtype=np.float32)
    level = 10 * np.log10(received + noise)
    return np.clip(1 + (level + scanner.gain) / scanner.dynamic_range, 0, 1) ** scanner.gamma


def speckle(rng: np.random.Generator, grid: Grid, scatterers: Array, scanner: Scanner) -> Array:
    """Echo intensity: Gaussian scatterers (complex) seen through the point spread function, LOOKS times, averaged."""
    lateral, axial = point_spread(grid, scanner)
    intensity = np.zeros_like(scatterers)
    for _ in ("real", "imaginary"):
        shared = np.float32(np.sqrt(SHARED)) * rng.standard_normal(scatterers.shape, dtype=np.float32)
        for _ in range(LOOKS):
            own = np.float32(np.sqrt(1 - SHARED)) * rng.standard_normal(scatterers.shape, dtype=np.float32)
            echo = blur_rows(scatterers * (shared + own), lateral)
            echo = blur_rows(echo.T.copy(), axial[:, None]).T
            intensity += np.square(echo)
    return intensity / np.float32(2 * LOOKS)


def blur_rows(image: Array, kernels: Array) -> Array:
    """Convolve every row with its own kernel, kernels (taps, rows) or (taps, 1), the image mirrored at its edges."""
    reach = len(kernels) // 2
    padded = np.pad(image, ((0, 0), (reach, reach)), mode="reflect")
    blurred, term = np.zeros_like(image), np.empty_like(image)
    for k, weights in enumerate(kernels):
        np.multiply(padded[:, k : k + PIXELS], weights[:, None], out=term)
        blurred += term
    return blurred


def point_spread(grid: Grid, scanner: Scanner) -> tuple[Array, Array]:
    """Lateral kernel of every row (taps, PIXELS) and the axial kernel (taps,), Gaussians of unit energy."""
    wavelength = SPEED_OF_SOUND / scanner.frequency
    out_of_focus = np.sqrt(1 + ((grid.z[:, 0] - scanner.focus) / DEPTH_OF_FIELD) ** 2)
    lateral = np.maximum(1.2 * wavelength * F_NUMBER * out_of_focus / 2.355 / grid.pitch, 1.0)  # pixels
    axial = max(wavelength * scanner.cycles / 2 / 2.355 / grid.pitch, 1.15)
    return gaussian(lateral.astype(np.float32)), gaussian(np.array([axial], np.float32))[:, 0]


def gaussian(sigma: Array) -> Array:
    """Gaussians of standard deviations (n,) in pixels and unit energy: (taps, n)."""
    reach = int(np.ceil(2.6 * sigma.max()))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1, dtype=np.float32)[:, None] / sigma) ** 2)
    return (taps / np.linalg.norm(taps, axis=0)).astype(np.float32)


def depth_gain(rng: np.random.Generator, grid: Grid, attenuation: Array, scanner: Scanner) -> Array:
    """Gain in dB: what the tissue above attenuates, there and back, against the time gain; with lateral stripes."""
    per_mm = 2 * scanner.frequency * (scanner.tgc - attenuation) / 10
    gain = np.cumsum(per_mm, axis=0, dtype=np.float32) * np.float32(grid.pitch)
    narrow = gaussian(np.array([1.2 / grid.pitch], np.float32))
    spread = blur_rows(gain, narrow / narrow.sum())  # the beam is wide: shadows are soft, the more so the deeper
    gain += (spread - gain) * np.clip(grid.z / grid.side + 0.2, 0, 0.9)
    stripes = rng.uniform(0.5, 2.0) * smooth_curve(rng, grid, 5) + 0.7 * smooth_curve(rng, grid, 1.5)
    contact = rng.uniform(0, 2.0) * smooth_field(rng, grid, 12, 12)
    return (gain + stripes * grid.z / grid.side * 2 + contact).astype(np.float32)
