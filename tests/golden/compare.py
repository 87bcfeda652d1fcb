"""The golden numbers, the inputs that belong to them and the distance from them."""

from pathlib import Path

import numpy as np
import torch

from tests.golden.fill import uniform

BAR = 2e-5  # relative norm difference; float32 gives 1e-7 to 8e-6
GOLDEN = {size: dict(np.load(Path(__file__).parent / f"{size}.npz")) for size in ("tiny", "sd15")}


def difference(result, size, name):
    expected = torch.from_numpy(GOLDEN[size][name])
    assert result.shape == expected.shape
    return float((result - expected).norm() / expected.norm())


def unet_inputs(config):
    z_t, context = uniform("x", (2, 4, 16, 16)), uniform("context", (2, 77, config.unet.context_width))
    return torch.from_numpy(z_t), torch.tensor([37, 961]), torch.from_numpy(context)


def hint():
    return torch.from_numpy(uniform("hint", (2, 3, 128, 128)) > 0).float()


def vae_inputs():
    return torch.from_numpy(uniform("image", (1, 3, 64, 64))).clamp(-1, 1), torch.from_numpy(uniform("z", (1, 4, 8, 8)))


def named(control, every=1):
    return {f"controlnet.residual_{i:02}": r[:, ::every] for i, r in enumerate([*control.skips, control.middle])}
