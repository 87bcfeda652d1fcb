"""From the original Stable Diffusion 1.5 weights to a picture.   Papers: arXiv 2112.10752 (LDM), 2207.12598 (guidance).

Put v1-5-pruned-emaonly.safetensors (4 GB) into this folder; sd15.safetensors, which is the same in our names, and
sd15.png will lie beside it.

    python examples/sd15.py
"""

from pathlib import Path

import torch

import ldm_us
from weights_convert.__main__ import main as weights_convert

ORIGINAL = Path("v1-5-pruned-emaonly.safetensors")  # or a .ckpt, or a diffusers folder
OURS = Path("sd15.safetensors")
PRESET, STEPS = "sd15", 50
PROMPT, NEGATIVE = "a photograph of an astronaut riding a horse", "blurry"


def main() -> None:
    # Once: every tensor of the original finds its place in our networks, or the import says which does not.
    if not OURS.exists():
        weights_convert(["import", str(ORIGINAL), "--preset", PRESET, "--out", str(OURS)])

    # Half precision on a GPU, 2 GB of weights; float32 on a CPU, 4 GB and minutes for a picture.
    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    model = ldm_us.load_model(OURS, device=device, dtype=dtype)

    # 50 steps of DDIM (Eq. 12), in each of which the text counts 7.5 times (Guidance Eq. 6).
    drawn = ldm_us.Sampling(steps=STEPS, guidance=7.5, threads=None)
    x = ldm_us.generate(model, [PROMPT], NEGATIVE, seeds=[0], sampling=drawn)  # (1, 3, 512, 512) in [0, 1]
    ldm_us.to_picture(x[0]).save("sd15.png")


if __name__ == "__main__":
    main()
