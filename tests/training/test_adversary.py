"""The adversary: its losses and the adaptive weight against numbers by hand, whatever the parts of a batch."""

import pytest
import torch
from torch import nn

from ldm_us.runtime.processes import ALONE
from ldm_us.training.adversary import LARGEST, Adversary, adaptive_weight, hinge_loss


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(weight=0.5, start=0):
    return Adversary(64, weight, start, seed=0, device=torch.device("cpu"), world=ALONE)


def test_the_hinge_loss_is_0_beyond_a_margin_of_1_and_grows_linearly_within():
    """VQGAN Eq. 5 as a hinge: real 2, 0.5 -> 0, 0.5; fake -3, 0 -> 0, 1."""
    assert float(hinge_loss(torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0]))) == (0.5 / 2 + 1 / 2) / 2
    assert float(hinge_loss(torch.tensor([5.0]), torch.tensor([-5.0]))) == 0


def test_lambda_is_the_ratio_of_the_gradients_at_the_last_weight_image_by_image():
    """VQGAN Eq. 7: x_hat = w u; errors 3 x_hat and 8 x_hat against -2 x_hat and 0.5 x_hat, u = 1 and 10."""
    last, u = nn.Parameter(torch.tensor(0.7)), torch.tensor([1.0, 10.0])
    x_hat = (last * u).view(2, 1, 1, 1)
    of_image = x_hat.flatten()
    found = adaptive_weight(torch.tensor([3.0, 8.0]) * of_image, torch.tensor([-2.0, 0.5]) * of_image, x_hat, last)
    assert found.tolist() == pytest.approx([3 / (2 + 1e-4), 80 / (5 + 1e-4)], rel=1e-5)
    assert last.grad is None


def test_lambda_is_clamped_where_the_adversary_has_no_gradient():
    last = nn.Parameter(torch.tensor(1.0))
    x_hat = (last * torch.ones(1)).view(1, 1, 1, 1)
    assert adaptive_weight(1e6 * x_hat.flatten(), 0 * x_hat.flatten(), x_hat, last).tolist() == [LARGEST]


def decoded(features, conv):
    """An x_hat with a last layer, and what it is trained on besides."""
    x_hat = conv(features)
    return x_hat, x_hat.square().mean(dim=(1, 2, 3))


@pytest.fixture
def conv():
    torch.manual_seed(0)
    return nn.Conv2d(4, 3, 3, padding=1)


def test_the_term_is_the_weighted_mean_of_lambda_times_minus_the_logits(conv):
    """VQGAN Eq. 6; the gradients of each image alone give its lambda."""
    adversary, features, x = make(weight=0.3), draw(2, 4, 32, 32), draw(2, 3, 32, 32, seed=1)
    x_hat, errors = decoded(features, conv)
    loss, figures = adversary.term(x, x_hat, errors, conv.weight)
    expected = []
    for i in range(2):
        alone, error = decoded(features[i : i + 1], conv)
        minus_logit = -adversary.discriminator(alone).mean()
        gradients = [torch.autograd.grad(value.sum(), conv.weight, retain_graph=True) for value in (error, minus_logit)]
        of_error, of_logit = (float(gradient.norm()) for (gradient,) in gradients)
        expected.append(of_error / (of_logit + 1e-4) * float(minus_logit.detach()))
    assert float(loss.detach()) == pytest.approx(0.3 * sum(expected) / 2, rel=1e-4)
    assert figures.keys() == {"adversarial", "lambda"}
    loss.backward()
    assert float(conv.weight.grad.abs().max()) > 0
    assert all(p.grad is None for p in adversary.discriminator.parameters())


def test_nothing_is_added_and_nothing_learned_before_its_start(conv):
    adversary = make(start=2)
    before = [p.clone() for p in adversary.discriminator.parameters()]
    added, learned = [], []
    for _ in range(4):
        x_hat, errors = decoded(draw(2, 4, 32, 32), conv)
        loss, _ = adversary.term(draw(2, 3, 32, 32), x_hat, errors, conv.weight)
        added.append(float(loss.detach()) != 0)
        adversary.update(1e-3)
        after = adversary.discriminator.parameters()
        learned.append(not all(torch.equal(*pair) for pair in zip(before, after, strict=True)))
    assert added == learned == [False, False, True, True]


def test_a_step_in_parts_teaches_the_discriminator_what_the_whole_batch_does(conv):
    x, features, weights = draw(4, 3, 32, 32), draw(4, 4, 32, 32, seed=1), []
    for parts in (1, 2, 4):
        adversary = make()
        for _ in range(3):
            for of_x, of_features in zip(x.chunk(parts), features.chunk(parts), strict=True):
                x_hat, errors = decoded(of_features, conv)
                adversary.term(of_x, x_hat, errors, conv.weight)
            adversary.update(1e-3)
        weights.append(torch.cat([p.flatten() for p in adversary.discriminator.parameters()]))
    for other in weights[1:]:
        assert float((other - weights[0]).norm() / weights[0].norm()) < 1e-4


def test_the_discriminator_learns_to_tell_images_from_decoded_ones(conv):
    adversary, losses = make(), []
    for step in range(20):
        x_hat, errors = decoded(draw(4, 4, 32, 32, seed=step), conv)
        adversary.term(draw(4, 3, 32, 32, seed=100 + step).sign(), x_hat, errors, conv.weight)
        losses.append(adversary.update(1e-3)["discriminator"])
    assert losses[0] > 0.9
    assert losses[-1] < 0.2


def test_a_discriminator_that_is_put_back_goes_on_at_the_same_bits(conv):
    def steps(adversary, numbers):
        for step in numbers:
            x_hat, errors = decoded(draw(2, 4, 32, 32, seed=step), conv)
            adversary.term(draw(2, 3, 32, 32, seed=50 + step), x_hat, errors, conv.weight)
            adversary.update(1e-3)
        return adversary

    straight, stopped, again = steps(make(), range(4)), steps(make(), range(2)), make()
    again.load_state_dict(stopped.state_dict())
    steps(again, range(2, 4))
    states = [one.discriminator.state_dict() for one in (straight, again)]
    assert again.steps == 4
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
