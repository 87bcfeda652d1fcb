"""Distances between the distributions of two sets of vectors, (n, d) float64 each.

FID, the Frechet distance of the Gaussians with their means and covariances: Heusel et al., arXiv 1706.08500, Eq. 6.
KID, the unbiased squared MMD with the kernel (a.b / d + 1)^3: Binkowski et al., arXiv 1801.01401, section 4.
Precision and recall, by 3 nearest neighbours: Kynkaanniemi et al., arXiv 1904.06991, Eq. 1 and 2.
Density and coverage, by 5 nearest neighbours: Naeem et al., arXiv 2002.09797, section 3.

torchmetrics has the kernel estimate, scikit-learn the neighbours.
"""

import math
from typing import Any

import torch
from torch import Tensor

PRECISION_K = 3
DENSITY_K = 5
SUBSETS = 100  # of KID
SUBSET_SIZE = 1000  # of KID at most: half of the smaller set, so that subsets differ from each other
TOUCHING = 1e-6  # share of a radius by which rounding may move what lies on it
WORKING_MEMORY = 64  # MiB of distances at a time

# Fewest vectors of each set: a covariance; two subsets of two; k neighbours besides itself.
NEEDED = {
    "FID": 2,
    "KID": 4,
    "recall": PRECISION_K + 1,
    "coverage": DENSITY_K + 1,
}


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """|m - m'|^2 + tr(S + S' - 2 (S S')^1/2).   FID Eq. 6

    Biased: it is the higher, the fewer vectors there are, and singular where there are no more of them than dimensions.
    """
    covariance, other = torch.cov(real.T), torch.cov(generated.T)
    root = torch.linalg.eigvals(covariance @ other).sqrt().real.sum()  # its trace
    shift = (real.mean(dim=0) - generated.mean(dim=0)).square().sum()
    return max(0.0, float(shift + covariance.trace() + other.trace() - 2 * root))  # rounding alone makes it negative


def kernel_distance(
    real: Tensor, generated: Tensor, subsets: int = SUBSETS, subset_size: int | None = None, seed: int = 0
) -> dict[str, float]:
    """KID: mean and standard deviation over random subsets of both sets.   KID section 4

    Unbiased whatever the number of vectors, so it can be negative where the sets are of one distribution. The spread
    is that of one subset: how far a KID of so few vectors lies from another.
    """
    from torchmetrics.image.kid import poly_mmd

    size = subset_size or min(SUBSET_SIZE, min(len(real), len(generated)) // 2)
    generator = torch.Generator().manual_seed(seed)

    def drawn(vectors: Tensor) -> Tensor:
        return vectors[torch.randperm(len(vectors), generator=generator)[:size]]

    values = torch.stack([poly_mmd(drawn(real), drawn(generated)) for _ in range(subsets)])
    spread = values.std(unbiased=False)
    return {"mean": float(values.mean()), "std": float(spread), "subsets": subsets, "subset_size": size}


def neighbour_distances(vectors: Tensor, k: int, others: Tensor | None = None) -> Tensor:
    """The distance of each vector to the k-th nearest of the others: (n, d), (m, d) or those of its own set -> (n,)."""
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=k, algorithm="brute").fit((vectors if others is None else others).numpy())
    return torch.from_numpy(found.kneighbors(None if others is None else vectors.numpy())[0][:, -1])


def balls_around(points: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """In how many balls, a radius around each centre, every point lies: (n, d), (m, d), (m,) -> (n,)."""
    from sklearn import config_context
    from sklearn.metrics import pairwise_distances_chunked

    def count(distances: Any, _start: int) -> Any:
        return (distances <= radii.numpy()).sum(axis=1)

    with config_context(working_memory=WORKING_MEMORY):
        parts = pairwise_distances_chunked(points.numpy(), centres.numpy(), reduce_func=count)
        return torch.cat([torch.from_numpy(part) for part in parts])


def precision_recall(real: Tensor, generated: Tensor, k: int = PRECISION_K) -> dict[str, float]:
    """Precision: share of generated vectors within reach of a real one; recall the other way round.

    A vector reaches as far as its k-th nearest neighbour in its own set.   Kynkaanniemi Eq. 1 and 2
    """
    precise = balls_around(generated, real, neighbour_distances(real, k)) > 0
    recalled = balls_around(real, generated, neighbour_distances(generated, k)) > 0
    return {"k": k, "precision": float(precise.double().mean()), "recall": float(recalled.double().mean())}


def density_coverage(real: Tensor, generated: Tensor, k: int = DENSITY_K) -> dict[str, float]:
    """Density: real vectors that reach a generated one, over k; coverage: share of real ones that reach some.

    Of one distribution, density is 1 on average, and coverage what `coverage_if_same` says.   Naeem, section 3
    Density goes from 0 to n / k: above 1 the generated vectors crowd where the real ones do, so more is not better. A
    real vector that repeats another would reach no further than to itself: it counts once. What lies as far away as the
    k-th neighbour is not reached, as in the authors' code, and rounding does not decide. Raise ValueError where no more
    than k real vectors differ.
    """
    real = without_repeats(real)
    if len(real) <= k:
        raise ValueError(f"density and coverage: of the real images only {len(real)} differ. Give {k + 1} or more.")
    radii = neighbour_distances(real, k) * (1 - TOUCHING)
    nearest = neighbour_distances(real, 1, generated)
    return {
        "k": k,
        "real_without_repeats": len(real),
        "density": float(balls_around(generated, real, radii).double().mean() / k),
        "density_if_same": 1.0,
        "coverage": float((nearest <= radii).double().mean()),
        "coverage_if_same": coverage_if_same(len(real), len(generated), k),
    }


def without_repeats(vectors: Tensor) -> Tensor:
    """Vectors (n, d), of those that are equal but for rounding the first alone."""
    _, index = torch.unique((vectors / vectors.std().clamp_min(1e-12)).round(decimals=4), dim=0, return_inverse=True)
    first = torch.full((len(vectors),), len(vectors)).scatter_reduce(0, index, torch.arange(len(vectors)), "amin")
    return vectors[first[first < len(vectors)].sort().values]


def coverage_if_same(real: int, generated: int, k: int = DENSITY_K) -> float:
    """The expected coverage of so many vectors of one distribution, whichever it is.   Naeem, section 3

    A real vector is not covered where its k nearest among all the others are real ones, and all orders are alike.
    """
    return 1 - math.prod((real - 1 - i) / (real + generated - 1 - i) for i in range(k))


def distances(real: Tensor, generated: Tensor, seed: int, frechet: bool = True) -> dict[str, Any]:
    """All metrics of (n, d) against (m, d), to 6 digits; FID, which needs many vectors, only where asked for."""
    metrics = {
        "kid": kernel_distance(real, generated, seed=seed),
        "precision_recall": precision_recall(real, generated),
        "density_coverage": density_coverage(real, generated),
    }
    return rounded(({"fid": frechet_distance(real, generated)} if frechet else {}) | metrics)


def rounded(value: Any) -> Any:
    """The same tables with every real number to 6 significant digits."""
    if isinstance(value, dict):
        return {name: rounded(entry) for name, entry in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value
