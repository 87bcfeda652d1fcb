"""A dataset of one's own, made up: thyroids with a nodule, for docs/own_data.md.   Scanner: ldm_us/data/phantom.

120 images of 60 patients, wider than high, in the folder `thyroid`. A mask file has labels of two structures: the lobe
(1, and 2 in it) and the nodule (2). Anatomy: skin, fat, strap muscles, and the lobe between carotid artery and trachea.

    python examples/own_organ.py
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from ldm_us.data.phantom.anatomy import FAT, GLAND, OTHER, fat_echo, muscle_echo
from ldm_us.data.phantom.bmode import depth_gain, draw_scanner, scan
from ldm_us.data.phantom.grid import Grid, smooth_curve, smooth_field, step
from ldm_us.data.phantom.lesion import benign, malignant

OUT, PATIENTS, CLASSES = Path("thyroid"), 60, ("benign", "suspicious")
SHOWN, SIZE = 172, (192, 129)  # rows of the scan, of 256; width and height of an image
STRUCTURES = {"lobe": [1, 2], "nodule": 2}
ABOUT = {"template": "Ultrasound image of a {label} thyroid nodule", "classes": CLASSES, "without": []}


def thyroid(rng: np.random.Generator, label: str) -> tuple[Image.Image, Image.Image]:
    """An image and its labels."""
    grid = Grid(side=rng.uniform(36, 42))
    z, x, side = grid.z, grid.x, grid.side
    skin = 1.5 + 0.1 * smooth_curve(rng, grid, 9)
    fat = skin + rng.uniform(1.5, 3) + 0.4 * smooth_curve(rng, grid, 6)
    strap = fat + rng.uniform(3, 4.5) + 0.4 * smooth_curve(rng, grid, 12)
    echo, attenuation = (np.full((z.size, x.size), value, np.float32) for value in (-15, OTHER))
    for texture, value, top in ((fat_echo, FAT, skin), (muscle_echo, OTHER, fat), (muscle_echo, OTHER, strap)):
        echo, attenuation = put(step(z - top, 0.15), texture(rng, grid), value, echo, attenuation)

    def oval(x0: float, z0: float, width: float, height: float) -> np.ndarray:
        """Millimetres from the outline of a wavy ellipse, above 0 inside."""
        wave = 0.05 * smooth_field(rng, grid, 5, 5)
        return (1 + wave - np.sqrt(((x - x0) / width) ** 2 + ((z - z0) / height) ** 2)) * min(width, height)

    middle = side * rng.uniform(0.45, 0.55), float(strap.mean()) + rng.uniform(6.5, 7.5)
    lobe = oval(*middle, rng.uniform(11, 13.5), rng.uniform(5.8, 7))
    artery = oval(middle[0] - rng.uniform(15, 16.5), middle[1] + rng.uniform(-2, 1), rng.uniform(2.6, 3.2), 3)
    trachea = oval(middle[0] + rng.uniform(17, 18.5), middle[1] + 3, 6.5, 6)
    x0, width, height = middle[0] + rng.uniform(-4, 4), rng.uniform(2.6, 5), rng.uniform(2, 3.6)
    place = {"x": x0, "z": middle[1], "width": width, "height": height}
    nodule = benign(rng, place, cyst=rng.random() < 0.3) if label == "benign" else malignant(rng, place)
    outside = (nodule.ratio(z, x) - 1) * nodule.radius
    inner = nodule.echo + nodule.heterogeneity * smooth_field(rng, grid, 1.2, 1.8)
    bright = rng.uniform(-17, -14) + 1.2 * smooth_field(rng, grid, 1, 2)
    for inside, texture, value in (
        (step(lobe, 0.25), bright, GLAND),
        (step(artery, 0.2), -60, 0.1),
        (step(trachea, 0.4), 8 * np.exp(-(trachea**2)) - 32, 3.0),
        (step(-outside, nodule.edge), inner, nodule.attenuation),
    ):
        echo, attenuation = put(inside, texture, value, echo, attenuation)
    scanner = draw_scanner(rng)
    shown = scan(rng, grid, echo, depth_gain(rng, grid, attenuation, scanner), scanner)[:SHOWN]
    labels = np.where(outside < 0, 2, lobe > 0)[:SHOWN].astype(np.uint8)
    image = Image.fromarray(np.rint(shown * 255).astype(np.uint8)).resize(SIZE, Image.Resampling.LANCZOS)
    return image, Image.fromarray(labels).resize(SIZE, Image.Resampling.NEAREST)


def put(inside: np.ndarray, texture: np.ndarray | float, value: float, echo: np.ndarray, attenuation: np.ndarray):
    """Echo (dB) and attenuation (dB/cm/MHz) with another tissue where `inside` is 1."""
    maps = echo + (texture - echo) * inside, attenuation + (value - attenuation) * inside
    return [one.astype(np.float32) for one in maps]


def main() -> None:
    """Write the folder: two images of each patient, whose class is that of the nodule."""
    OUT.mkdir()
    lines = []
    for i in range(2 * PATIENTS):
        label = CLASSES[i // 2 % 2]
        image, labels = thyroid(np.random.default_rng([0, i]), label)
        image.save(OUT / f"{i:03d}.png")
        labels.save(OUT / f"{i:03d}_labels.png")
        line = {"file_name": f"{i:03d}.png", "mask": f"{i:03d}_labels.png", "class": label, "group": str(i // 2)}
        lines.append(json.dumps(line))
    (OUT / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    (OUT / "dataset.json").write_text(json.dumps(ABOUT | {"structures": STRUCTURES}, indent=1) + "\n")


if __name__ == "__main__":
    main()
