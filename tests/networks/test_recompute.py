"""Activations computed again instead of kept: the same outputs and gradients, from less memory."""

import copy

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from ldm_us.config import TINY, US128, ControlConfig
from ldm_us.networks.clip import TextEncoder
from ldm_us.networks.controlnet import ControlNet
from ldm_us.networks.recompute import set_recompute
from ldm_us.networks.unet import UNet
from ldm_us.networks.vae import VAE


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def run_unet(unet):
    return unet(draw(2, 4, 16, 16), torch.tensor([37, 961]), draw(2, 77, 32))


def run_controlnet(controlnet):
    control = controlnet(draw(2, 4, 16, 16), torch.tensor([37, 961]), draw(2, 77, 32), draw(2, 3, 128, 128))
    return torch.cat([residual.flatten(1) for residual in [*control.skips, control.middle]], dim=1)


def make_controlnet():
    controlnet = ControlNet(UNet(TINY.unet), ControlConfig(hint_channels=(4, 4, 4, 4)))
    for conv in [*controlnet.zero_convs, controlnet.zero_conv_middle]:  # else no gradient passes
        torch.nn.init.normal_(conv.weight)
    return controlnet


NETWORKS = {
    "unet": (lambda: UNet(TINY.unet), run_unet),
    "controlnet": (make_controlnet, run_controlnet),
    "vae": (lambda: VAE(US128.vae), lambda vae: vae.decode_unscaled(vae.moments(draw(1, 3, 64, 64))[:, :4])),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    """A network that keeps its activations, and a function that runs it."""
    make, run = NETWORKS[request.param]
    torch.manual_seed(0)
    return make(), run


def recomputing(network):
    module = copy.deepcopy(network)
    set_recompute(module, True)
    return module


def gradients(module, run):
    run(module).square().mean().backward()
    return {name: p.grad for name, p in module.named_parameters()}


def kept_bytes(module, run):
    """What the backward pass holds on to: each storage once, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # held, so that no address comes twice
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run(module)
    assert output.requires_grad
    return sum(storage.nbytes() for address, storage in kept.items() if address not in weights)


def test_outputs_and_gradients_are_the_same(network):
    module, run = network
    other = recomputing(module)
    assert torch.equal(run(other), run(module))
    expected, found = gradients(copy.deepcopy(module), run), gradients(other, run)
    assert len(expected) > 40
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


def test_less_than_half_of_the_activations_is_kept(network):
    module, run = network
    assert kept_bytes(recomputing(module), run) < 0.5 * kept_bytes(module, run)


def test_every_block_is_computed_again(network, monkeypatch):
    module, run = network
    computed_again = []
    monkeypatch.setattr(
        "ldm_us.networks.recompute.checkpoint",
        lambda block, *inputs, **_: computed_again.append(block) or block(*inputs),
    )
    run(recomputing(module))
    kinds = [type(part).__name__ for part in module.modules()]
    in_levels = kinds.count("ResBlock") - 2 * kinds.count("Middle")
    assert len(computed_again) == in_levels + 3 * kinds.count("Middle")


def test_no_name_changes_and_it_can_be_turned_off_again(network):
    module, run = network
    other = recomputing(module)
    assert list(other.state_dict()) == list(module.state_dict())
    before = kept_bytes(module, run)
    set_recompute(other, False)
    assert kept_bytes(other, run) == before


def test_without_gradients_nothing_is_checkpointed(network, monkeypatch):
    module, run = network
    other = recomputing(module)
    monkeypatch.setattr("ldm_us.networks.recompute.checkpoint", None)
    with torch.no_grad():
        assert torch.equal(run(other), run(module))


def test_a_controlnet_copied_from_a_recomputing_unet_recomputes():
    unet = recomputing(UNet(TINY.unet))
    assert all(level.recompute for level in ControlNet.from_unet(unet, TINY.control).encoder.levels)


def test_under_bfloat16_the_second_pass_computes_in_bfloat16_too(network):
    module, run = network
    with torch.autocast("cpu", torch.bfloat16):
        expected = run(module).float().square().mean()
        found = run(other := recomputing(module)).float().square().mean()
    expected.backward()
    found.backward()
    norms = [p.grad.norm() for p in module.parameters()]
    module.zero_grad()
    assert torch.equal(found, expected)
    assert all(torch.isclose(p.grad.norm(), norm) for p, norm in zip(other.parameters(), norms, strict=True))


def test_a_network_without_blocks_to_recompute_is_refused():
    with pytest.raises(ValueError, match="TextEncoder has no blocks to recompute"):
        set_recompute(TextEncoder(US128.text), True)
