"""Is the hole of a lesson filled rightly? The reader's function stands in for the library's in the project's own tests.

python -m lessons.check 5                       # one sentence on lesson 5
python -m lessons.check                         # one on each lesson
python -m lessons.check 5 --folder lessons/solutions
"""

import argparse
import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ldm_us.runtime.command_line import answer_at_once, short_usage
from ldm_us.runtime.help_page import describe

LESSONS = Path(__file__).resolve().parent


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python -m lessons.check")
    about = "Is the hole of a lesson filled rightly? The project's own tests are run with your function in them."
    codes = "exit codes: 0 all are right, 1 one is not, 2 what was given cannot be used, 130 Ctrl-C"
    describe(parser, about, "5", "", "5 --folder lessons/solutions", codes=codes)
    parser.add_argument("lessons", nargs="*", type=int, metavar="N", help="1 to 10 (all)")
    parser.add_argument("--folder", type=Path, default=LESSONS, metavar="DIR", help="where they lie (lessons)")
    return short_usage(parser)


answer_at_once(__name__, build_parser)

from ldm_us.runtime.checks import check_extra
from ldm_us.runtime.entry import run_command
from lessons.cells import NAMES, functions_of

ROOT = LESSONS.parent


@dataclass(frozen=True)
class Hole:
    """What a lesson leaves to its reader: a function of the library, and the tests that prove it."""

    module: str
    function: str
    file: str  # of tests
    tests: tuple[str, ...]


HOLES = (
    Hole("diffusion.noise", "draw", "diffusion/test_sampling.py",
         ("noise_is_drawn_bit_by_bit_from_each_samples_own_seed",)),
    Hole("networks.vae", "posterior_from_moments", "networks/test_vae.py",
         ("encode_scales_the_mean_and_the_standard_deviation_of_the_moments",
          "the_log_variance_is_clamped_to_minus_30_and_20")),
    Hole("diffusion.ddpm", "q_sample", "diffusion/test_ddpm.py",
         ("one_jump_equals_the_composition_of_single_noising_steps",
          "noising_and_velocity_equal_the_original_scheduler")),
    Hole("diffusion.ddpm", "predict_z_0", "diffusion/test_ddpm.py",
         ("true_noise_gives_back_z_0", "z_0_is_not_clipped")),
    Hole("diffusion.ddim", "ddim_step", "diffusion/test_ddim.py",
         ("a_step_keeps_the_noise_level_of_the_grid", "20_steps_equal_the_original_scheduler")),
    Hole("diffusion.guidance", "guided_prediction", "diffusion/test_sampling.py",
         ("guidance_is_the_formula_of_two_separate_calls",)),
    Hole("networks.unet", "timestep_embedding", "networks/test_unet.py",
         ("the_timestep_embedding_is_cosines_then_sines_with_exponents_over_half",)),
    Hole("training.losses", "ddpm_loss", "training/test_losses.py",
         ("ddpm_loss_is_the_mean_squared_error_of_the_noise",)),
    Hole("networks.controlnet", "zero_conv", "networks/test_controlnet.py",
         ("a_fresh_controlnet_leaves_every_unet_output_unchanged",
          "a_zero_convolution_gives_zeros_yet_its_weight_has_a_gradient")),
    Hole("evaluation.mask_errors", "dice", "evaluation/masks/test_errors.py",
         ("disjoint_masks_have_a_dice_of_0_and_two_empty_ones_of_1",
          "a_shifted_lesion_is_off_by_its_shift_and_has_the_area_asked_for")),
)  # fmt: skip


class Witness:
    """A pytest plugin that keeps the first test that failed, and how."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = ""
        self.error: BaseException | None = None

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count what passed."""
        self.passed += report.when == "call" and report.passed

    def pytest_exception_interact(self, node: Any, call: Any) -> None:
        """Keep the first failure."""
        if self.error is None:
            self.failed, self.error = getattr(node, "originalname", node.name), call.excinfo.value


@contextlib.contextmanager
def replaced(hole: Hole, mine: Callable[..., Any]) -> Iterator[None]:
    """Inside, every module that knows the library's function by its name has the reader's instead."""
    original = getattr(import_module(f"ldm_us.{hole.module}"), hole.function)
    put(hole.function, original, mine)
    try:
        yield
    finally:
        put(hole.function, mine, original)


def put(name: str, old: Any, new: Any) -> None:
    """Exchange one function for another in all modules that are loaded."""
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is old:
            setattr(module, name, new)


def verdict(number: int, folder: Path = LESSONS) -> tuple[bool, str]:
    """Whether the hole of a lesson is filled rightly, and that in a sentence."""
    import pytest

    hole, path = HOLES[number - 1], folder / f"{NAMES[number - 1]}.py"
    place = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    try:
        mine = functions_of(path).get(hole.function)
    except Exception as error:  # whatever the reader's file does when it is read
        return False, f"Lesson {number}: {place} cannot be read: {type(error).__name__}: {error}."
    if mine is None:
        return (
            False,
            f"Lesson {number}: {place} has no {hole.function}. Let it use nothing but imports and its arguments.",
        )
    witness = Witness()
    nodes = [f"{ROOT / 'tests' / hole.file}::test_{test}" for test in hole.tests]
    quiet = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(ROOT), "-c", str(ROOT / "setup.cfg")]
    with replaced(hole, mine), contextlib.redirect_stdout(io.StringIO()):
        ended = pytest.main([*quiet, *nodes], plugins=[witness])
    if isinstance(witness.error, NotImplementedError):
        return False, f"Lesson {number}: the hole of {place} is empty: {witness.error}"
    if witness.error is not None:
        why = str(witness.error).strip().splitlines() or [type(witness.error).__name__]
        property_ = witness.failed.removeprefix("test_").replace("_", " ")
        return False, f'Lesson {number}: not yet, for "{property_}" (tests/{hole.file}) fails: {why[0]}'
    if ended != 0 or witness.passed == 0:
        return False, f"Lesson {number}: pytest could not run tests/{hole.file} (exit code {int(ended)})."
    return True, (
        f"Lesson {number}: right, for with your {hole.function} in place of the library's, "
        f"{witness.passed} of the project's own tests pass (tests/{hole.file})."
    )


def main(argv: list[str] | None = None) -> int:
    """Print a sentence a lesson; -> 0 where all are right, 1 where one is not."""
    options = build_parser().parse_args(argv)
    for number in options.lessons:
        if not 1 <= number <= len(NAMES):
            raise ValueError(f"there is no lesson {number}: use 1 to {len(NAMES)}.")
    check_extra("test", "pytest")
    right = True
    for number in options.lessons or range(1, len(NAMES) + 1):
        good, sentence = verdict(number, options.folder.resolve())
        print(sentence)
        right = right and good
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(run_command(main))
