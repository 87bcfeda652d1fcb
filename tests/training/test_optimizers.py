"""Optimizers: what a learning rate means, states that resume exactly, and a missing extra in one sentence."""

import importlib.util
import io
import sys

import pytest
import torch
from torch import nn

from ldm_us.training.optimizers import make_optimizer
from ldm_us.training.options import OPTIMIZERS

needs_extra = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs the extra `memory`: pip install -e .[memory]"
)
each_optimizer = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[needs_extra] * (name == "adamw8bit")) for name in OPTIMIZERS]
)


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 36, 64), nn.SiLU(), nn.Linear(64, 4)
    )


def train(net, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (step + 1)  # a float, changed at every step, as a warm-up does
        x, y = torch.randn(4, 3, 8, 8, generator=generator), torch.randn(4, 4, generator=generator)
        loss = (net(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@each_optimizer
def test_a_saved_and_loaded_state_goes_on_bit_for_bit(name):
    net, other = make_net(), make_net()
    optimizer = make_optimizer(name, net.parameters(), 1e-3, 1e-2)
    train(net, optimizer, 5)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)  # as states are read

    other.load_state_dict(state["net"])
    resumed = make_optimizer(name, other.parameters(), 1e-3, 1e-2)
    resumed.load_state_dict(state["optimizer"])
    train(net, optimizer, 5, seed=1)
    train(other, resumed, 5, seed=1)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))


@each_optimizer
@pytest.mark.parametrize("size", [1.0, 1e-5])
@pytest.mark.parametrize("start", [0.0, 0.1])
def test_a_first_step_is_as_large_as_the_learning_rate_for_any_size_of_gradient_and_weight(name, size, start):
    weight = nn.Parameter(start * torch.randn(80, 80, generator=torch.Generator().manual_seed(0)))
    optimizer = make_optimizer(name, [weight], 1e-2, 0.0)
    before = weight.detach().clone()
    weight.grad = size * torch.randn(80, 80, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    step = weight.detach() - before
    assert 0.8e-2 < float(step.square().mean().sqrt()) < 1.2e-2
    assert float((step * weight.grad).mean()) < 0


@each_optimizer
def test_weight_decay_shrinks_weights_by_lr_times_weight_decay(name):
    weight = nn.Parameter(torch.full((80, 80), 0.5))
    optimizer = make_optimizer(name, [weight], 1e-2, 0.1)
    weight.grad = torch.zeros(80, 80)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((80, 80), 0.5 * (1 - 1e-2 * 0.1)))


@each_optimizer
def test_a_loss_falls(name):
    generator = torch.Generator().manual_seed(0)
    net, x, y = make_net(), torch.randn(8, 3, 8, 8, generator=generator), torch.randn(8, 4, generator=generator)
    optimizer = make_optimizer(name, net.parameters(), 3e-3, 0.0)
    losses = []
    for _ in range(60):
        loss = (net(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


@each_optimizer
def test_the_state_of_a_large_matrix_is_as_small_as_promised(name):
    weight = nn.Parameter(torch.randn(512, 512, generator=torch.Generator().manual_seed(0)))
    optimizer = make_optimizer(name, [weight], 1e-3, 0.0)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    held = sum(v.nbytes for v in optimizer.state[weight].values() if isinstance(v, torch.Tensor))
    assert held / weight.numel() < {"adamw": 8.01, "adafactor": 0.02, "adamw8bit": 2.1}[name]


def test_adamw_is_torchs_with_the_usual_betas():
    optimizer = make_optimizer("adamw", make_net().parameters(), 1e-3, 1e-2)
    assert isinstance(optimizer, torch.optim.AdamW)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"], group["fused"]) == (1e-3, (0.9, 0.999), 1e-2, True)


def test_adafactor_is_the_factored_update_of_its_paper():
    """Algorithm 4 of arXiv 1804.04235 with a step size of lr, in float64 by hand, for three steps of one matrix."""
    generator = torch.Generator().manual_seed(0)
    # as small as a large UNet's, and falling, so that no step is long enough to be clipped but the first
    gradients = [size * torch.randn(6, 5, generator=generator) for size in (3e-6, 1e-6, 3e-7)]
    weight = nn.Parameter(0.1 * torch.randn(6, 5, generator=generator))
    expected, row, column = weight.detach().double(), torch.zeros(6).double(), torch.zeros(5).double()
    optimizer = make_optimizer("adafactor", [weight], 1e-2, 0.0)
    for t, gradient in enumerate(gradients, start=1):
        weight.grad = gradient.clone()
        optimizer.step()
        beta_2, squared = 1 - t**-0.8, gradient.double() ** 2
        row = beta_2 * row + (1 - beta_2) * squared.mean(dim=1)
        column = beta_2 * column + (1 - beta_2) * squared.mean(dim=0)
        update = gradient.double() / (row[:, None] * column[None] / row.mean()).sqrt()
        expected = expected - 1e-2 * update / max(1.0, float(update.square().mean().sqrt()))
    torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_a_missing_extra_is_one_sentence_that_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ValueError, match=r"'adamw8bit' needs bitsandbytes .*`pip install -e \.\[memory\]`\.$") as error:
        make_optimizer("adamw8bit", make_net().parameters(), 1e-3, 0.0)
    assert "\n" not in str(error.value)


def test_another_name_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match="optimizer 'sgd': use one of adamw, adafactor, adamw8bit"):
        make_optimizer("sgd", make_net().parameters(), 1e-3, 0.0)
