"""Controls: weights, guess mode, start and end, several ControlNets, and hint features that are computed once."""

import pytest
import torch

from ldm_us.config import ScheduleConfig
from ldm_us.diffusion.controls import (
    ControlTerm,
    acting_timesteps,
    add_controls,
    prepare_controls,
    residual_weights,
)
from ldm_us.diffusion.ddim import ddim_timesteps
from ldm_us.diffusion.ddpm import make_schedule
from ldm_us.diffusion.guidance import Guidance, guided_prediction, prepare_conditions
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Sampling, generate
from ldm_us.networks.controlnet import ControlNet
from ldm_us.networks.unet import Control

SCHEDULE = make_schedule(ScheduleConfig())


def trained(model):
    """A new ControlNet for the model, with values in its zero convolutions as training would give them."""
    controlnet = ControlNet.from_unet(model.unet, model.config.control)
    for conv in [*controlnet.zero_convs, controlnet.zero_conv_middle, controlnet.hint_network.conv_out]:
        torch.nn.init.normal_(conv.weight, std=0.3)
    return controlnet.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model(micro):
    torch.manual_seed(0)
    model = LatentDiffusion(micro).eval().requires_grad_(False)
    model.controlnet = trained(model)
    return model


@pytest.fixture(scope="module")
def other(model):
    torch.manual_seed(1)
    return trained(model)


@pytest.fixture(scope="module")
def inputs(model):
    """z_t, t, context without and with a prompt, for two samples."""
    z_t = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    return z_t, torch.tensor([500, 500]), model.encode_prompts(["", ""]), model.encode_prompts(["a cyst", "no cyst"])


def hints(count=2, at=4):
    hint = torch.zeros(count, 3, 16, 16)
    hint[..., at : at + 5, at : at + 6] = 1
    return hint


def plus(a, b):
    return Control([x + y for x, y in zip(a.skips, b.skips, strict=True)], a.middle + b.middle)


def test_features_of_a_hint_that_were_computed_before_change_no_bit(model, inputs):
    """ControlNet Eq. 4: the hint enters once, through features that no timestep changes."""
    z_t, t, _, context = inputs
    features = model.controlnet.hint_network(hints())
    from_hint = model.controlnet(z_t, t, context, hints())
    from_features = model.controlnet(z_t, t, context, hint_features=features)
    assert torch.equal(from_hint.middle, from_features.middle)
    assert all(torch.equal(a, b) for a, b in zip(from_hint.skips, from_features.skips, strict=True))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_text_and_hint_features_are_computed_once_per_sample_whatever_the_steps(model, guidance):
    calls = {"text": 0, "hint": 0, "controlnet": 0}

    def count(name):
        return lambda *_: calls.update({name: calls[name] + 1})

    handles = [
        model.text.register_forward_hook(count("text")),
        model.controlnet.hint_network.register_forward_hook(count("hint")),
        model.controlnet.register_forward_hook(count("controlnet")),
    ]
    try:
        generate(model, ["a", "b"], masks=hints()[:, :1], sampling=Sampling(steps=6, guidance=guidance, exact=False))
    finally:
        for handle in handles:
            handle.remove()
    assert calls == {"text": 1 if guidance == 1.0 else 2, "hint": 1, "controlnet": 6}


def test_13_residuals_have_the_guess_weights_of_the_original_and_equal_ones_without():
    """0.825^(12 - i), read off gradio_canny2image.py."""
    assert residual_weights(13, 2.0, guess=True) == pytest.approx([2.0 * 0.825 ** (12 - i) for i in range(13)])
    assert residual_weights(13, 2.0, guess=False) == (2.0,) * 13
    assert residual_weights(6, 1.0, guess=True)[-1] == 1.0


def test_guess_mode_controls_the_half_with_the_prompt_only(model, inputs):
    z_t, t, negative, context = inputs
    term = ControlTerm(model.controlnet, hints(), 1.5, guess=True)
    conditions = prepare_conditions(model, ["a cyst", "no cyst"], "", Guidance(3.0), [term])
    guided = guided_prediction(model, z_t, t, conditions)

    skips, middle = model.controlnet(z_t, t, context, hints())
    n = len(skips) + 1
    control = Control([1.5 * 0.825 ** (n - 1 - i) * skip for i, skip in enumerate(skips)], 1.5 * middle)
    eps_u, eps_c = model.unet(z_t, t, negative), model.unet(z_t, t, context, control)
    torch.testing.assert_close(guided, eps_u + 3.0 * (eps_c - eps_u), rtol=1e-4, atol=1e-5)


def test_two_controlnets_add_their_residuals_each_with_its_weight(model, other, inputs):
    """ControlNet Eq. 2, several times over one UNet."""
    z_t, t, _, context = inputs
    terms = [ControlTerm(model.controlnet, hints(), 0.5), ControlTerm(other, hints(at=8), 2.0)]
    total = add_controls(prepare_controls(terms, SCHEDULE, 50), z_t, t, context, guided=False)

    def scaled(controlnet, hint, scale):
        skips, middle = controlnet(z_t, t, context, hint)
        return Control([scale * skip for skip in skips], scale * middle)

    expected = plus(scaled(model.controlnet, hints(), 0.5), scaled(other, hints(at=8), 2.0))
    torch.testing.assert_close(total.middle, expected.middle)
    torch.testing.assert_close(total.skips, expected.skips)


def test_a_second_controlnet_changes_the_sample_and_one_of_scale_0_does_not(model, other):
    masks = hints()[:, :1]
    sampling = Sampling(steps=3)
    alone = generate(model, ["a", "b"], masks=masks, sampling=sampling)
    for scale, same in ((0.0, True), (1.0, False)):
        both = generate(
            model, ["a", "b"], masks=masks, controls=[ControlTerm(other, hints(), scale)], sampling=sampling
        )
        assert torch.equal(both, alone) == same


@pytest.mark.parametrize("steps", [10, 50, 999])
@pytest.mark.parametrize(("start", "end"), [(0.0, 0.3), (0.3, 1.0), (0.2, 0.7), (0.5, 0.5)])
def test_control_acts_in_its_share_of_the_steps_counted_from_noise(steps, start, end):
    grid = [t for t, _ in ddim_timesteps(SCHEDULE, steps)]
    acting = [i for i, t in enumerate(grid) if t in acting_timesteps(SCHEDULE, steps, start, end)]
    assert acting == [i for i in range(steps) if 1000 * i >= 1000 * start * steps and i + 1 <= end * steps + 1e-6]
    assert len(acting) == pytest.approx((end - start) * steps, abs=1)


def test_shares_0_to_a_half_and_a_half_to_1_call_the_controlnet_in_the_two_halves_of_the_steps(model):
    timesteps = []
    handle = model.controlnet.register_forward_pre_hook(lambda _, args: timesteps.append(int(args[1][0])))
    try:
        for start, end in ((0.0, 0.5), (0.5, 1.0)):
            term = ControlTerm(model.controlnet, hints(1), start=start, end=end)
            generate(model, ["a"], controls=[term], sampling=Sampling(steps=4))
    finally:
        handle.remove()
    assert timesteps == [751, 501, 251, 1]


def test_control_that_ends_at_0_is_no_control(model):
    term = ControlTerm(model.controlnet, hints(1), end=0.0)
    controlled, plain = (generate(model, ["a"], controls=c, sampling=Sampling(steps=2)) for c in ([term], []))
    assert torch.equal(controlled, plain)


def test_a_mask_of_two_lesions_steers_unlike_either_of_them(model):
    one, two = hints(1, at=1)[:, :1], hints(1, at=9)[:, :1]
    both = torch.maximum(one, two)
    images = [generate(model, ["a"], masks=mask, sampling=Sampling(steps=2)) for mask in (both, one, two)]
    assert float((images[0] - images[1]).abs().max()) > 1e-4
    assert float((images[0] - images[2]).abs().max()) > 1e-4


def test_the_hint_of_a_mask_is_the_mask_in_three_channels(model):
    masks = (torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    assert torch.equal(model.controlnet.hint_of(masks), torch.cat([masks] * 3, dim=1))


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (0.8, 0.2, r"control starts at 0\.8 of the steps, after its end at 0\.2"),
        (-0.1, 1.0, r"control from -0\.1 to 1\.0: use shares of the steps, 0 to 1"),
        (0.0, 1.1, r"control from 0\.0 to 1\.1: use shares"),
    ],
)
def test_a_start_after_the_end_and_shares_outside_0_to_1_are_refused(model, start, end, message):
    with pytest.raises(ValueError, match=message):
        ControlTerm(model.controlnet, hints(), start=start, end=end)


def test_a_hint_of_another_size_is_refused(model):
    with pytest.raises(ValueError, match=r"a hint of shape \(1, 3, 16, 16\): this batch needs \(2, 3, 16, 16\)"):
        generate(model, ["a", "b"], controls=[ControlTerm(model.controlnet, hints(1))])
