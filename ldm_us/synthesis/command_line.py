"""The command line of sample.py: what can be asked for. Nothing here waits for PyTorch."""

import argparse
from collections.abc import Callable
from pathlib import Path

from ldm_us.config import BUNDLED, ITERATIONS, PRECISIONS, SAMPLERS, STRENGTH
from ldm_us.data.framing import parse_size
from ldm_us.runtime.command_line import EXIT_CODES, add_two_helps

LAYOUTS = ("flat", "busi")
EVERY_DAY = (  # in --help; --help-all has the rest
    *("--class", "--prompt", "--mask", "--n", "--seed", "--weights", "--steps", "--guidance", "--control-scale"),
    *("--init", "--inpaint", "--invert", "--device", "--out", "--overwrite", "--info", "--verify"),
)
ABOUT = (
    "Draw samples of a model, or edit images with it. Synthetic: not for diagnosis. The same command with the same "
    "--out goes on where the last one ended; --overwrite begins anew."
)
EXAMPLES = """\
Examples: the bundled model; masks; an edit; is a picture what it says it is?
  python sample.py
  python sample.py --mask docs/masks --n 1 --out masked
  python sample.py --init samples/0000_benign_seed0.png --prompt \\
      "Ultrasound image of a malignant breast" --strength 0.5 --out edited
  python sample.py --verify samples/0000_benign_seed0.png

""" + EXIT_CODES.replace("done, ", "done, 1 --verify found a difference,\n")


def seed(text: str) -> int | None:
    """--seed N, or random: None."""
    return None if text == "random" else int(text)


def size(text: str) -> int | tuple[int, int]:
    """--size 512, or 640x448; see parse_size."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def build_parser() -> argparse.ArgumentParser:
    """Describe sample.py's command line."""
    parser = argparse.ArgumentParser(prog="sample.py", description=ABOUT, epilog=EXAMPLES, add_help=False)
    add_two_helps(parser, EVERY_DAY)
    add_what(parser.add_argument_group("what").add_argument)
    add_how(parser.add_argument_group("how").add_argument)
    add_edits(parser)
    add = parser.add_argument_group("copies of training images").add_argument
    add("--drop-memorised", type=Path, metavar="REPORT", help="draw again what memorisation.json calls a copy")
    add("--data", type=Path, nargs="+", metavar="DIR", help="--drop-memorised: the training data")
    add = parser.add_argument_group("where to").add_argument
    add("--out", type=Path, metavar="DIR", help="folder, new or to go on with (samples, samples-2, ...)")
    add("--layout", choices=LAYOUTS, default="flat", help="busi: class folders with masks (%(default)s)")
    add("--overwrite", action="store_true", help="delete the samples in --out, and begin again")
    add("--watermark", action="store_true", help="invisible, says synthetic (extra: watermark)")
    add("--info", action="store_true", help="say what --weights holds and where it is from, and stop")
    add("--verify", type=Path, metavar="PATH", help="draw a sample, or a folder of them, again, and compare")
    return parser


def add_what(add: Callable[..., object]) -> None:
    """Classes, prompts, masks and how many of each."""
    add("--class", dest="labels", action="append", default=[], metavar="NAME", help="a class of the model (all)")
    add("--prompt", metavar="TEXT", help="any other text instead of a class")
    add("--negative-prompt", default="", metavar="TEXT", help="what to steer away from (nothing)")
    add("--prompt-weights", action="store_true", help="read (word:1.3), (word), [word] in prompts, as A1111 does")
    add("--long-prompts", type=int, metavar="N", help="read prompts in N chunks of 75 tokens (as the model was taught)")
    add("--mask", type=Path, metavar="PATH", help="a mask, white on black, or a folder of masks")
    add("--n", type=int, metavar="N", help="samples of each; with --balance of all (4)")
    add("--balance", type=float, nargs="+", metavar="X", help="shares or counts, in the order of --info")
    add("--seed", type=seed, default=0, metavar="N", help="of the first sample, others follow; or random (%(default)s)")


def add_how(add: Callable[..., object]) -> None:
    """Weights, sampler and machine."""
    add("--weights", type=Path, default=BUNDLED, metavar="FILE", help="a model.safetensors (the bundled us128)")
    add("--controlnet", type=Path, metavar="FILE", help="take the ControlNet of this model file")
    add("--lora", nargs="+", action="extend", default=[], metavar="FILE[:X]", help="merged with weight X")
    add("--steps", type=int, metavar="S", help="model calls per image, 1..1000 (dpm 20, others 50)")
    add("--sampler", choices=SAMPLERS, help="(dpm; with --eta, --inpaint or --invert ddim)")
    add("--eta", type=float, default=0.0, metavar="X", help="noise of ddim: 0 none, 1 as ddpm (%(default)s)")
    add("--guidance", type=float, metavar="S", help="of the text, 1: none (sd15 7.5; us128 3, 1 with a mask)")
    add("--control-scale", type=float, metavar="X", help="weight of the mask (sd15 1; us128 2)")
    add("--no-prior", dest="prior", action="store_false", help="start from N(0, I), not from the start prior")
    add("--no-grain", dest="grain", action="store_false", help="what latents hold: no grain, no noise of the decoder")
    add("--size", type=size, metavar="PIXELS", help="a side, or WIDTHxHEIGHT (as --init or --mask, or the model's)")
    add("--tile", type=int, metavar="PIXELS", help="decode and encode by overlapping tiles: less memory, other bits")
    add("--batch", type=int, metavar="N", help="images at a time; changes no bit (4; a CPU of more cores: one a core)")
    add("--fast", action="store_true", help="a batch in one call, which changes the last bits (with a GPU)")
    add("--exact", action="store_true", help="one sample a call, fp32 unless --precision, on a GPU as on the CPU")
    add("--threads", type=int, default=1, metavar="N", help="of the CPU; they fix the bits too (%(default)s)")
    add("--device", default="auto", help="cpu, cuda, cuda:1 (that of --out or --verify, else a GPU where there is one)")
    add("--precision", choices=PRECISIONS, help="(fp32; on a GPU bf16, or fp16 where it has no bf16)")


def add_edits(parser: argparse.ArgumentParser) -> None:
    """Edits of an image, limits of guidance and control, and strips; each default changes nothing."""
    add = parser.add_argument_group("editing an image").add_argument
    add("--init", type=Path, metavar="IMAGE", help="start from this image")
    add("--strength", type=float, metavar="X", help=f"0 as it is, 1 all steps ({STRENGTH}; --invert 1)")
    add("--inpaint", type=Path, metavar="REGION", help="change --init only where this mask is white")
    add("--resample", type=int, default=1, metavar="N", help="--inpaint: times each step is taken (%(default)s)")
    add("--no-paste", action="store_true", help="--inpaint: outside, show --init reconstructed")
    add("--invert", action="store_true", help="start from the noise that leads to --init")
    add("--source-class", metavar="NAME", help="--invert: class of --init (that of the sample)")
    add("--source-prompt", metavar="TEXT", help="--invert: what --init shows, if no class")
    add("--source-mask", type=Path, metavar="PATH", help="--invert: lesion of --init, moved to --mask")
    add("--iterations", type=int, default=ITERATIONS, metavar="N", help="--invert: refinements a step (%(default)s)")

    add = parser.add_argument_group("guidance and control").add_argument
    add("--guidance-rescale", type=float, default=0.0, metavar="X", help="0 none to 1 (%(default)s)")
    add("--guidance-interval", type=float, nargs=2, metavar=("LO", "HI"), help="noise levels that are guided (all)")
    add("--control-start", type=float, default=0.0, metavar="X", help="share of the steps before the mask acts (0)")
    add("--control-end", type=float, default=1.0, metavar="X", help="share of the steps until it does not (1)")
    add("--guess", action="store_true", help="guess mode: the mask says what to draw")
    add(
        "--also-control",
        nargs=3,
        action="append",
        default=[],
        metavar=("FILE", "HINT", "X"),
        help="add FILE's ControlNet on HINT, weight X; repeats",
    )

    add = parser.add_argument_group("pictures of how a sample came about").add_argument
    add("--trajectory", action="store_true", help="latents and predicted images through time")
    add("--explain", action="store_true", help="attention to each word; the mask's effect")
