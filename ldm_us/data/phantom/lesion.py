"""Lesions: a random outline, and how the tissue inside it scatters and attenuates.

Outline: R(theta) = 1 + sum_k a_k cos(k theta + phi_k), low orders for a benign mass; all orders and spicules for a
malignant one. Sonographic features: Stavros et al., Radiology 196 (1995) 123; attenuation: Duck, "Physical properties
of tissues" (1990); areas and shapes: the masks of BUSI.
"""

from dataclasses import dataclass

import numpy as np

from ldm_us.data.phantom.grid import Array

AREA = {"benign": (0.042, 0.95, 0.008, 0.24), "malignant": (0.110, 0.70, 0.025, 0.34)}  # median, log sd, least, most
ASPECT = {"benign": 0.62, "malignant": 0.76}  # median height / width
CYSTS = 0.45  # share of the benign lesions


@dataclass(frozen=True)
class Lesion:
    """One lesion. Lengths in mm, angles in rad, echogenicity in dB, attenuation in dB/cm/MHz."""

    kind: str  # cyst, solid or malignant
    z: float  # centre
    x: float
    width: float  # semi-axes
    height: float
    tilt: float
    orders: Array  # k, a_k, phi_k: (3, n)
    spicules: Array  # angle, angular width, length as a share of R: (3, m)
    echo: float  # inside, in dB
    attenuation: float
    heterogeneity: float  # dB, standard deviation of the echogenicity inside
    rim: float  # dB, of the capsule or the echogenic halo
    rim_width: float
    edge: float  # mm, over which tissue turns into lesion

    def ratio(self, z: Array, x: Array) -> Array:
        """rho / R(theta) at points in mm: below 1 inside, 1 on the outline."""
        c, s = np.float32(np.cos(self.tilt)), np.float32(np.sin(self.tilt))
        u = ((x - self.x) * c + (z - self.z) * s) / np.float32(self.width)
        v = ((z - self.z) * c - (x - self.x) * s) / np.float32(self.height)
        theta = np.arctan2(v, u)
        radius = np.ones_like(theta)
        for order, amplitude, phase in self.orders.T:
            radius += amplitude * np.cos(order * theta + phase)
        for angle, spread, length in self.spicules.T:
            away = np.abs(np.mod(theta - angle + np.pi, 2 * np.pi) - np.pi)
            radius += length * np.exp(-away / spread)
        return np.sqrt(u * u + v * v) / np.maximum(radius, np.float32(0.3))

    @property
    def radius(self) -> float:
        """Geometric mean of the semi-axes, to turn ratios into mm."""
        return float(np.sqrt(self.width * self.height))


def draw_lesion(rng: np.random.Generator, label: str, side: float, share: float = 1.0) -> Lesion:
    """A random lesion of class `label` inside a field of `side` mm, `share` of the usual area."""
    median, spread, least, largest = AREA[label]
    area = np.clip(median * np.exp(spread * rng.standard_normal()), least, largest) * share * side**2
    aspect = ASPECT[label] * np.exp((0.22 if label == "benign" else 0.28) * rng.standard_normal())
    width = min(float(np.sqrt(area / (np.pi * aspect))), 0.44 * side)
    height = min(width * aspect, 0.36 * side)
    low, high = 2.5 + height * 1.1, max(2.6 + height * 1.1, 0.74 * side - height)
    z = rng.uniform(low, max(low + 0.1, min(high, low + 0.4 * side)))
    margin = min(width * 1.1, 0.48 * side)
    x = rng.uniform(margin, side - margin)
    place = {"z": z, "x": x, "width": width, "height": height}
    if label == "malignant":
        return malignant(rng, place)
    return benign(rng, place, cyst=rng.random() < CYSTS)


def benign(rng: np.random.Generator, place: dict[str, float], cyst: bool) -> Lesion:
    """A smooth oval: an anechoic cyst, or a hypoechoic solid mass with a thin capsule."""
    k = np.arange(2, 5)
    amplitudes = rng.normal(0, 0.055, k.size) / (k - 1)
    orders = np.stack([k, amplitudes, rng.uniform(0, 2 * np.pi, k.size)]).astype(np.float32)
    return Lesion(
        kind="cyst" if cyst else "solid",
        **place,
        tilt=rng.normal(0, 0.15),
        orders=orders,
        spicules=np.zeros((3, 0), np.float32),
        echo=rng.uniform(-52, -38) if cyst else rng.uniform(-36, -29),
        attenuation=rng.uniform(0.0, 0.1) if cyst else rng.uniform(0.05, 0.4),
        heterogeneity=rng.uniform(0, 1.0) if cyst else rng.uniform(0.5, 2.0),
        rim=rng.uniform(0, 7),
        rim_width=rng.uniform(0.15, 0.35),
        edge=rng.uniform(0.1, 0.3),
    )


def malignant(rng: np.random.Generator, place: dict[str, float]) -> Lesion:
    """An irregular, spiculated, heterogeneous mass with an echogenic halo; a third attenuates much, with a shadow."""
    k = np.arange(2, 12)
    amplitudes = rng.normal(0, rng.uniform(0.12, 0.25), k.size) / k**0.8
    orders = np.stack([k, amplitudes, rng.uniform(0, 2 * np.pi, k.size)]).astype(np.float32)
    n = int(rng.integers(3, 14))
    longest = rng.uniform(0.1, 0.4)
    spicules = [rng.uniform(-np.pi, np.pi, n), rng.uniform(0.05, 0.16, n), rng.uniform(0.05, longest, n)]
    dense = rng.random() < 0.35
    return Lesion(
        kind="malignant",
        **place,
        tilt=rng.normal(0, 0.35),
        orders=orders,
        spicules=np.stack(spicules).astype(np.float32),
        echo=rng.uniform(-36, -29),
        attenuation=rng.uniform(0.9, 1.25) if dense else rng.uniform(0.5, 0.85),
        heterogeneity=rng.uniform(1.5, 3.5),
        rim=rng.uniform(0, 7),
        rim_width=rng.uniform(0.8, 2.0),
        edge=rng.uniform(0.25, 0.9),
    )
