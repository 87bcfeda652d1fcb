"""Start-up, whole samples, conversion: what one side does as a program of its own, from its first import on."""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.machine import peak_memory, unix_time
from bench.speed.measuring import timed
from bench.speed.settings import Settings

PROMPT = "an ultrasound image of a breast"


def start_side(settings: Settings, side: str) -> dict[str, Any]:
    """Import, load, encode a prompt and take one step: when that was done. The process has imported torch alone."""
    if side == "ours":
        import ldm_us
        from ldm_us.diffusion.noise import generators_of
        from ldm_us.diffusion.sampling import conditions_of, denoise, draw_start

        networks = ("vae", "text", "unet")  # as their folder has
        model = ldm_us.load_model(settings.weights, settings.device, settings.torch_dtype, networks)
        sampling = ldm_us.Sampling(steps=2, guidance=7.5, size=settings.size).resolved(model.config, False)
        generators = generators_of([0])
        with torch.no_grad():
            conditions = conditions_of(model, [PROMPT], sampling)
            z_T = draw_start(model, sampling, generators, [PROMPT])
            next(denoise(model, z_T, conditions, generators, sampling)).z.cpu()
    else:
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(
            settings.folder, local_files_only=True, torch_dtype=settings.torch_dtype, safety_checker=None
        ).to(settings.device)
        pipeline.set_progress_bar_config(disable=True)
        shape = {"height": settings.size, "width": settings.size}
        pipeline(PROMPT, num_inference_steps=1, guidance_scale=7.5, output_type="latent", **shape).images.cpu()
    return {"ended": unix_time(), "cpu": time.process_time(), "peak": peak_memory(settings.device)}


def sample_side(settings: Settings, side: str) -> dict[str, Any]:
    """Guided samples with and without a mask: seconds of each number of steps, and the most memory."""
    draw = (our_samples if side == "ours" else their_samples)(settings)
    found: dict[str, Any] = {"seconds": {}}
    for masked in (False, True):
        draw(1, masked)  # warms up
        for steps in settings.steps:
            times = [timed(partial(draw, steps, masked), settings.clock)[1] for _ in range(settings.sample_rounds)]
            found["seconds"][sample_name(steps, masked)] = times
    return found | {"peak": peak_memory(settings.device)}


def sample_name(steps: int, masked: bool) -> str:
    """What a row says of a sample."""
    return f"sample {'with' if masked else 'without'} mask, {steps} steps"


def mask_of(settings: Settings) -> torch.Tensor:
    """A square lesion (1, 1, H, W) in {0, 1}."""
    mask = torch.zeros(1, 1, settings.size, settings.size, device=settings.device)
    mask[..., settings.size // 3 : settings.size // 2, settings.size // 3 : settings.size // 2] = 1
    return mask


def our_samples(settings: Settings) -> Callable[[int, bool], Any]:
    """The function that sample.py and a library user call."""
    import ldm_us

    model = ldm_us.load_model(settings.weights, settings.device, settings.torch_dtype)
    for network in (model.unet, model.controlnet) if settings.compiled else ():
        if network is not None:
            network.compile()

    def draw(steps: int, masked: bool) -> torch.Tensor:
        sampling = ldm_us.Sampling("ddim", steps, guidance=7.5, size=settings.size, threads=settings.threads)
        masks = mask_of(settings) if masked else None
        return ldm_us.generate(model, [PROMPT], seeds=[0], masks=masks, sampling=sampling).cpu()

    return draw


def their_samples(settings: Settings) -> Callable[[int, bool], Any]:
    """Their two pipelines, of the same parts."""
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline

    options: dict[str, Any] = {"torch_dtype": settings.torch_dtype, "local_files_only": True}
    controlnet = ControlNetModel.from_pretrained(settings.folder / "controlnet", **options).to(settings.device)
    plain = StableDiffusionPipeline.from_pretrained(settings.folder, safety_checker=None, **options).to(settings.device)
    for network in (plain.unet, controlnet) if settings.compiled else ():
        network.compile()
    parts = plain.components | {"requires_safety_checker": False}
    guided = StableDiffusionControlNetPipeline(**parts, controlnet=controlnet)
    for pipeline in (plain, guided):
        pipeline.set_progress_bar_config(disable=True)

    def draw(steps: int, masked: bool) -> torch.Tensor:
        shape: dict[str, Any] = {"height": settings.size, "width": settings.size}
        control = {"image": mask_of(settings).expand(-1, 3, -1, -1)} if masked else {}
        shape |= {"num_inference_steps": steps, "guidance_scale": 7.5, "output_type": "pt"}
        generator = torch.Generator().manual_seed(0)
        return (guided if masked else plain)(PROMPT, generator=generator, **shape, **control).images.cpu()

    return draw


def convert_side(settings: Settings, side: str) -> dict[str, Any]:
    """A CompVis file to what each side loads: read, rename, write; when that was done."""
    source, out = settings.scratch / "compvis.safetensors", settings.scratch / f"converted_{side}"
    if side == "ours":
        from weights_convert.__main__ import main

        main(["import", str(source), "--out", f"{out}.safetensors"])
    else:
        from diffusers import StableDiffusionPipeline

        StableDiffusionPipeline.from_single_file(
            str(source), config=str(settings.folder), local_files_only=True, safety_checker=None
        ).save_pretrained(out)
    sys.stdout.flush()
    return {"ended": unix_time(), "cpu": time.process_time(), "peak": peak_memory("cpu")}
