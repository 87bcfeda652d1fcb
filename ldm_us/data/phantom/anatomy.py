"""The breast as layers with random boundaries: how strongly each point scatters and attenuates.

Layers from the skin down: skin, subcutaneous fat with Cooper's ligaments, fibroglandular tissue with strands and ducts,
retromammary fat, the pectoral muscle between its fasciae, and ribs over the pleura (Kopans, "Breast Imaging", ch. 2).
Attenuation in dB/cm/MHz: Duck, "Physical properties of tissues" (1990); fat .43, fibroglandular .80, others .55.
"""

import numpy as np

from ldm_us.data.phantom.grid import Array, Grid, smooth_curve, smooth_field, step, strands, warp
from ldm_us.data.phantom.lesion import Lesion

FAT, GLAND, OTHER, RIB = 0.43, 0.80, 0.55, 2.2  # attenuation in dB/cm/MHz
Layers = list[Array]  # depth of the lower boundary in mm, (1, PIXELS) each: skin, fat, gland, retromammary fat, muscle


def draw_anatomy(rng: np.random.Generator, grid: Grid, lesions: list[Lesion]) -> tuple[Array, Array]:
    """A random breast, its strands bent around the lesions, and the lesions in it.

    Maps (PIXELS, PIXELS): echogenicity in dB, attenuation in dB/cm/MHz.
    """
    density = rng.uniform()  # 0: fatty, 1: dense breast
    layers = draw_layers(rng, grid, density)
    echo = layered_echo(rng, grid, layers, density)
    attenuation = layered_attenuation(grid, layers)
    rows, columns = bend(rng, grid, lesions)
    echo, attenuation = warp(np.stack([echo, attenuation]), rows, columns)
    for lesion in lesions:
        echo, attenuation = insert_lesion(rng, grid, lesion, echo, attenuation)
    return echo, attenuation


def draw_layers(rng: np.random.Generator, grid: Grid, density: float) -> Layers:
    """Random boundaries from the skin down; a fatty breast has more fat and less gland."""

    def boundary(above: Array | float, thickness: float, roughness: float, cell: float) -> Array:
        wave = roughness * smooth_curve(rng, grid, cell)
        return (above + np.maximum(thickness + wave, 0.3 * thickness)).astype(np.float32)

    skin = boundary(0.0, rng.uniform(1.0, 2.0), 0.1, 9)
    fat = boundary(skin, rng.uniform(2.0, 5.0) + 5.0 * (1 - density) * rng.uniform(), rng.uniform(0.5, 1.6), 6)
    gland = boundary(fat, rng.uniform(7.0, 12.0) + 6.0 * density, rng.uniform(0.6, 1.8), 9)
    retromammary = boundary(gland, rng.uniform(0.8, 3.5), 0.5, 8)
    muscle = boundary(retromammary, rng.uniform(4.0, 8.0), 0.7, 14)
    return [skin, fat, gland, retromammary, muscle]


def layered_echo(rng: np.random.Generator, grid: Grid, layers: Layers, density: float) -> Array:
    """Echogenicity in dB of the layers, before bending."""
    z = grid.z
    skin, fat, _, retromammary, muscle = layers
    echo = np.full((z.size, z.size), rng.uniform(-18, -13), np.float32)  # skin
    echo += 5 * strands(z - 0.6 * skin, 0.25)
    textures = (fat_echo(rng, grid), gland_echo(rng, grid, density), fat_echo(rng, grid), muscle_echo(rng, grid))
    for texture, top in zip(textures, layers[:-1], strict=True):
        echo += (texture - echo) * step(z - top, 0.15)
    echo += (rng.uniform(-36, -28) + 2 * smooth_field(rng, grid, 2, 6) - echo) * step(z - muscle, 0.3)
    for boundary, strength in ((fat, 4.0), (retromammary, 8.0), (muscle, 7.0)):
        bright = strength * rng.uniform(0.3, 1.2) * np.clip(0.6 + 0.9 * smooth_field(rng, grid, 9, 5), 0, 2)
        echo += bright * strands(z - boundary, rng.uniform(0.2, 0.5))
    if rng.random() < 0.5:
        echo += rng.uniform(8, 16) * ribs(rng, grid, muscle)
    return echo.astype(np.float32)


def fat_echo(rng: np.random.Generator, grid: Grid) -> Array:
    """Dark lobules between thin bright septa, Cooper's ligaments."""
    lobules = smooth_field(rng, grid, rng.uniform(1.8, 3.2), rng.uniform(4.0, 8.0))
    fine = smooth_field(rng, grid, 0.8, 2.5)
    septa = strands(lobules, 0.15) * np.clip(0.8 + 0.5 * smooth_field(rng, grid, 3, 5), 0, 1.5)
    base = rng.uniform(-28, -23)
    return base + 1.2 * fine + rng.uniform(8, 14) * septa + 5 * strands(fine, 0.15) * (lobules > -0.3)


def gland_echo(rng: np.random.Generator, grid: Grid, density: float) -> Array:
    """Bright fibrous tissue: layered texture, curved strands at three scales, dark lobules and ducts."""
    base = rng.uniform(-26, -20)
    layered = smooth_field(rng, grid, 1.2, 7.0) + 0.7 * smooth_field(rng, grid, 0.6, 3.0)
    echo = base + rng.uniform(1.2, 2.5) * layered
    contrast = rng.uniform(0.8, 2.0)
    for cell_z, cell_x, width, strength in ((2.0, 9.0, 0.22, 9.0), (1.2, 6.0, 0.25, 8.0), (0.7, 4.0, 0.28, 6.0)):
        gate = contrast * np.clip(0.6 + 0.7 * smooth_field(rng, grid, 3.5, 6.0), 0, 1.5)
        lines = strands(smooth_field(rng, grid, cell_z, cell_x), width)
        echo += strength * gate * lines
    holes = smooth_field(rng, grid, rng.uniform(1.0, 2.2), rng.uniform(2.0, 5.0))
    threshold = 0.5 + 1.2 * density  # fat lobules between the fibres: many in a fatty breast
    echo -= rng.uniform(5, 11) * step(holes - np.float32(threshold), 0.15)
    return echo.astype(np.float32)


def muscle_echo(rng: np.random.Generator, grid: Grid) -> Array:
    """Dark muscle with long parallel bright fibres."""
    fibres = strands(smooth_field(rng, grid, rng.uniform(0.6, 1.0), rng.uniform(9, 16)), 0.25)
    gate = np.clip(0.6 + 0.6 * smooth_field(rng, grid, 2.5, 8), 0, 1.3)
    return rng.uniform(-29, -24) + rng.uniform(5, 9) * fibres * gate + smooth_field(rng, grid, 1, 5)


def layered_attenuation(grid: Grid, layers: Layers) -> Array:
    """Attenuation in dB/cm/MHz of the layers, before bending."""
    z = grid.z
    values = np.full((z.size, z.size), OTHER, np.float32)
    for value, top in zip((FAT, GLAND, FAT, OTHER), layers[:-1], strict=True):
        values += (np.float32(value) - values) * step(z - top, 0.3)
    return values


def ribs(rng: np.random.Generator, grid: Grid, muscle: Array) -> Array:
    """The upper surfaces of ribs every 19 to 27 mm below the muscle, and the pleura between them: 0 to 1."""
    spacing = rng.uniform(19, 27)
    first = rng.uniform(-0.5, 0.5) * spacing
    phase = np.mod(grid.x - first, spacing) - spacing / 2
    half_width = rng.uniform(3.5, 6.0)
    arch = muscle + 0.6 + 2.2 * (phase / half_width) ** 2
    surface = strands(grid.z - arch, 0.35) * (np.abs(phase) < half_width)
    pleura = strands(grid.z - muscle - rng.uniform(4, 6), 0.35) * (np.abs(phase) > half_width)
    return (surface + 0.8 * pleura).astype(np.float32)


def bend(rng: np.random.Generator, grid: Grid, lesions: list[Lesion]) -> tuple[Array, Array]:
    """Where each point lay before the tissue was bent: (rows, columns) in pixels.

    Smooth displacements give the strands their curves; a benign mass pushes the tissue around it aside, a malignant one
    draws it in.
    """
    z, x = grid.z, grid.x
    calm = step(z - 2.5, 1.0)  # the skin lies flat under the transducer
    tilt = rng.normal(0, 0.06) * (x - grid.side / 2)
    depth = z + calm * (
        tilt
        + rng.uniform(0.5, 1.8) * smooth_field(rng, grid, 7, 9)
        + rng.uniform(0.2, 0.7) * smooth_field(rng, grid, 3, 4)
    )
    lateral = x + calm * rng.uniform(0.5, 2.0) * smooth_field(rng, grid, 5, 9)
    for lesion in lesions:
        push = -0.25 if lesion.kind == "malignant" else 0.75
        squared = ((x - lesion.x) / lesion.width) ** 2 + ((z - lesion.z) / lesion.height) ** 2
        pull = calm * push * np.exp(-0.5 * squared / 1.4**2)
        depth -= pull * (z - lesion.z)
        lateral -= pull * (x - lesion.x)
    return (depth / grid.pitch - 0.5).astype(np.float32), (lateral / grid.pitch - 0.5).astype(np.float32)


def insert_lesion(
    rng: np.random.Generator, grid: Grid, lesion: Lesion, echo: Array, attenuation: Array
) -> tuple[Array, Array]:
    """Replace the tissue inside the outline, draw the rim, and scatter micro-calcifications in some cancers."""
    outside = (lesion.ratio(grid.z, grid.x) - 1) * lesion.radius  # mm
    inside = step(-outside, lesion.edge * np.clip(1 + 0.5 * smooth_field(rng, grid, 3, 3), 0.3, 2))
    texture = lesion.echo + lesion.heterogeneity * smooth_field(rng, grid, 1.2, 1.8)
    if lesion.kind == "malignant" and rng.random() < 0.4:
        cluster = outside + 2.5 * np.abs(smooth_field(rng, grid, 4, 4)) < -1.0
        spots = (rng.random(inside.shape, dtype=np.float32) < 0.0035) & cluster
        texture = texture + rng.uniform(12, 20) * spots
    facing = np.clip(0.1 + np.abs(grid.z - lesion.z) / lesion.height, 0, 1.2)  # walls across the beam reflect most
    patches = np.clip(0.8 + 0.5 * smooth_field(rng, grid, 2, 2), 0, 1.6)
    rim = lesion.rim * patches * np.exp(-np.square((outside - lesion.rim_width) / lesion.rim_width))
    echo = echo + rim * (facing if lesion.kind != "malignant" else 1.0)
    echo = echo + (texture - echo) * inside
    attenuation = attenuation + (np.float32(lesion.attenuation) - attenuation) * inside
    return echo.astype(np.float32), attenuation.astype(np.float32)
