"""Mixing: datasets are drawn by their weights and images uniformly, whatever the sizes, and bad weights are refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm_us.data.mixing import mixed_indices

SETS = st.lists(st.tuples(st.integers(1, 50), st.one_of(st.just(0.0), st.floats(1e-3, 1e3))), min_size=1, max_size=6)


def draw(sizes, weights, size, seed=0):
    return mixed_indices(sizes, weights, torch.Generator().manual_seed(seed), size)


@pytest.mark.parametrize("weights", [(1, 1, 1), (0.5, 3, 0.25), (2, 0, 6), (5, 0, 0), (1e308, 1e308, 0)])
def test_every_image_comes_as_often_as_its_closed_form_says(weights):
    """P(image of d) = w_d / (sum of w) / n_d; the counts lie within five standard deviations of the binomial."""
    sizes, slots = (3, 40, 7), 200_000
    counts = torch.bincount(draw(sizes, weights, slots), minlength=sum(sizes)).double()
    largest = max(weights)
    total = sum(w / largest for w in weights)
    p = torch.tensor([w / largest / total / n for n, w in zip(sizes, weights, strict=True) for _ in range(n)]).double()
    assert ((counts - slots * p).abs() <= 5 * (slots * p * (1 - p)).sqrt()).all()


@given(SETS, st.integers(0, 64), st.integers(0, 2**32))
def test_indices_are_those_of_datasets_with_a_weight_above_zero(sets, size, seed):
    sizes, weights = zip(*sets, strict=True)
    if not any(weights):
        return
    indices = draw(sizes, weights, size, seed)
    assert indices.shape == (size,)
    assert indices.dtype == torch.int64
    allowed = torch.tensor([w > 0 for n, w in sets for _ in range(n)])
    assert allowed[indices].all()


@given(SETS, st.integers(0, 2**32))
def test_the_same_generator_draws_the_same_and_only_the_ratio_of_weights_matters(sets, seed):
    sizes, weights = zip(*sets, strict=True)
    if not any(weights):
        return
    assert torch.equal(draw(sizes, weights, 32, seed), draw(sizes, weights, 32, seed))
    assert torch.equal(draw(sizes, weights, 32, seed), draw(sizes, [4 * w for w in weights], 32, seed))


def test_slots_are_independent_of_each_other():
    """Of two neighbouring slots both are of the first set with probability p squared."""
    first = draw((5, 5), (1, 3), 100_000) < 5
    both = (first[::2] & first[1::2]).double().mean().item()
    assert abs(both - 1 / 16) < 5 * (1 / 16 * 15 / 16 / 50_000) ** 0.5


@pytest.mark.parametrize(
    ("sizes", "weights", "sentence"),
    [
        ((3, 4), (1,), r"1: 1 for 2 datasets\. Give one weight a dataset"),
        ((3,), (1, 2), r"1 2: 2 for 1 datasets"),
        ((3, 4), (1, -0.5), r"1 -0\.5: each must be a number from 0 up"),
        ((3, 4), (1, float("nan")), "each must be a number"),
        ((3, 4), (1, float("inf")), "each must be a number"),
        ((3, 4), (0, 0), "all are 0"),
        ((), (), "all are 0"),
        ((3, 0), (1, 2), r"dataset 2 has no images\. Give it the weight 0"),
    ],
)
def test_weights_that_say_nothing_are_refused(sizes, weights, sentence):
    with pytest.raises(ValueError, match=sentence):
        draw(sizes, weights, 4)


def test_a_set_without_images_may_have_the_weight_zero():
    assert set(draw((0, 2, 0), (0, 1, 0), 50).tolist()) == {0, 1}
