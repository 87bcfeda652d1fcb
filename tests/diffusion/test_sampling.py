"""Sampling: the loop with fake models of three lines, guidance, seeds, and every refusal."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from ldm_us.config import TINY, US128, ControlConfig, ModelConfig, ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from ldm_us.diffusion import sampling
from ldm_us.diffusion.controls import ControlTerm, prepare_controls
from ldm_us.diffusion.ddpm import make_schedule, q_sample
from ldm_us.diffusion.guidance import Conditions, Guidance, guided_prediction
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.noise import draw
from ldm_us.diffusion.sampling import Sampling, conditions_of, decode, denoise, generate
from ldm_us.networks.unet import Control

SMALL = ModelConfig(
    name="small",
    image_size=16,
    vae=VAEConfig(width=16, multipliers=(1, 2), res_blocks=1, groups=8),
    text=TextConfig(width=16, heads=2, layers=1, mlp_width=32),
    unet=UNetConfig(
        width=16, multipliers=(1, 2), attention=(True, False), res_blocks=1, heads=2, context_width=16, groups=8
    ),
    control=ControlConfig(hint_channels=(8, 16)),
)
PROMPTS = ["a benign tumor", "a malignant tumor", "no tumor"]
SCHEDULE = make_schedule(ScheduleConfig())
BATCH = {"threads": None, "exact": False}  # the whole batch in one call
TO_ONE = make_schedule(ScheduleConfig(final_alpha_bar_one=True))


def fake(schedule, eps_of_z_t):
    """A model whose UNet is a function of z_t and t, and conditions for two samples of it, in float64."""
    unet = lambda z_t, t, context, control: eps_of_z_t(z_t, t)  # noqa: E731
    model = SimpleNamespace(config=SMALL, schedule=schedule, unet=unet)

    def conditions(batch):
        context = torch.zeros(batch, 1, 1, dtype=torch.float64)
        return Conditions(context, context, Guidance(1.0))

    return model, conditions


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def trained(model):
    """Give the zero convolutions values, as training would."""
    controlnet = model.add_controlnet()
    for conv in [*controlnet.zero_convs, controlnet.zero_conv_middle, controlnet.hint_network.conv_out]:
        torch.nn.init.normal_(conv.weight, std=0.1)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LatentDiffusion(SMALL).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def controlled():
    torch.manual_seed(0)
    return trained(LatentDiffusion(SMALL))


@pytest.fixture
def batches(model):
    """The batch size of every call of the UNet."""
    sizes = []
    handle = model.unet.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    yield sizes
    handle.remove()


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 0.7), ("ddpm", 0.0)])
def test_a_model_that_knows_z_0_walks_any_noise_back_to_it(sampler, eta):
    """DDIM Eq. 12 and DDPM Eq. 6, in a loop."""
    z_0, z_T = torch.randn(2, 2, 4, 8, 8, generator=generators(1)[0], dtype=torch.float64)

    def true_eps(z_t, t):
        alpha_bar = SCHEDULE.alpha_bar[t].view(-1, 1, 1, 1)
        return (z_t - alpha_bar.sqrt() * z_0) / (1 - alpha_bar).sqrt()

    model, conditions = fake(TO_ONE, true_eps)
    steps = list(denoise(model, z_T, conditions(2), generators(0, 1), Sampling(sampler, 10, eta)))
    torch.testing.assert_close(steps[-1].z, z_0, rtol=0, atol=1e-10)
    for step in steps:
        torch.testing.assert_close(step.z_0_hat, z_0, rtol=0, atol=1e-9)
    assert [step.t for step in steps] == list(range(901, 0, -100))


def test_a_constant_eps_walked_back_by_ddim_lands_on_alpha_bar_0_by_default():
    """DDIM Eq. 12."""
    z_0, eps = torch.randn(2, 1, 4, 8, 8, generator=generators(1)[0], dtype=torch.float64)
    z_T = q_sample(SCHEDULE, z_0, torch.tensor([751]), eps)
    model, conditions = fake(SCHEDULE, lambda z, t: eps)
    *_, last = denoise(model, z_T, conditions(1), generators(0), Sampling(steps=4))
    torch.testing.assert_close(last.z, q_sample(SCHEDULE, z_0, torch.tensor([0]), eps), rtol=0, atol=1e-10)


def test_the_loop_leaves_its_start_untouched_and_draws_nothing_at_eta_0():
    z_T, generator = torch.ones(1, 4, 2, 2), generators(5)[0]
    model, conditions = fake(SCHEDULE, lambda z, t: z)
    list(denoise(model, z_T, conditions(1), [generator], Sampling(steps=3)))
    assert torch.equal(z_T, torch.ones(1, 4, 2, 2))
    assert torch.equal(torch.randn(3, generator=generator), torch.randn(3, generator=generators(5)[0]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sampler": "euler"}, "sampler 'euler': use one of ddim, ddpm"),
        ({"precision": "fp8"}, "precision 'fp8': use one of fp32, tf32, bf16, fp16"),
        ({"eta": -1}, "eta -1"),
        ({"eta": float("nan")}, "eta nan"),
        ({"guidance_rescale": 2.0}, r"guidance rescale 2\.0"),
        ({"guidance_interval": (3.0, 1.0)}, r"guidance interval 3\.0 to 1\.0"),
        ({"control_start": 0.9, "control_end": 0.1}, r"control starts at 0\.9 of the steps, after its end at 0\.1"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_there_is_a_model(wrong, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**wrong)


@pytest.mark.parametrize("masked", [False, True])
def test_none_means_the_models_own_guidance_control_scale_and_size_and_a_given_value_stays(masked):
    own = Sampling().resolved(US128, masked)
    assert (own.guidance, own.control_scale, own.size) == (US128.guidance(masked), US128.control.scale, 128)
    given = Sampling(guidance=5.0, control_scale=0.5, size=64)
    assert given.resolved(US128, masked) == given
    with pytest.raises(ValueError, match="image size 100: us128 needs a multiple of 16 pixels"):
        Sampling(size=100).resolved(US128, masked)


def test_generate_without_settings_has_the_models_own(controlled):
    """The bundled ControlNet shows its mask at its own scale and guidance, hardly at those of SD 1.5."""
    masks = torch.zeros(1, 1, 16, 16)
    masks[..., 4:9, 4:9] = 1
    own = dataclasses.replace(SMALL, control=dataclasses.replace(SMALL.control, scale=2.0, guidance=1.5))
    torch.manual_seed(0)
    model = trained(LatentDiffusion(own))
    told = Sampling(steps=2, guidance=1.5, control_scale=2.0)
    assert torch.equal(
        generate(model, ["a"], masks=masks, sampling=Sampling(steps=2)),
        generate(controlled, ["a"], masks=masks, sampling=told),
    )


@torch.no_grad()
@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0, 7.5])
def test_guidance_is_the_formula_of_two_separate_calls(model, guidance):
    """Guidance Eq. 6: (1 + w) eps_c - w eps_u, with w = s - 1."""
    z_t, t, w = torch.randn(2, 4, 8, 8, generator=generators(1)[0]), torch.tensor([500, 20]), guidance - 1
    context, negative = model.encode_prompts(PROMPTS[:2]), model.encode_prompts(["", "text"])
    eps_c, eps_u = model.unet(z_t, t, context), model.unet(z_t, t, negative)
    guided = guided_prediction(model, z_t, t, Conditions(context, negative, Guidance(guidance)))
    torch.testing.assert_close(guided, (1 + w) * eps_c - w * eps_u, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_control_is_scaled_and_enters_both_halves_of_guidance(controlled, scale):
    """ControlNet Eq. 2 under Guidance Eq. 6."""
    z_t, t = torch.randn(1, 4, 8, 8, generator=generators(1)[0]), torch.tensor([500])
    context, negative = controlled.encode_prompts(["a"]), controlled.encode_prompts([""])
    hint = torch.zeros(1, 3, 16, 16)
    hint[..., 4:9, 4:9] = 1

    def eps(states):
        control = controlled.controlnet(z_t, t, states, hint)
        scaled = Control([scale * residual for residual in control.skips], scale * control.middle)
        return controlled.unet(z_t, t, states, scaled)

    expected = eps(negative) + 3.0 * (eps(context) - eps(negative))
    ready = prepare_controls([ControlTerm(controlled.controlnet, hint, scale)], controlled.schedule, steps=50)
    guided = guided_prediction(controlled, z_t, t, Conditions(context, negative, Guidance(3.0), ready))
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("guidance", "factor"), [(1.0, 1), (7.5, 2), (0.0, 2)])
def test_guidance_1_calls_the_unet_at_batch_b_and_any_other_at_2b(model, batches, guidance, factor):
    generate(model, PROMPTS, sampling=Sampling(steps=4, guidance=guidance, **BATCH))
    assert batches == [factor * 3] * 4


def test_exact_samples_are_the_same_bits_alone_and_in_any_batch_and_hold_one_sample_a_call(model, batches):
    options = {"sampling": Sampling(steps=2, guidance=2.0, eta=1.0), "negative_prompts": ["x", "y", "z"]}
    together = generate(model, PROMPTS, seeds=[5, 6, 7], **options)
    assert batches == [2] * 6
    alone = generate(model, PROMPTS[2:], seeds=[7], **options | {"negative_prompts": "z"})
    assert torch.equal(together[2], alone[0])


def test_threads_are_those_of_the_settings_inside_and_as_before_outside(model):
    before, seen = torch.get_num_threads(), []
    handle = model.unet.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    for threads in (1, 2, None):
        generate(model, ["a"], sampling=Sampling(steps=1, guidance=1.0, threads=threads))
    handle.remove()
    assert seen == [1, 2, before]
    assert torch.get_num_threads() == before


def test_noise_is_drawn_bit_by_bit_from_each_samples_own_seed():
    first, second = draw((2, 4, 3, 3), generators(7, 8))
    again_second, again_first = draw((2, 4, 3, 3), generators(8, 7))
    assert torch.equal(first, again_first)
    assert torch.equal(second, again_second)
    assert torch.equal(first, torch.randn(4, 3, 3, generator=generators(7)[0]))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0)])
def test_a_sample_depends_on_its_own_seed_alone(model, sampler, eta):
    options = {"sampling": Sampling(sampler, 4, eta, **BATCH)}
    batch = generate(model, PROMPTS, seeds=[5, 6, 7], **options)
    alone = generate(model, PROMPTS[1:2], seeds=[6], **options)
    elsewhere = generate(model, PROMPTS[::-1], seeds=[7, 6, 5], **options)
    torch.testing.assert_close(alone[0], batch[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(elsewhere.flip(0), batch, rtol=0, atol=1e-5)
    other_seed = generate(model, PROMPTS[1:2], seeds=[60], **options)
    assert float((other_seed[0] - batch[1]).abs().max()) > 1e-2


def test_the_same_call_gives_the_same_bits_and_seeds_count_from_0_by_default(model):
    sampling = Sampling(steps=3, eta=1.0)
    image = generate(model, PROMPTS, sampling=sampling)
    assert torch.equal(image, generate(model, PROMPTS, sampling=sampling, seeds=[0, 1, 2]))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_eta_and_the_ddpm_sampler_draw_noise_beyond_the_start(model, sampler):
    z_T = draw((1, 4, 8, 8), generators(3))
    eta = 1.0 if sampler == "ddim" else 0.0
    sampling = Sampling(sampler, 3, eta)
    one, other = (generate(model, ["a"], seeds=[s], z_T=z_T, sampling=sampling) for s in (0, 1))
    assert float((one - other).abs().max()) > 1e-3


@pytest.mark.parametrize(("size", "pixels"), [(None, 16), (24, 24)])
def test_images_lie_between_0_and_1_at_the_asked_size_or_that_of_the_model(model, size, pixels):
    images = generate(model, PROMPTS, sampling=Sampling(steps=2, size=size))
    assert images.shape == (3, 3, pixels, pixels)
    assert images.dtype == torch.float32
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1


def test_the_picture_is_the_decoded_last_step_moved_from_minus_1_1_to_0_1(model):
    sampling = Sampling(steps=3, threads=None).resolved(SMALL, masked=False)
    images = generate(model, ["a"], sampling=sampling)
    conditions = conditions_of(model, ["a"], sampling)
    steps = list(denoise(model, draw((1, 4, 8, 8), generators(0)), conditions, generators(0), sampling))
    with torch.no_grad():
        expected = ((model.vae.decode(steps[-1].z) + 1) / 2).clip(0, 1)
    assert len(steps) == 3
    torch.testing.assert_close(images, expected)


def test_given_noise_sets_the_size_and_replaces_the_seed_at_eta_0(model):
    z_T = draw((1, 4, 4, 12), generators(3))
    image = generate(model, ["a"], z_T=z_T, sampling=Sampling(steps=2))
    assert image.shape == (1, 3, 8, 24)
    assert torch.equal(image, generate(model, ["a"], z_T=z_T, sampling=Sampling(steps=2), seeds=[99]))


def test_negative_prompts_matter_only_under_guidance(model):
    for guidance, same in ((1.0, True), (5.0, False)):
        sampling = Sampling(steps=2, guidance=guidance)
        plain, negative = (generate(model, ["a"], n, sampling=sampling) for n in ("", "text"))
        assert torch.equal(plain, negative) == same


def test_a_mask_steers_a_model_with_a_trained_controlnet_and_scale_0_switches_it_off(controlled):
    masks = torch.zeros(1, 1, 16, 16)
    masks[..., 4:9, 4:9] = 1
    plain = generate(controlled, ["a"], sampling=Sampling(steps=2))
    steered, off = (
        generate(controlled, ["a"], masks=masks, sampling=Sampling(steps=2, control_scale=scale))
        for scale in (1.0, 0.0)
    )
    assert float((steered - plain).abs().max()) > 1e-3
    assert torch.equal(off, plain)


def test_a_model_in_bfloat16_samples_too():
    torch.manual_seed(0)
    model = trained(LatentDiffusion(SMALL)).to(torch.bfloat16)
    images = generate(model, ["a"], masks=torch.ones(1, 1, 16, 16), sampling=Sampling(steps=2))
    assert images.dtype == torch.float32
    assert bool(images.isfinite().all())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seeds": [1]}, "1 seeds for 2 prompts: give one per prompt"),
        ({"seeds": [1, 2, 3]}, "3 seeds for 2 prompts: give one per prompt"),
        ({"negative_prompts": ["a"] * 3}, "3 negative prompts for 2 prompts: give one per prompt"),
        ({"z_T": torch.zeros(1, 4, 8, 8)}, "1 z_T for 2 prompts: give one per prompt"),
        ({"z_T": torch.zeros(2, 4, 8, 7)}, "image size 14: small needs a multiple of 4 pixels"),
        ({"sampling": Sampling(size=18)}, "image size 18: small needs a multiple of 4 pixels"),
        ({"masks": torch.zeros(1, 1, 16, 16)}, r"masks of shape \(1, 1, 16, 16\): this batch needs \(2, 1, 16, 16\)"),
        ({"masks": torch.zeros(2, 3, 16, 16)}, r"masks of shape .* this batch needs \(2, 1, 16, 16\)"),
        ({"masks": torch.zeros(2, 1, 16, 16), "z_T": torch.zeros(2, 4, 4, 8)}, r"this batch needs \(2, 1, 8, 16\)"),
        ({"sampling": Sampling(steps=0)}, r"0 sampling steps: .* Use 1\.\.1000"),
    ],
)
def test_a_batch_that_does_not_fit_together_is_refused(controlled, wrong, message):
    with pytest.raises(ValueError, match=message):
        generate(controlled, PROMPTS[:2], **wrong)


def test_no_prompts_are_refused(model):
    with pytest.raises(ValueError, match="no prompts"):
        generate(model, [])


def test_masks_without_a_controlnet_are_refused(model):
    with pytest.raises(ValueError, match="masks need a model with a ControlNet"):
        generate(model, ["a"], masks=torch.zeros(1, 1, 16, 16))


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_sample_that_overflows_is_an_error_and_no_picture(part):
    """Weights that are numbers, but too large: latents or pixels become infinite."""
    torch.manual_seed(0)
    model = LatentDiffusion(TINY).eval().requires_grad_(False)
    model.get_submodule({"unet": "unet.decoder.conv_out", "vae": "vae.post_quant_conv"}[part]).weight.fill_(3e38)
    with pytest.raises(ValueError, match="a sample is not finite: its weights overflow"):
        generate(model, ["a"], sampling=Sampling(steps=1, guidance=1.0, size=64))


def test_a_batch_is_decoded_by_slices_each_image_with_its_own_noise(monkeypatch):
    """As many latents at a time as fit, whatever the batch; the pictures are those of the whole batch."""
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, vae=dataclasses.replace(SMALL.vae, noise_levels=1))
    model = LatentDiffusion(config).eval().requires_grad_(False)
    z_0 = torch.randn(5, 4, 8, 8)
    noise = torch.randn(5, model.vae.noise_size(8, 8))
    whole = [decode(model, z_0, each) for each in (noise, None)]
    sizes, decode_unscaled = [], model.vae.decode_unscaled
    monkeypatch.setattr(model.vae, "decode_unscaled", lambda z, each: sizes.append(len(z)) or decode_unscaled(z, each))
    for places, expected in ((2 * 64, [2, 2, 1]), (10, [1] * 5)):
        monkeypatch.setattr(sampling, "PLACES", places)
        sizes.clear()
        for of_batch, each in zip(whole, (noise, None), strict=True):
            torch.testing.assert_close(decode(model, z_0, each), of_batch, rtol=0, atol=1e-5)
        assert sizes == expected * 2
