"""The lines of code that must stay straight: which of the project's files one step enters, and in which order."""

import re
import sys
from pathlib import Path

import pytest

import sample
import train
from ldm_us.diffusion.sampling import decode, denoise
from ldm_us.training.stages import Stage

ROOT = Path(__file__).parents[1]
MOST = 11  # files of a training step
MOST_OF_SAMPLING = 11  # by DDIM; DPM-Solver++ is beside it


class FilesEntered:
    """A profiler for sys.setprofile: the files of ours entered from the first call of one function to its end.

    `last` is the function whose return ends the watch; files are in the order in which each was first entered.
    """

    def __init__(self, first, last):
        self.first, self.last = first.__code__, last.__code__
        self.files, self.ended = [], False

    def __call__(self, frame, event, _):
        if event == "return" and frame.f_code is self.last:
            self.ended = True
        if event != "call" or self.ended or not (self.files or frame.f_code is self.first):
            return
        if not self.files:
            self.enter(frame.f_back)
        self.enter(frame)

    def enter(self, frame):
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT / "ldm_us") or path == ROOT / "train.py":
            name = path.relative_to(ROOT).as_posix()
            if path.name != "__init__.py" and name not in self.files:
                self.files.append(name)


def listed_in_the_tour(title):
    """The files of a numbered list of docs/tour.md."""
    _, _, after = (ROOT / "docs" / "tour.md").read_text().partition(title)
    rows = re.match(r".*\n\n((?:\d+\. .*\n)+)", after)
    assert rows, f"docs/tour.md has no list after {title!r}"
    return re.findall(r"^\d+\. `([^`]+)`", rows[1], flags=re.MULTILINE)


@pytest.mark.parametrize("stage", ["unet", "controlnet"])
def test_a_training_step_enters_the_files_of_the_tour_from_asking_for_the_batch_to_the_loss(arguments, tmp_path, stage):
    """The first step of train.py, and nothing before or after it."""
    watched = FilesEntered(Stage.batches, Stage.loss)
    argv = arguments(stage, tmp_path / "run", "--steps", 1)
    sys.setprofile(watched)
    try:
        assert train.main(argv) == 0
    finally:
        sys.setprofile(None)
    print(f"{len(watched.files)} files:", *watched.files)
    expected = listed_in_the_tour("**One training step, file by file**")
    if stage == "unet":
        expected.remove("ldm_us/networks/controlnet.py")
        expected.remove("ldm_us/data/decoded.py")
    assert watched.files == expected
    assert len(watched.files) <= MOST


@pytest.mark.parametrize("sampler", ["dpm", "ddim"])
def test_a_masked_sampling_step_enters_the_files_of_the_tour_from_the_noise_to_the_image(tmp_path, sampler):
    """The one step of `sample.py --mask --steps 1`: `denoise` begins with z_T, `decode` ends with the image."""
    watched = FilesEntered(denoise, decode)
    mask = ROOT / "docs" / "masks" / "benign (1)_mask.png"
    argv = ["--mask", str(mask), "--n", "1", "--steps", "1", "--guidance", "2", "--sampler", sampler]
    argv += ["--out", str(tmp_path / "out")]
    sys.setprofile(watched)
    try:
        assert sample.main(argv) == 0
    finally:
        sys.setprofile(None)
    print(f"{len(watched.files)} files:", *watched.files)
    expected = listed_in_the_tour("**One sampling step, file by file**")
    if sampler == "ddim":
        expected.remove("ldm_us/diffusion/dpm_solver.py")
        assert len(expected) <= MOST_OF_SAMPLING
    assert watched.files == expected


def test_no_file_below_an_entry_point_knows_of_argparse_namespaces():
    """Options become values or dataclasses where they are parsed: in train.py, sample.py, __main__.py, *command.py."""
    entry_points = {"__main__.py", "command.py", "import_command.py", "export_command.py", "kept_command.py"}
    files = [*(ROOT / "ldm_us").rglob("*.py"), *(ROOT / "weights_convert").rglob("*.py")]
    named = '"argparse.Namespace"'  # a text: what a pickle may name
    found = [path.relative_to(ROOT).as_posix() for path in files if "Namespace" in path.read_text().replace(named, "")]
    assert [name for name in found if Path(name).name not in entry_points] == []
    assert any("Namespace" in (ROOT / name).read_text() for name in found)
