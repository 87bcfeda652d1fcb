"""Grey-level statistics of breast ultrasound images, to compare a data set, phantoms or samples with another.

The statistics of a dataset are those of its images at 256x256; at another size every length in pixels is scaled with
the side of the image. B-mode figures of this kind: Insana and Brown, "Acoustic scattering theory
applied to soft biological tissues" (1993), for the speckle; the lesion figures follow the sonographic features of
BI-RADS (contrast of the lesion, shadow or enhancement behind it).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from ldm_us.data.opening import open_image
from ldm_us.data.records import Record, mask_tensor, union_of_masks

SIZE = 256  # pixels of one side; the lengths below, LAGS apart, are those at this size
BANDS = 8  # of the depth profile
LAGS = (1, 2, 3)  # pixels
HIGH_PASS = 7.5  # pixels, standard deviation of the Gaussian that is subtracted
RING = 8  # pixels, width of the ring around a lesion
BEHIND = 3  # pixels between a lesion and the strip behind it
SMALLEST_LESION = 64  # pixels; a smaller mask has no inside to speak of


def image_statistics(image: np.ndarray, mask: np.ndarray | None = None) -> dict[str, Any]:
    """Figures of a grey image (256, 256), 0 to 255, and of the lesion where `mask` (256, 256) is true, else NaN."""
    grey = image.astype(np.float64)
    detail = high_passed(image)
    contrast, posterior = (np.nan, np.nan) if mask is None else lesion_figures(grey, mask)
    return {
        "mean": float(grey.mean()),
        "std": float(grey.std()),
        "depth_profile": depth_profile(grey),
        "axial": autocorrelation(detail),  # along depth
        "lateral": autocorrelation(detail.T),  # across
        "lesion_contrast": contrast,  # inside minus the ring around it
        "posterior": posterior,  # strip below the lesion minus its flanks: shadow below 0, enhancement above
    }


def depth_profile(grey: np.ndarray) -> tuple[float, ...]:
    """Mean grey of BANDS equal bands of an image (h, w), from the skin down."""
    return tuple(float(band.mean()) for band in np.array_split(grey, BANDS))


def side_of(image: np.ndarray) -> float:
    """The side of a square with the area of an image (h, w): what lengths are scaled with."""
    return math.sqrt(image.shape[0] * image.shape[1])


def high_passed(image: np.ndarray) -> np.ndarray:
    """A grey image (h, w), uint8, less its Gaussian mean: what is left is texture and edges. float64."""
    smooth = Image.fromarray(image).filter(ImageFilter.GaussianBlur(HIGH_PASS * side_of(image) / SIZE))
    return image.astype(np.float64) - np.asarray(smooth, dtype=np.float64)


def autocorrelation(detail: np.ndarray, lags: Iterable[int] = LAGS) -> tuple[float, ...]:
    """Correlation of an image (h, w) with itself moved down by each of the lags."""
    power = float((detail * detail).mean())
    return tuple(float((detail[lag:] * detail[:-lag]).mean()) / max(power, 1e-12) for lag in lags)


def inside_and_ring(grey: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The grey levels (n,) of a lesion and (m,) of the ring around it; both empty where the lesion is too small."""
    if mask.sum() < SMALLEST_LESION * mask.size / SIZE**2:
        return np.empty(0), np.empty(0)
    reach = max(1, round(RING * side_of(mask) / SIZE))
    grown = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(2 * reach + 1))
    return grey[mask], grey[(np.asarray(grown) > 0) & ~mask]


def lesion_figures(grey: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Contrast with the ring around the lesion, and the strip below the lesion against the strips beside it."""
    inside, ring = inside_and_ring(grey, mask)
    if inside.size == 0 or ring.size == 0:
        return np.nan, np.nan
    contrast = float(inside.mean() - ring.mean())

    scale = side_of(mask) / SIZE
    rows, columns = np.nonzero(mask)
    top = rows.max() + max(1, round(BEHIND * scale))
    bottom = min(top + max(round(8 * scale), (np.ptp(rows) + 1) // 2), len(mask))
    left, right = columns.min(), columns.max() + 1
    inset, width = (right - left) // 4, right - left
    below = grey[top:bottom, left + inset : right - inset]
    before = grey[top:bottom, max(0, left - width // 2) : left]
    after = grey[top:bottom, right : right + width // 2]
    flanks = np.concatenate([before.ravel(), after.ravel()])
    if below.size == 0 or flanks.size == 0:
        return contrast, np.nan
    return contrast, float(below.mean() - flanks.mean())


def record_statistics(record: Record) -> dict[str, Any]:
    """Figures of one image file."""
    image = np.array(open_image(record.image).convert("L").resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    union = union_of_masks(record.masks)
    if union is None:
        return image_statistics(image)
    return image_statistics(image, mask_tensor(union, SIZE)[0].numpy() > 0)


def summarize(records: Sequence[Record], statistics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over images, and of the lesion figures over each class, ready for JSON."""
    lesions: dict[str, dict[str, float]] = {}
    for label in sorted({record.label for record in records}):
        of_class = [s for s, record in zip(statistics, records, strict=True) if record.label == label]
        for name in ("lesion_contrast", "posterior"):
            known = [s[name] for s in of_class if not np.isnan(s[name])]
            if known:
                lesions.setdefault(label, {})[name] = round(float(np.mean(known)), 1)
    means = {name: np.mean([s[name] for s in statistics], axis=0) for name in statistics[0]}
    return {
        "images": len(statistics),
        "mean": round(float(means["mean"]), 1),
        "std": round(float(means["std"]), 1),
        **{name: np.round(means[name], 2).tolist() for name in ("depth_profile", "axial", "lateral")},
        "lesions": lesions,
    }
