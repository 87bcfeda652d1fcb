"""How real do ultrasound images look in figures that sonography knows: speckle, texture, depth, lesions, artefacts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ldm_us.data.audit.statistics import BANDS, depth_profile, high_passed, inside_and_ring, lesion_figures
from ldm_us.data.framing import Framing, placed
from ldm_us.data.medical import Spacing
from ldm_us.data.opening import open_image
from ldm_us.data.records import Record, load_framed
from ldm_us.data.regions import height_over_width
from ldm_us.evaluation.realism.speckle import Block, correlation_width, homogeneous_blocks, speckle_figures, widest
from ldm_us.evaluation.sets.image_sets import grey_deviation

CORNER = 16  # a corner is a sixteenth of the image high and wide
BLACK = 10.0  # grey levels, mean of a black corner
BINS = 32  # of 8 grey levels, for gCNR: a small lesion has too few pixels to fill 256


@dataclass(frozen=True)
class Figure:
    """One number of an image."""

    title: str
    unit: str
    of_lesions: bool = False  # compared class by class, among the images with a lesion
    log_scale: bool = False  # in the picture
    of_masks: bool = False  # that of a reconstruction is that of its image


FIGURES = {
    "nakagami_m": Figure("Nakagami m", "1 for raw speckle", log_scale=True),
    "envelope_snr": Figure("Envelope SNR", "1.91 for raw speckle"),
    "detail": Figure("Fine detail", "grey levels, sd of the high-passed image"),
    "axial_width": Figure("Axial grain", "pixels, width of the autocorrelation"),
    "lateral_width": Figure("Lateral grain", "pixels, width of the autocorrelation"),
    "mean_grey": Figure("Mean grey", "grey levels, of the whole image"),
    **{f"depth_{i}": Figure(f"Depth band {i} of {BANDS}", "grey levels") for i in range(1, BANDS + 1)},
    "lesion_shape": Figure("Lesion shape", "height / width of the mask", of_lesions=True, of_masks=True),
    "lesion_contrast": Figure("Lesion contrast", "grey levels, inside minus ring", of_lesions=True),
    "gcnr": Figure("Lesion gCNR", "0 hidden, 1 apart", of_lesions=True),
    "posterior": Figure("Behind the lesion", "grey levels, strip minus flanks", of_lesions=True),
}


@dataclass
class Measured:
    """The figures of a set, image by image."""

    names: list[str] = field(default_factory=list)  # of the files, without their endings
    labels: list[str] = field(default_factory=list)
    greys: list[np.ndarray] = field(default_factory=list)  # (h, w), uint8
    figures: list[dict[str, float]] = field(default_factory=list)
    black_corners: list[bool] = field(default_factory=list)
    grey_deviation: list[int] = field(default_factory=list)  # grey levels between red, green and blue
    scales: list[Spacing | None] = field(default_factory=list)  # mm of a pixel as measured, where it is known
    bounds: dict[str, float] = field(default_factory=dict)  # of a figure: such a value is known to be no less, no more

    def add(
        self,
        name: str,
        label: str,
        grey: np.ndarray,
        figures: dict[str, float],
        deviation: int,
        scale: Spacing | None = None,
    ) -> None:
        """Take in one image (h, w)."""
        self.names.append(name)
        self.labels.append(label)
        self.scales.append(scale)
        self.greys.append(grey)
        self.figures.append(figures)
        self.black_corners.append(has_black_corners(grey))
        self.grey_deviation.append(deviation)

    def of(self, name: str, label: str | None = None) -> np.ndarray:
        """The values of a figure, NaN where an image has none; of a class or of all images."""
        values = np.array([figures[name] for figures in self.figures])
        return values if label is None else values[self.members(label)]

    def members(self, label: str) -> np.ndarray:
        """Which images are of a class: (n,) of bools."""
        return np.array(self.labels) == label


def has_black_corners(grey: np.ndarray) -> bool:
    """Whether both upper corners of an image (h, w) are black: in BUSI that gives malignant images away."""
    down, across = (max(1, length // CORNER) for length in grey.shape)
    return bool(grey[:down, :across].mean() < BLACK and grey[:down, -across:].mean() < BLACK)


def gcnr(inside: np.ndarray, outside: np.ndarray) -> float:
    """1 less the overlap of two histograms of grey levels 0..255: 0 for the same, 1 for disjoint ones; NaN if empty.

    How well a lesion stands out, whatever the grey curve of the display: the share of pixels, less that by chance, that
    the best threshold tells apart, so that log compression and gain hardly change it. Few pixels fill the bins by
    chance: below about 200 it comes out too high. Rodriguez-Molares et al., "The generalized contrast-to-noise ratio",
    IEEE Trans. UFFC 67(4) (2020) 745-759.
    """
    if inside.size == 0 or outside.size == 0:
        return math.nan
    shares = [np.histogram(values, BINS, (0, 256))[0] / values.size for values in (inside, outside)]
    return float(1 - np.minimum(*shares).sum())


def figures_of(
    grey: np.ndarray, lesion: np.ndarray | None, dynamic_range: float, blocks: list[Block], side: int
) -> dict[str, float]:
    """Every figure of a grey image (h, w), uint8, and of its lesion (h, w), bool, if any; NaN for what it lacks.

    side: of a square of about its area.
    """
    detail = high_passed(grey)
    m, snr = speckle_figures(grey, blocks, dynamic_range)
    contrast = apart = posterior = shape = math.nan
    if lesion is not None:
        shape = height_over_width(lesion)
        contrast, posterior = lesion_figures(grey.astype(np.float64), lesion)
        apart = gcnr(*inside_and_ring(grey, lesion))
    return {
        "nakagami_m": m,
        "envelope_snr": snr,
        "detail": float(detail.std()),
        "axial_width": correlation_width(detail, side),
        "lateral_width": correlation_width(detail.T, side),
        "mean_grey": float(grey.mean()),
        **{f"depth_{i}": mean for i, mean in enumerate(depth_profile(grey), start=1)},
        "lesion_shape": shape,
        "lesion_contrast": contrast,
        "gcnr": apart,
        "posterior": posterior,
    }


def measure(
    records: Sequence[Record],
    framing: Framing,
    dynamic_range: float,
    on_image: Callable[[], object],
    change: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Measured, Measured]:
    """Measure every image of a set in its size of a Framing, and what `change` makes of (1, 3, H, W).

    The second is measured in the same homogeneous blocks, those of the image; it is empty without `change`.
    """
    side = framing.side
    bounds = dict.fromkeys(("axial_width", "lateral_width"), widest(side))
    measured = Measured(bounds=bounds), Measured(bounds=bounds)
    for record in records:
        x, hint = load_framed(record, framing)
        lesion = hint[0].numpy() > 0 if bool(hint.any()) else None
        blocks = homogeneous_blocks(to_grey(x), lesion)
        picture = open_image(record.image)
        versions, scale = [(x, grey_deviation(picture))], None
        if record.spacing is not None:  # of the file
            part, place = placed(framing.frame(*picture.size), *picture.size)
            across, down = ((part[i + 2] - part[i]) / (place[i + 2] - place[i]) for i in (0, 1))
            scale = record.spacing[0] * down, record.spacing[1] * across
        if change is not None:
            x_hat = change(x[None])[0]
            versions.append((x_hat, channel_deviation(x_hat)))
        for one, (version, deviation) in zip(measured, versions, strict=False):
            grey = to_grey(version)
            figures = figures_of(grey, lesion, dynamic_range, blocks, side)
            one.add(record.image.stem, record.label, grey, figures, deviation, scale)
        on_image()
    return measured


def to_grey(x: Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1] -> its mean over the channels, (H, W), uint8."""
    return np.rint((x.mean(dim=0).numpy() + 1) * 127.5).astype(np.uint8)


def channel_deviation(x: Tensor) -> int:
    """(3, H, W) in [-1, 1] -> the largest difference of two channels in a pixel, in grey levels."""
    return int(torch.round((x.amax(dim=0) - x.amin(dim=0)).max() * 127.5))
