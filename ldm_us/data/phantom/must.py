"""A B-mode scan of an anatomy by physics: point scatterers, SIMUS, plane waves, delay and sum, log compression.

SIMUS gives what every element of a linear array receives from point scatterers after each transmit, element by element,
scatterer by scatterer and frequency by frequency, in the plane: D. Garcia, Comput. Methods Programs Biomed. 218 (2022)
106726. Here by pymust, the Python port of the MUST toolbox (extra `simulation`), as is the delay and sum.

What is not physics: attenuation. SIMUS knows one coefficient for the whole medium; an anatomy has a map. So what the
tissue above attenuates, against the time gain, is applied to the scatterers' reflectivity, in dB, as the fast scanner
applies it to its image: a shadow or an enhancement is where the anatomy has it. Sound goes straight, at one speed, and is
scattered once: no refraction, no reverberation.

Why these numbers. SIMUS takes .3 ms of one core for a scatterer and a transmit, at 130 elements and some 900
frequencies. A resolution cell at 6 MHz (half widths of the point response: axially .3 mm, laterally .6 mm) with 4
scatterers, which is where speckle begins to be that of many (Wagner 1983, Oelze 2016), asks for 20 a mm2: 18,000 to
35,000 in a field of 30 to 42 mm, 16 to 32 s for three plane waves. At the probe's own 7.6 MHz it were twice that.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm_us.data.phantom.bmode import AMPLITUDE, SPEED_OF_SOUND, Scanner, blur_rows, display, gaussian
from ldm_us.data.phantom.grid import PIXELS, Array, Grid

PROBE = "L11-5v"  # Verasonics' linear array: pitch .3 mm, band 5 to 11 MHz; as many elements as the field is wide
FREQUENCY = 6.0  # MHz
ANGLES = (-14.0, 0.0, 14.0)  # degrees of the plane waves, compounded in intensity as the fast scanner's looks are
DENSITY = 20.0  # scatterers a mm2
F_NUMBER = 1.75  # of the receiving aperture
STANDOFF = 2.0  # mm of gel between elements and skin: nearer, a pixel lies below one element or none
BATCH = (
    500  # scatterers at a time: their matrix fits a core's cache; those of one depth share the length of their echoes
)
LATTICE = 3.0  # mm between the scatterers that measure the response
SPREAD = 2.0  # mm, standard deviation of the blur that turns their echoes into it
ROWS = 16  # beamformed at a time
Places = NDArray[np.float64]  # depth and lateral position in mm, (2, n)


def scan(rng: np.random.Generator, grid: Grid, echo: Array, gain: Array, scanner: Scanner) -> Array:
    """The displayed image (PIXELS, PIXELS), 0 to 1, of maps in dB. `rng` draws the scatterers and the noise."""
    places = rng.uniform(0, grid.side, (2, round(DENSITY * grid.side**2)))
    rows, columns = np.minimum((places / grid.pitch).astype(int), PIXELS - 1)
    strength = np.exp(AMPLITUDE * (echo + gain))[rows, columns] * rng.standard_normal(rows.size, dtype=np.float32)
    received = intensity(grid, places, strength) / response(grid) * np.float32(1 / (DENSITY * grid.side**2))
    return display(rng, received, scanner)


def response(grid: Grid) -> Array:
    """Mean intensity of one scatterer of strength 1 in the field, where each would be: (PIXELS, PIXELS).

    What a time gain set on a uniform medium takes out: spreading, directivity, the growing aperture, and where oblique
    waves do not reach.
    """
    n = int(grid.side / LATTICE)
    lattice = (np.indices((n, n)).reshape(2, -1) + 0.5) * (grid.side / n)
    kernel = gaussian(np.array([SPREAD / grid.pitch], np.float32))
    kernel /= kernel.sum()
    echoes = intensity(grid, lattice, np.ones(n * n, np.float32)) / np.float32(n * n)
    return blur_rows(blur_rows(echoes, kernel).T.copy(), kernel).T


def intensity(grid: Grid, places: Places, strength: Array) -> Array:
    """Squared envelope of the beamformed echoes of scatterers, summed over the plane waves: (PIXELS, PIXELS)."""
    import pymust

    probe = pymust.getparam(PROBE)
    probe.Nelements = int(np.ceil(grid.side * 1e-3 / probe.pitch))
    probe.fc, probe.c, probe.fnumber = FREQUENCY * 1e6, SPEED_OF_SOUND * 1e3, F_NUMBER  # SI units from here on
    probe.fs = 4 * probe.fc
    total = np.zeros((PIXELS, PIXELS), np.float32)
    for angle in ANGLES:
        delays = pymust.txdelayPlane(probe, np.deg2rad(angle))
        image = beamform(pymust, probe, delays, grid, receive(pymust, probe, delays, grid, places, strength))
        total += np.square(np.abs(image))
    return total


def receive(pymust: Any, probe: Any, delays: Array, grid: Grid, places: Places, strength: Array) -> Array:
    """The echoes at every element after one transmit: (samples, elements)."""
    options = pymust.utils.Options()
    options.dBThresh, options.ElementSplitting = (
        -30.0,
        1,
    )  # of transmit and receive each; an element is a wavelength wide
    echoes = np.zeros((0, probe.Nelements), np.float32)
    by_depth = np.argsort(places[0])
    for start in range(0, by_depth.size, BATCH):
        batch = by_depth[start : start + BATCH]
        z, x = metres(grid, *places[:, batch])
        some, _ = pymust.simus(x, z, strength[batch], delays, probe, options)
        echoes = np.pad(echoes, ((0, max(0, len(some) - len(echoes))), (0, 0)))
        echoes[: len(some)] += some
    return echoes


def beamform(pymust: Any, probe: Any, delays: Array, grid: Grid, echoes: Array) -> NDArray[np.complex64]:
    """Delay and sum of the demodulated echoes at every pixel: (samples, elements) -> (PIXELS, PIXELS)."""
    iq = pymust.rf2iq(echoes, probe).flatten(order="F")
    bands = []
    for z in np.split(grid.z, PIXELS // ROWS):
        depth, lateral = metres(grid, *np.broadcast_arrays(z, grid.x))
        matrix = pymust.dasmtx(1j * np.array(echoes.shape), lateral, depth, delays, probe, "linear")
        bands.append((matrix @ iq).reshape(lateral.shape, order="F"))
    return np.concatenate(bands).astype(np.complex64)


def metres(grid: Grid, z: NDArray[Any], x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Depth below the elements and lateral position from their middle, in m, of positions in the field in mm."""
    return (z + STANDOFF) * 1e-3, (x - grid.side / 2) * 1e-3
