"""Start-up, memory of a sample, conversion: what one side does as a program of its own, from its first import on."""

import sys
from typing import Any

import torch

from bench.speed.measuring import peak_memory, unix_time
from bench.speed.settings import Settings

PROMPT = "an ultrasound image of a breast"


def start_side(settings: Settings, side: str) -> dict[str, Any]:
    """Import, load, encode a prompt and take one step: when that was done. The process has imported torch alone."""
    if side == "ours":
        import ldm_us
        from ldm_us.diffusion.noise import generators_of
        from ldm_us.diffusion.sampling import conditions_of, denoise, draw_start

        model = ldm_us.load_model(settings.weights, settings.device, settings.torch_dtype)
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
    return {"ended": unix_time(), "peak": peak_memory(settings.device)}


def sample_side(settings: Settings, side: str) -> dict[str, Any]:
    """A guided sample with a mask, of two steps: the most memory."""
    mask = torch.zeros(1, 1, settings.size, settings.size)
    mask[..., settings.size // 3 : settings.size // 2, settings.size // 3 : settings.size // 2] = 1
    if side == "ours":
        import ldm_us

        model = ldm_us.load_model(settings.weights, settings.device, settings.torch_dtype)
        sampling = ldm_us.Sampling(steps=2, guidance=7.5, size=settings.size, threads=settings.threads)
        ldm_us.generate(model, [PROMPT], masks=mask.to(settings.device), sampling=sampling)
    else:
        from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

        dtype: dict[str, Any] = {"torch_dtype": settings.torch_dtype, "local_files_only": True}
        controlnet = ControlNetModel.from_pretrained(settings.folder / "controlnet", **dtype)
        pipeline = StableDiffusionControlNetPipeline.from_pretrained(
            settings.folder, controlnet=controlnet, safety_checker=None, **dtype
        ).to(settings.device)
        pipeline.set_progress_bar_config(disable=True)
        image = mask.expand(-1, 3, -1, -1)
        pipeline(PROMPT, image=image, num_inference_steps=2, guidance_scale=7.5, output_type="pt")
    return {"peak": peak_memory(settings.device)}


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
    return {"ended": unix_time(), "peak": peak_memory("cpu")}
