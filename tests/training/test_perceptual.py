"""The perceptual distance against a loop in float64, and the features of the bundled judge."""

import pytest
import torch

import train
from ldm_us.training.command_line import parse_options
from ldm_us.training.perceptual import Perceptual


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_distance_is_the_mean_over_places_of_squared_differences_of_unit_features_summed_over_layers():
    """LPIPS Eq. 1 with every weight 1."""
    layers = {0: (draw(2, 3, 4, 5), draw(2, 2, 2, 3, seed=1)), 1: (draw(2, 3, 4, 5, seed=2), draw(2, 2, 2, 3, seed=3))}
    expected = [0.0, 0.0]
    for a, b in zip(layers[0], layers[1], strict=True):
        _, _, h, w = a.shape
        for i in range(2):
            for y in range(h):
                for x in range(w):
                    of_a, of_b = a[i, :, y, x].double(), b[i, :, y, x].double()
                    expected[i] += float((of_a / of_a.norm() - of_b / of_b.norm()).square().sum()) / (h * w)
    perceptual = Perceptual(1.0, lambda which: list(layers[which]))
    assert perceptual.distance(0, 1).tolist() == pytest.approx(expected, rel=1e-5)


def judge_features():
    """What train.py compares unless told."""
    words = "vae --preset tiny --data d --out o --steps 1 --perceptual 1"
    return train.perceptual_features(parse_options(words.split()))[0]


def test_the_judge_sees_no_distance_of_an_image_to_itself_and_more_of_a_blurred_one_than_of_a_slightly_noisy_one():
    perceptual = Perceptual(1.0, judge_features())
    x = draw(2, 1, 64, 64).tanh().expand(-1, 3, -1, -1)
    blurred = torch.nn.functional.avg_pool2d(x, 5, stride=1, padding=2)
    assert perceptual.distance(x, x).tolist() == [0, 0]
    near, far = (perceptual.distance(other, x) for other in (x + 0.01 * draw(2, 1, 64, 64, seed=1), blurred))
    assert bool((near < far / 10).all())


def test_gradients_reach_the_image_and_no_weight_of_the_judge():
    x_hat = draw(1, 3, 32, 32).requires_grad_(True)
    Perceptual(1.0, judge_features()).distance(x_hat, draw(1, 3, 32, 32, seed=1)).sum().backward()
    assert float(x_hat.grad.abs().max()) > 0
