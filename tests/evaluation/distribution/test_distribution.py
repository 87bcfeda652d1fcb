"""ldm_us/evaluation/distribution/distances.py: every metric against a known answer."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from ldm_us.evaluation.distribution.distances import (
    balls_around,
    coverage_if_same,
    density_coverage,
    distances,
    frechet_distance,
    kernel_distance,
    precision_recall,
)


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def standard(n: int, d: int, seed: int) -> Tensor:
    """Vectors whose sample mean is 0 and whose sample covariance is the identity, both exactly."""
    centred = normal(n, d, seed)
    centred = centred - centred.mean(0)
    return torch.linalg.qr(centred).Q * math.sqrt(n - 1)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_the_frechet_distance_of_two_gaussians_is_the_closed_form() -> None:
    """FID Eq. 6 with covariances that commute: |m - m'|^2 + sum of (sigma - sigma')^2."""
    sigma, sigma_other, shift = torch.tensor([[1.0, 2.0, 0.5], [3.0, 0.25, 0.5], [0.5, -1.0, 2.0]]).double()
    rotation = torch.linalg.qr(normal(3, 3, 9)).Q
    real = standard(40, 3, 0) * sigma @ rotation
    generated = (standard(30, 3, 1) * sigma_other + shift) @ rotation
    expected = float(shift.square().sum() + (sigma - sigma_other).square().sum())
    assert frechet_distance(real, generated) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n", [50, 6], ids=["more images than dimensions", "singular covariances"])
def test_the_frechet_distance_is_that_of_singular_values(n: int) -> None:
    """FID Eq. 6 by another way: tr (S S')^1/2 is the sum of the singular values of X X'^T / (n - 1)."""
    real, generated = normal(n, 8, 0) @ normal(8, 8, 3) + 5, normal(n, 8, 1) @ normal(8, 8, 4)
    centred, centred_other = real - real.mean(0), generated - generated.mean(0)
    traces = (centred.square().sum() + centred_other.square().sum()) / (n - 1)
    root = torch.linalg.matrix_norm(centred @ centred_other.T, "nuc") / (n - 1)
    expected = float((real.mean(0) - generated.mean(0)).square().sum() + traces - 2 * root)
    assert frechet_distance(real, generated) == pytest.approx(expected, rel=1e-5)


def test_a_set_is_at_frechet_distance_0_of_itself() -> None:
    real = normal(30, 4, 0)
    assert 0 <= frechet_distance(real, real) < 1e-9


def test_kid_is_the_unbiased_estimate_of_a_double_loop() -> None:
    """KID section 4: the kernel (a.b / d + 1)^3 over all pairs of different images, and over all pairs of both sets."""
    n, d = 7, 5
    real, generated = normal(n, d, 0), normal(n, d, 1) + 0.5

    def kernel(a: Tensor, b: Tensor) -> float:
        return (sum(float(p) * float(q) for p, q in zip(a, b, strict=True)) / d + 1) ** 3

    within = [
        sum(kernel(one[i], one[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
        for one in (real, generated)
    ]
    across = sum(kernel(a, b) for a in real for b in generated) / n**2
    kid = kernel_distance(real, generated, subsets=2, subset_size=n)
    assert kid["mean"] == pytest.approx(sum(within) - 2 * across, rel=1e-12)
    assert kid["std"] == pytest.approx(0, abs=1e-12)  # a subset of all images is always the same


def test_the_spread_of_kid_is_that_over_all_subsets_written_out() -> None:
    """Every pair of subsets of 3 of 5 vectors, 10 x 10, each by a double loop; drawn ones have nearly their spread."""
    real, generated = normal(5, 3, 0), normal(5, 3, 1) + 0.5
    values = []
    for of_real in itertools.combinations(range(5), 3):
        for of_generated in itertools.combinations(range(5), 3):
            x, y = real[list(of_real)], generated[list(of_generated)]
            within, across = 0.0, 0.0
            for i, j in itertools.product(range(3), repeat=2):
                across += float(x[i] @ y[j] / 3 + 1) ** 3 / 9
                if i != j:
                    within += (float(x[i] @ x[j] / 3 + 1) ** 3 + float(y[i] @ y[j] / 3 + 1) ** 3) / 6
            values.append(within - 2 * across)
    found = kernel_distance(real, generated, subsets=1500, subset_size=3)
    spread = torch.tensor(values).std(unbiased=False).item()
    assert spread > 0.1
    assert found["std"] == pytest.approx(spread, rel=0.1)
    assert found["mean"] == pytest.approx(sum(values) / len(values), abs=4 * spread / math.sqrt(1500))


def test_kid_is_0_on_average_for_one_distribution_and_not_for_two() -> None:
    draws = [normal(12, 3, seed) for seed in range(300)]
    pairs = list(zip(draws[::2], draws[1::2], strict=True))
    for shift, same in ((0.0, True), (1.0, False)):
        values = torch.tensor([kernel_distance(a, b + shift, 1, 12)["mean"] for a, b in pairs])
        standard_error = values.std() / math.sqrt(len(values))
        assert (abs(values.mean()) < 4 * standard_error) == same


def test_kid_is_drawn_from_its_seed_alone() -> None:
    real, generated = normal(20, 3, 0), normal(16, 3, 1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = kernel_distance(real, generated, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert kernel_distance(real, generated, seed=5) == first != kernel_distance(real, generated, seed=6)
    assert (first["subsets"], first["subset_size"]) == (100, 8)  # half of the smaller set


def test_precision_and_recall_of_points_on_a_line() -> None:
    """Kynkaanniemi Eq. 1 and 2, k = 1: the real points reach 1, 1, 1, 1, 7 far and the generated 3, 3, 84."""
    real, generated = column(0, 1, 2, 3, 10), column(13, 16, 100)
    # 13 and 16 lie within 7 of 10, 100 in no ball; of the real ones only 10 lies within 3 of a generated one.
    assert precision_recall(real, generated, k=1) == {"k": 1, "precision": pytest.approx(2 / 3), "recall": 0.2}
    assert precision_recall(generated, real, k=1) == {"k": 1, "precision": 0.2, "recall": pytest.approx(2 / 3)}


def test_density_and_coverage_of_points_on_a_line() -> None:
    """Naeem section 3, k = 2: the real points reach 2, 1, 1, 2, 8 far."""
    found = density_coverage(column(0, 1, 2, 3, 10), column(0.5, 4, 20), k=2)
    assert found["density"] == pytest.approx((2 + 2 + 0) / (2 * 3))  # balls that 0.5, 4 and 20 lie in
    assert found["coverage"] == pytest.approx(4 / 5)  # all but the point 2, 1.5 from 0.5


def test_a_set_far_away_has_no_precision_recall_density_or_coverage() -> None:
    real, generated = normal(20, 4, 0), normal(15, 4, 1) + 1000
    found = precision_recall(real, generated) | density_coverage(real, generated)
    assert [found[name] for name in ("precision", "recall", "density", "coverage")] == [0, 0, 0, 0]


def test_a_set_that_repeats_one_real_image_is_precise_and_covers_little() -> None:
    real = normal(40, 4, 0)
    found = precision_recall(real, real[:1].repeat(40, 1)) | density_coverage(real, real[:1].repeat(40, 1))
    assert found["precision"] == 1
    assert found["recall"] <= 2 / 40
    assert found["coverage"] < 0.5


def test_density_is_1_and_coverage_is_its_expectation_on_average_for_one_distribution() -> None:
    n, m, draws = 16, 11, 300
    found = [density_coverage(normal(n, 3, 2 * i), normal(m, 3, 2 * i + 1), k=3) for i in range(draws)]
    for name, expected in (("density", 1.0), ("coverage", coverage_if_same(n, m, 3))):
        values = torch.tensor([one[name] for one in found])
        assert abs(values.mean() - expected) < 4 * values.std() / math.sqrt(draws)


@pytest.mark.parametrize("repeats", [2, 4, 6])
def test_real_vectors_that_repeat_count_once_in_density_and_coverage(repeats: int) -> None:
    """Six times each, every radius would be 0; four times each, a set and itself had a density of 1.4."""
    real, generated = normal(60, 4, 0), normal(80, 4, 1)
    copies = real.repeat(repeats, 1) + 1e-9 * normal(60 * repeats, 4, 2)  # as rounding in another batch has it
    expected = density_coverage(real, generated)
    assert expected["real_without_repeats"] == 60
    assert density_coverage(copies, generated) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match=r"of the real images only 5 differ\. Give 6 or more"):
        density_coverage(real[:5].repeat(repeats, 1), generated)


def test_a_set_has_a_density_of_exactly_1_with_itself_for_its_kth_neighbours_are_not_reached() -> None:
    """Each ball of a real vector holds itself and k - 1 others: of n balls and n vectors, k each on average."""
    real = normal(300, 8, 0)
    assert density_coverage(real, real)["density"] == pytest.approx(1, abs=1e-12)
    assert density_coverage(real, 0.6 * normal(300, 8, 1))["density"] > 1.5, "crowded in the middle"


def test_balls_are_counted_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    points, centres, radii = normal(300, 2, 0), normal(500, 2, 1), normal(500, 1, 2).abs()[:, 0]
    expected = (torch.cdist(points, centres) <= radii).sum(1)
    monkeypatch.setattr("ldm_us.evaluation.distribution.distances.WORKING_MEMORY", 0.05)  # MiB: 13 rows at a time
    assert torch.equal(balls_around(points, centres, radii), expected)


def test_the_result_names_every_metric_with_what_it_was_made_of() -> None:
    found = distances(normal(30, 3, 0), normal(20, 3, 1), seed=0)
    assert set(found) == {"fid", "kid", "precision_recall", "density_coverage"}
    assert set(found["kid"]) == {"mean", "std", "subsets", "subset_size"}
    assert "fid" not in distances(normal(30, 3, 0), normal(20, 3, 1), seed=0, frechet=False)
