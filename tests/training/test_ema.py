"""The moving average of the weights: its decay, and that looking at it changes nothing."""

import pytest
import torch
from torch import nn

from ldm_us.training.optimizers import EMA


@pytest.fixture
def parameters():
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(3, 2, generator=generator)) for name in ("a", "b")}


def walk(parameters, ema, steps):
    """Move the weights at random and update the average; return what the weights were after each step."""
    history = []
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in parameters.values():
            parameter.data.add_(torch.randn(3, 2, generator=generator))
        ema.update()
        history.append({name: parameter.detach().double().clone() for name, parameter in parameters.items()})
    return history


@pytest.mark.parametrize("max_decay", [0.15, 0.5, 0.9999])
def test_the_decay_is_the_smaller_of_its_maximum_and_1_plus_n_over_10_plus_n(parameters, max_decay):
    """DDPM appendix B, with a decay that grows; against a loop in float64."""
    expected = {name: parameter.detach().double().clone() for name, parameter in parameters.items()}
    ema = EMA(parameters, max_decay)
    for n, weights in enumerate(walk(parameters, ema, steps=30)):
        decay = min(max_decay, (1 + n) / (10 + n))
        expected = {name: decay * expected[name] + (1 - decay) * weights[name] for name in expected}
    for name, average in ema.average.items():
        torch.testing.assert_close(average.double(), expected[name], atol=1e-5, rtol=0)


def test_the_average_is_no_alias_of_the_weights(parameters):
    ema = EMA(parameters, 0.9)
    before = ema.average["a"].clone()
    parameters["a"].data.add_(1.0)
    assert torch.equal(ema.average["a"], before)


def test_inside_swapped_in_the_model_holds_the_average_and_after_it_its_own_weights_bit_for_bit(parameters):
    ema = EMA(parameters, 0.9)
    walk(parameters, ema, steps=3)
    weights = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    average = {name: value.clone() for name, value in ema.average.items()}
    with ema.swapped_in():
        for name, parameter in parameters.items():
            assert torch.equal(parameter, average[name])
            assert not torch.equal(parameter, weights[name])
    for name, parameter in parameters.items():
        assert torch.equal(parameter, weights[name])
        assert torch.equal(ema.average[name], average[name])


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_the_weights_come_back_when_the_block_fails(parameters, failure):
    ema = EMA(parameters, 0.9)
    walk(parameters, ema, steps=2)
    weights = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with pytest.raises(failure), ema.swapped_in():
        raise failure
    assert all(torch.equal(parameter, weights[name]) for name, parameter in parameters.items())


def test_a_decay_of_0_means_no_average(parameters):
    ema = EMA(parameters, 0.0)
    walk(parameters, ema, steps=2)
    weights = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with ema.swapped_in():
        assert all(torch.equal(parameter, weights[name]) for name, parameter in parameters.items())
    assert ema.average == {}


def test_an_average_put_back_from_its_state_goes_on_as_if_never_stopped(parameters):
    ema = EMA(parameters, 0.9)
    walk(parameters, ema, steps=4)
    state = ema.state_dict()
    state = {"updates": state["updates"], "average": {k: v.clone() for k, v in state["average"].items()}}
    twins = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in parameters.items()}
    other = EMA(twins, 0.9)
    other.load_state_dict(state)
    walk(parameters, ema, steps=3)
    walk(twins, other, steps=3)
    assert other.updates == ema.updates == 7
    assert all(torch.equal(other.average[name], average) for name, average in ema.average.items())
