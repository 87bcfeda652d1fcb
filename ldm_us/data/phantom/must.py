"""A B-mode scan of an anatomy by physics: point scatterers, SIMUS, plane waves, delay and sum, log compression.

SIMUS gives what every element of a linear array receives from point scatterers after each transmit, element by element,
scatterer by scatterer and frequency by frequency, in the plane: D. Garcia, Comput. Methods Programs Biomed. 218 (2022)
106726. Here by pymust, the Python port of the MUST toolbox (extra `simulation`), as is the delay and sum.

What is not physics: attenuation. SIMUS knows one coefficient for the whole medium; an anatomy has a map. So what the
tissue above attenuates, against the time gain, is applied to the scatterers' reflectivity, in dB, as the fast scanner
applies it to its image: a shadow or an enhancement is where the anatomy has it. Sound goes straight, at one speed, and
is scattered once: no refraction, no reverberation.

Why these numbers. SIMUS takes some .5 ms of one core for a scatterer and a transmit at 200 elements, in proportion to
the elements and to the frequency. At 5 MHz and 2 cycles, which the probe's band holds, a resolution cell (measured
half widths: .3 mm axially, .8 mm laterally) is as large as the fast scanner's. Four scatterers in each, enough for
speckle, are 16 a mm2: 14,000 to 28,000 in a field of 30 to 42 mm, 20 to 40 s for three plane waves. The pitch is what
matters most: with the .3 mm of an L11-5v, grating lobes 20 dB below the echo fill dark lesions with the tissue beside
them; here they are 48 dB below it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm_us.data.phantom.bmode import AMPLITUDE, SPEED_OF_SOUND, Scanner, blur_rows, display, gaussian
from ldm_us.data.phantom.grid import PIXELS, Array, Grid

PROBE = "L12-3v"  # Verasonics' linear array: band 3 to 12 MHz, pitch .2 mm; as many elements as the field asks for
FREQUENCY = 5.0  # MHz
CYCLES = 2.0  # of the pulse
ANGLES = (-12.0, 0.0, 12.0)  # degrees of the plane waves, compounded in intensity as the fast scanner's looks are
MARGIN = 3.0  # mm of elements beside the field on each side
TAPER = 6.0  # mm at each end over which transmission fades in: sharp ends send waves of their own
F_NUMBER = 1.2  # of the receiving aperture, which a Hann window weights
DENSITY = 16.0  # scatterers a mm2
STANDOFF = 2.0  # mm of gel between elements and skin: nearer, a pixel lies below one element or none
BATCH = 500  # scatterers at a time, of one depth: their matrix fits a core's cache, and their echoes are as long
LATTICE = 3.0  # mm between the scatterers that measure the response
SPREAD = 2.0  # mm, standard deviation of the blur that turns their echoes into it
ROWS = 16  # beamformed at a time
Places = NDArray[np.floating[Any]]  # depth and lateral position in mm, (2, n)


def scan(rng: np.random.Generator, grid: Grid, echo: Array, gain: Array, scanner: Scanner) -> Array:
    """The displayed image (PIXELS, PIXELS), 0 to 1, of maps in dB. `rng` draws the scatterers and the noise.

    Their echoes are divided by the mean response, as by a time gain set on a uniform medium: it takes out spreading,
    directivity, the growing aperture, and where oblique waves do not reach.
    """
    places = rng.uniform(0, grid.side, (2, round(DENSITY * grid.side**2)))
    rows, columns = np.minimum((places / grid.pitch).astype(int), PIXELS - 1)
    strength = np.exp(AMPLITUDE * (echo + gain))[rows, columns] * rng.standard_normal(rows.size, dtype=np.float32)
    n = int(grid.side / LATTICE)
    lattice = (np.indices((n, n)).reshape(2, -1) + 0.5) * (grid.side / n)
    image, single = intensities(grid, [(places, strength), (lattice, np.ones(n * n, np.float32))])
    kernel = gaussian(np.array([SPREAD / grid.pitch], np.float32))
    kernel /= kernel.sum()
    response = blur_rows(blur_rows(single, kernel).T.copy(), kernel).T * np.float32(rows.size / n**2)
    return display(rng, image / response, scanner)


def intensities(grid: Grid, media: list[tuple[Places, Array]]) -> list[Array]:
    """Squared envelopes of media (places and strengths of scatterers), summed over the waves: each (PIXELS, PIXELS)."""
    import pymust

    probe = pymust.getparam(PROBE)
    probe.Nelements = int(np.ceil((grid.side + 2 * MARGIN) * 1e-3 / probe.pitch))
    probe.fc, probe.c, probe.fnumber = FREQUENCY * 1e6, SPEED_OF_SOUND * 1e3, F_NUMBER  # SI units from here on
    probe.fs, probe.TXnow = 4 * probe.fc, CYCLES
    from_edge = (0.5 + np.minimum(np.arange(probe.Nelements), np.arange(probe.Nelements)[::-1])) * probe.pitch
    probe.TXapodization = np.square(np.sin(np.pi / 2 * np.minimum(from_edge * 1e3 / TAPER, 1)))[None]
    total = [np.zeros((PIXELS, PIXELS), np.float32) for _ in media]
    for angle in ANGLES:
        delays = pymust.txdelayPlane(probe, np.deg2rad(angle))
        echoes = [receive(pymust, probe, delays, grid, *medium) for medium in media]
        for k, image in enumerate(beamform(pymust, probe, delays, grid, echoes)):
            total[k] += np.square(np.abs(image)).astype(np.float32)
    return total


def receive(pymust: Any, probe: Any, delays: Array, grid: Grid, places: Places, strength: Array) -> Array:
    """The echoes at every element after one transmit: (samples, elements), as long as the farthest pixel needs."""
    options = pymust.utils.Options()
    options.dBThresh, options.ElementSplitting = -30.0, 1  # transmit and receive each; an element is a wavelength wide
    farthest = 2 * np.hypot(grid.side + STANDOFF, grid.side) * 1e-3 / probe.c + delays.max()
    echoes = np.zeros((int(farthest * probe.fs), probe.Nelements), np.float32)
    by_depth = np.argsort(places[0])
    for start in range(0, by_depth.size, BATCH):
        batch = by_depth[start : start + BATCH]
        z, x = metres(grid, *places[:, batch])
        some, _ = pymust.simus(x, z, strength[batch], delays, probe, options)
        echoes[: len(some)] += some[: len(echoes)]
    return echoes


def beamform(pymust: Any, probe: Any, delays: Array, grid: Grid, echoes: list[Array]) -> NDArray[np.complex128]:
    """Demodulate, delay and sum (samples, elements) at every pixel: (len(echoes), PIXELS, PIXELS).

    pymust's aperture is all or nothing; a Hann window over it keeps bright lines out of dark lesions beside them.
    """
    iq = np.stack([pymust.rf2iq(some, probe).flatten(order="F") for some in echoes], axis=1)
    element = (np.arange(probe.Nelements) - (probe.Nelements - 1) / 2) * probe.pitch
    bands = []
    for depth in np.split(grid.z, PIXELS // ROWS):
        z, x = (at.ravel() for at in metres(grid, *np.broadcast_arrays(depth, grid.x)))
        matrix = pymust.dasmtx(1j * np.array(echoes[0].shape), x, z, delays, probe, "linear").tocoo()
        across = (element[matrix.col // len(echoes[0])] - x[matrix.row]) * F_NUMBER / z[matrix.row]  # -1/2 to 1/2
        matrix.data *= np.square(np.cos(np.pi * across))
        bands.append((matrix.tocsr() @ iq).T.reshape(-1, ROWS, PIXELS))
    return np.concatenate(bands, axis=1)


def metres(grid: Grid, z: NDArray[Any], x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Depth below the elements and lateral position from their middle, in m, of positions in the field in mm."""
    return (z + STANDOFF) * 1e-3, (x - grid.side / 2) * 1e-3
