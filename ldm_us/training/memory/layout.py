"""How the networks of a stage lie in memory: their precision, recomputed blocks, channels last, compiled."""

import torch

from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.half_precision import cast_frozen
from ldm_us.networks.recompute import set_recompute
from ldm_us.training.options import TrainOptions
from ldm_us.training.start import needed_parts


def speed_up(model: LatentDiffusion, options: TrainOptions) -> None:
    """Apply --precision, --gradient-checkpointing, --channels-last and --compile to the networks of the stage."""
    cast_frozen(model, options.precision, None if options.shard else options.weights, needed_parts(options))
    if model.device.type == "cuda":  # for the whole process: backward computes outside of any block
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.precision == "tf32"
    for part in needed_parts(options):
        network = model.get_submodule(part)
        if options.gradient_checkpointing and part != "text":
            set_recompute(network, True)
        if options.channels_last:
            network.to(memory_format=torch.channels_last)
        if options.compile:  # the VAE is called through methods, not as a whole
            for called in (model.vae.encoder, model.vae.decoder) if part == "vae" else (network,):
                called.compile()
