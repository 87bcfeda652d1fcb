"""ControlNet: no effect until trained, thirteen residuals, and the hint in one place only."""

import copy

import pytest
import torch
import torch.nn.functional as F

from ldm_us.config import SD15, TINY, US128
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Sampling, generate
from ldm_us.networks.controlnet import ControlNet, zero_conv
from ldm_us.networks.unet import UNet


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet(TINY.unet).eval().requires_grad_(False)


@pytest.fixture
def fresh(unet):
    return ControlNet.from_unet(unet, TINY.control)


@pytest.fixture
def transparent(unet):
    """A ControlNet whose zero convolutions are identities: its residuals are its encoder's skips and its middle."""
    controlnet = ControlNet.from_unet(unet, TINY.control).requires_grad_(False)
    for conv in [*controlnet.zero_convs, controlnet.zero_conv_middle]:
        conv.weight.copy_(torch.eye(conv.weight.shape[0])[:, :, None, None])
    return controlnet


@pytest.fixture(scope="module")
def inputs():
    """z_t, t, context, hint."""
    generator = torch.Generator().manual_seed(1)
    z_t, context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 32, generator=generator)
    hint = (torch.rand(2, 3, 64, 64, generator=generator) > 0.5).float()
    return z_t, torch.tensor([37, 961]), context, hint


def test_a_fresh_controlnet_leaves_every_unet_output_unchanged(unet, fresh, inputs):
    """ControlNet Eq. 2 at the start of training: every zero convolution gives zeros."""
    *z_t_and_text, hint = inputs
    control = fresh(*z_t_and_text, hint)
    assert not any(residual.any() for residual in [*control.skips, control.middle])
    assert torch.equal(unet(*z_t_and_text, control), unet(*z_t_and_text))


def test_a_fresh_controlnet_leaves_a_generated_image_unchanged():
    torch.manual_seed(0)
    model = LatentDiffusion(US128).eval()
    z_T = torch.randn(1, 4, 8, 8)
    sampling = Sampling(steps=2, guidance=7.5)
    before = generate(model, ["a breast"], z_T=z_T, sampling=sampling)
    model.add_controlnet()
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:20, 8:20] = 1
    assert torch.equal(generate(model, ["a breast"], z_T=z_T, sampling=sampling, masks=mask), before)


def test_there_is_one_residual_a_skip_and_one_for_the_middle_13_in_all(unet, fresh, inputs):
    """ControlNet Eq. 2: 12 zero convolutions after the encoder's blocks, one after the middle."""
    z_t, t, context, hint = inputs
    features, skips = unet.encoder(z_t, unet.time(t), context)
    control = fresh(z_t, t, context, hint)
    assert [residual.shape for residual in control.skips] == [skip.shape for skip in skips]
    assert control.middle.shape == features.shape
    assert len(control.skips) + 1 == 13


def test_sd15_has_13_residuals_and_as_many_parameters_and_tensors_as_the_original():
    with torch.device("meta"):
        controlnet = ControlNet(UNet(SD15.unet), SD15.control)
        z_t, context = torch.zeros(1, 4, 64, 64), torch.zeros(1, 77, 768)
        skips, middle = controlnet(z_t, torch.zeros(1, dtype=torch.int64), context, torch.zeros(1, 3, 512, 512))
    assert [tuple(s.shape[1:3]) for s in skips] == [(320, 64)] * 3 + [(320, 32)] + [(640, 32)] * 2 + [(640, 16)] + [
        (1280, 16)
    ] * 2 + [(1280, 8)] * 3
    assert middle.shape == (1, 1280, 8, 8)
    assert sum(p.numel() for p in controlnet.parameters()) == 361_279_120
    assert len(controlnet.state_dict()) == 340


def test_the_copy_equals_the_unet_and_shares_no_storage_with_it(unet, fresh):
    theirs = {name: p for name, p in unet.named_parameters() if not name.startswith("decoder.")}
    ours = {name: p for name, p in fresh.named_parameters() if name in theirs}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    pointers = {p.untyped_storage().data_ptr() for p in unet.parameters()}
    assert pointers.isdisjoint(p.untyped_storage().data_ptr() for p in fresh.parameters())


@pytest.mark.parametrize("size", [(32, 32), (64, 128), (72, 64)])
def test_a_hint_of_the_wrong_size_is_refused_in_one_sentence(fresh, inputs, size):
    z_t, t, context, _ = inputs
    with pytest.raises(ValueError, match=r"Resize the hint to the image's size\.$") as error:
        fresh(z_t, t, context, torch.zeros(2, 3, *size))
    assert f"a hint of {size} pixels" in str(error.value)
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_without_hint_features_the_encoder_is_the_unets(unet, transparent, inputs):
    z_t, t, context, hint = inputs
    features, skips = unet.encoder(z_t, unet.time(t), context)
    control = transparent(z_t, t, context, hint)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(control.skips, skips, strict=True))
    torch.testing.assert_close(control.middle, unet.middle(features, unet.time(t), context), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_skip_0_changes_by_exactly_the_hint_features(unet, transparent, inputs):
    """ControlNet Eq. 4: the hint's features, at the latents' size, are added to the first convolution's output."""
    z_t, t, context, hint = inputs
    torch.nn.init.normal_(transparent.hint_network.conv_out.weight, generator=torch.Generator().manual_seed(3))
    hint_features = transparent.hint_network(hint)
    assert hint_features.shape == (2, 32, 8, 8)
    assert float(hint_features.abs().max()) > 0.1
    changed = transparent(z_t, t, context, hint).skips[0]
    torch.testing.assert_close(changed, unet.encoder.conv_in(z_t) + hint_features, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_hint_enters_after_the_first_convolution_only(unet, transparent, inputs):
    """Features that are the same at every place act as another bias of the first convolution, and in no other way."""
    z_t, t, context, hint = inputs
    features = torch.linspace(-1, 1, 32)
    transparent.hint_network.conv_out.bias.copy_(features)
    biased = copy.deepcopy(unet)
    biased.encoder.conv_in.bias += features
    _, skips = biased.encoder(z_t, biased.time(t), context)
    control = transparent(z_t, t, context, hint)
    for ours, expected in zip(control.skips, skips, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def step(unet, controlnet, inputs, rate=1.0):
    """One step of gradient descent on the noise-prediction loss."""
    *z_t_and_text, hint = inputs
    loss = F.mse_loss(unet(*z_t_and_text, controlnet(*z_t_and_text, hint)), torch.ones(2, 4, 8, 8))
    controlnet.zero_grad()
    loss.backward()
    with torch.no_grad():
        for p in controlnet.parameters():
            p -= rate * p.grad if p.grad is not None else 0


def test_one_gradient_step_moves_every_zero_convolution_and_the_output(unet, fresh, inputs):
    """ControlNet Eq. 2: zero weights get gradients, since their inputs are not zero."""
    *z_t_and_text, hint = inputs
    before = unet(*z_t_and_text)
    step(unet, fresh, inputs)
    for conv in [*fresh.zero_convs, fresh.zero_conv_middle]:
        assert conv.weight.any()
        assert conv.bias.any()
    assert not torch.equal(unet(*z_t_and_text, fresh(*z_t_and_text, hint)), before)


def test_the_hint_matters_from_the_second_gradient_step_on(unet, fresh, inputs):
    *z_t_and_text, hint = inputs
    step(unet, fresh, inputs)
    assert not fresh.hint_network.conv_out.weight.any(), "behind zero convolutions: no gradient in the first step"
    step(unet, fresh, inputs)
    assert fresh.hint_network.conv_out.weight.any()
    with_hint, without = fresh(*z_t_and_text, hint), fresh(*z_t_and_text, torch.zeros_like(hint))
    assert not torch.equal(with_hint.skips[0], without.skips[0])


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_zero_convolution_gives_zeros_yet_its_weight_has_a_gradient(kernel):
    """ControlNet Eq. 2: training can leave zero because the input is not zero."""
    conv, features = (
        zero_conv(3, 5, kernel),
        torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_(),
    )
    output = conv(features)
    assert output.shape == (2, 5, 4, 4)
    assert not output.any()
    (output - 1).square().sum().backward()
    assert bool(conv.weight.grad.abs().amax(dim=(1, 2, 3)).all())
    assert bool(conv.bias.grad.all())
    assert not features.grad.any(), "what comes before it is not disturbed in the first step"
