"""Fixtures: a model of 0.1 s a run, a small BUSI folder, and train.py called in this process."""

import errno
import io
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tqdm import tqdm

import train
from ldm_us.config import PRESETS, ControlConfig, ModelConfig, TextConfig, UNetConfig, VAEConfig
from ldm_us.files.pictures import save_png
from ldm_us.runtime import processes
from ldm_us.runtime.entry import run_command
from ldm_us.training import curves, progress
from tests.golden.original import write_tiny_files
from weights_convert.__main__ import main as weights_convert_main

MICRO = ModelConfig(
    name="micro",
    image_size=16,
    vae=VAEConfig(width=8, multipliers=(1, 1, 2), res_blocks=1, groups=4),
    text=TextConfig(width=8, heads=2, layers=1, mlp_width=16),
    unet=UNetConfig(
        width=8, multipliers=(1, 2), attention=(True, False), res_blocks=1, heads=2, context_width=8, groups=4
    ),
    control=ControlConfig(hint_channels=(4, 8, 8)),
)
SLOWEST = (  # the files that take longest are started first, so that no process ends with one of them alone
    "test_lessons.py",
    "studio/test_browser.py",
    "test_reference.py",
    "training/test_train_distributed.py",
    "synthesis/test_folder.py",
    "training/test_train_kills.py",
    "training/test_validation.py",
    "networks/test_golden_networks.py",
    "evaluation/memorisation/test_memorisation.py",
    "synthesis/test_drawing.py",
    "diffusion/test_inversion.py",
    "test_documents.py",
    "test_own_data.py",
    "evaluation/protocol/test_protocol.py",
    "training/test_train_fine_tuning.py",
    "runtime/test_scripts.py",
    "report/test_curves.py",
    "data/phantom/test_files.py",
)
DRAW_CURVES = curves.draw_curves
IMAGES = {"benign": 4, "malignant": 4, "normal": 3}

# Tests fork this process and kill the children. tqdm's own lock is one for all forks, so a child that is killed while
# it holds it stops every later bar; and its monitor is a thread, which may hold a lock at the moment of a fork.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest files first; within a file nothing changes. `make test` hands files out in this order."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def micro():
    """The preset "micro", for --preset and for models built by hand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "micro", MICRO)
        yield MICRO


def write_busi(root: Path, seed: int = 0) -> Path:
    """Noise images of two sizes, numbered so high that no near-duplicate list knows them; one lesion each."""
    generator = np.random.default_rng(seed)
    for label, count in IMAGES.items():
        (root / label).mkdir(parents=True)
        for i in range(count):
            h, w = (40, 48) if i % 2 else (32, 32)
            name = f"{label} ({9001 + i})"
            image = generator.integers(0, 256, (h, w), dtype=np.uint8)
            mask = np.zeros((h, w), np.uint8)
            if label != "normal":
                mask[h // 4 : h // 2, i : w // 2] = 255  # not symmetric: a mirrored mask is another mask
            Image.fromarray(image).save(root / label / f"{name}.png")
            Image.fromarray(mask).save(root / label / f"{name}_mask.png")
    return root


@pytest.fixture(scope="session")
def busi(tmp_path_factory):
    """11 images with masks, to be read only."""
    return write_busi(tmp_path_factory.mktemp("busi"))


@pytest.fixture
def own_busi(tmp_path):
    """The same, to be damaged."""
    return write_busi(tmp_path / "own_busi")


@pytest.fixture(scope="session")
def arguments(micro, busi):
    """A function of stage, --out and further flags: the command line of a run of two steps without pictures."""

    def build(stage: str, out: Path, *flags: object, weights: Path | None = None, data: Path = busi) -> list[str]:
        start = ["--preset", "micro"] if weights is None else ["--weights", weights]
        start += ["--device", "cpu"]
        fixed = ["--data", data, "--out", out, "--batch", 2, "--warmup", 0, "--log-every", 1, "--lr", 1e-3]
        length = [] if {"--steps", "--epochs"} & set(flags) else ["--steps", 2]
        pictures = [] if "--sample-every" in flags else ["--sample-every", 0]
        pictures += [] if "--validate-every" in flags else ["--validate-every", 0]
        return [str(value) for value in (stage, *start, *fixed, *length, *pictures, *flags)]

    return build


def read_run(out: Path) -> SimpleNamespace:
    """What a run wrote: `weights` and `losses` by step."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    path = out / "model.safetensors"
    return SimpleNamespace(out=out, path=path, log=lines, weights=load_file(path) if path.exists() else None)


@pytest.fixture(scope="session")
def run(arguments):
    """A function: train, require exit code 0, return what was written."""

    def call(stage: str, out: Path, *flags: object, **start: Path) -> SimpleNamespace:
        assert run_command(lambda: train.main(arguments(stage, out, *flags, **start))) == 0
        return read_run(out)

    return call


@pytest.fixture(scope="session")
def chain(run, tmp_path_factory):
    """Three stages, each from the result of the one before, with sample grids: {stage: run}."""
    folder, weights, runs = tmp_path_factory.mktemp("chain"), None, {}
    for stage in ("vae", "unet", "controlnet"):
        runs[stage] = run(stage, folder / stage, "--sample-every", 2, "--ema", 0.5, weights=weights)
        weights = runs[stage].path
    return runs


@pytest.fixture
def refused(arguments, tmp_path, capsys):
    """A function: train, require exit code 2 and one line on stderr; return that sentence."""

    def call(stage: str, out: Path, *flags: object, **start: Path) -> str:
        capsys.readouterr()
        assert run_command(lambda: train.main(arguments(stage, out, *flags, **start))) == 2
        lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith("note: ")]
        sentences = [line for line in lines if "step" not in line or line.startswith("error: ")]  # else the bar
        assert len(sentences) == 1, lines
        assert sentences[0].startswith("error: ")
        assert not list(tmp_path.rglob("*.tmp"))
        return sentences[0].removeprefix("error: ")

    return call


@pytest.fixture(scope="session", autouse=True)
def no_gpu():
    """What `--device auto` chooses in tests, whatever machine they run on: they compare bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "device_kinds", lambda: ["cpu"])
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """On a busy machine, threads that wait for each other cost more than they bring."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def short_previews():
    """Pictures of a run in progress take most of the time of so small a model: two steps show as much as twenty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "STEPS", 2)
        yield


@pytest.fixture(autouse=True)
def quick_curves(monkeypatch):
    """To draw curves.png takes longer than to train two steps: a test writes noise, unless it asks for drawn_curves."""
    noise = Image.effect_noise((64, 64), 100)
    monkeypatch.setattr(curves, "draw_curves", lambda lines, path: save_png(noise, path))


@pytest.fixture
def drawn_curves(quick_curves, monkeypatch):
    """Curves as users get them."""
    monkeypatch.setattr(curves, "draw_curves", DRAW_CURVES)


class FullDisk(io.FileIO):
    """A file on a disk with room for `limit` bytes."""

    limit = 0

    def write(self, data):
        if self.tell() + memoryview(data).nbytes > self.limit:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.fixture
def full_disk():
    """A function: while `patch` holds, files with `part` in their name are on a disk with room for `limit` bytes."""

    def fill(part: str, limit: int, patch: pytest.MonkeyPatch) -> None:
        def full_open(path, mode):
            if part not in Path(path).name:
                return open(path, mode)
            file = FullDisk(path, mode)
            file.limit = limit
            return file

        patch.setattr("ldm_us.files.atomic.open", full_open, raising=False)

    return fill


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """Original weights of tiny size in every kind of file, to be read only."""
    return write_tiny_files(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def convert(capsys):
    """A function: `python -m weights_convert import`; -> (exit code, standard output, standard error)."""

    def call(*arguments, preset="tiny"):
        preset_arguments = ["--preset", preset] if preset else []
        code = run_command(lambda: weights_convert_main(["import", *map(str, arguments), *preset_arguments]))
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def export(capsys):
    """A function: `python -m weights_convert export`; -> (exit code, standard output, standard error)."""

    def call(*arguments):
        code = run_command(lambda: weights_convert_main(["export", *map(str, arguments)]))
        return (code, *capsys.readouterr())

    return call
