"""docs/own_data.md, run as it stands: two folders of somebody's own go the whole way by commands alone."""

import json
import re
import runpy
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sample
import train
from ldm_us.data.__main__ import main as data
from ldm_us.data.opening import open_image
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.evaluation.__main__ import main as evaluation
from ldm_us.files.checkpoint import load_model, save_model
from ldm_us.runtime.entry import run_command

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "own_data.md").read_text()
PROGRAMS = {
    "train.py": train.main,
    "sample.py": sample.main,
    "-m ldm_us.data": data,
    "-m ldm_us.evaluation": evaluation,
}
SHORTER = {"--steps": "2", "--text-warmup": "1", "--batch": "2", "--validate-every": "1"}
OF_A_SMALL_MODEL = {"144x96": "32x24", "128": "64"}


def commands(first: str, last: str) -> list[list[str]]:
    """The commands of the page between two headings, as words."""
    part = PAGE[PAGE.index(first) : PAGE.index(last)]
    return [shlex.split(line) for line in re.findall(r"^    python (.+)$", part, flags=re.MULTILINE)]


def run(words: list[str]) -> int:
    """A command of the page with a small model and few steps; all else is as it stands there."""
    if words[0].startswith("examples/"):
        module = runpy.run_path(str(ROOT / words[0]))
        module["main"].__globals__["PATIENTS"] = 12
        module["main"]()
        return 0
    name, rest = (" ".join(words[:2]), words[2:]) if words[0] == "-m" else (words[0], words[1:])
    words = [OF_A_SMALL_MODEL.get(word, word) for word in rest]
    words = [SHORTER.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    words += ["--sample-every", "0", "--held-out", "0.4"] if name == "train.py" else []
    if "--out" in words and (name == "sample.py" or (rest[0] == "masks" and name == "-m ldm_us.evaluation")):
        words += ["--steps", "2"]
    if rest[0] == "realism":
        words += ["--two-sample-steps", "2"]
    return run_command(lambda: PROGRAMS[name](words))


@pytest.fixture
def folder(tmp_path, monkeypatch, micro):
    """An empty folder to be in, with a small base model where the page has the bundled one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ldm_us" / "weights").mkdir(parents=True)
    save_model(
        LatentDiffusion(replace(micro, image_size=32)), tmp_path / "ldm_us" / "weights" / "us128_base.safetensors"
    )
    return tmp_path


def test_a_thyroid_goes_the_whole_way_by_the_commands_of_the_page(folder, capsys):
    words = commands("## 1. The folder", "## A folder as diffusers has it")
    assert len(words) == 12
    for each in words:
        assert run(each) == 0, each
    out = capsys.readouterr().out
    assert "hint of a ControlNet: a channel for each of lobe, nodule" in out
    assert "labels of --mask: lobe 1, nodule 2" in out
    assert "classes, in the order of --balance: benign, suspicious" in out
    assert "all 24 samples are what their fields say" in out
    model = load_model("runs/thyroid/controlnet/model.safetensors")
    assert model.controlnet.hint_network.convs[0].weight.shape[1] == 2
    for name in ("samples/thyroid", "samples/followed", "samples/varied"):
        sizes = {open_image(path).size for path in Path(name).rglob("*.png") if path.name != "grid.png"}
        assert sizes == ({(32, 24)} if name != "samples/varied" else {(32, 32)}), name
    written = json.loads(Path("thyroid/dataset.json").read_text())
    assert f'"structures": {json.dumps(written["structures"])}' in PAGE, "the page shows what is written"


def test_a_folder_of_diffusers_goes_the_whole_way_by_the_commands_of_the_page(folder, capsys):
    root, generator = Path("edges"), np.random.default_rng(0)
    (root / "conditioning").mkdir(parents=True)
    lines = []
    for i in range(6):
        pixels = generator.integers(0, 256, (24, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.png")
        Image.fromarray(pixels // 2 + 60).save(root / "conditioning" / f"{i}.png")
        text = "Ultrasound image of a thyroid"
        lines.append({"image": f"{i}.png", "conditioning_image": f"conditioning/{i}.png", "text": text})
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (root / "dataset.json").write_text('{"hint": "picture"}')
    assert '{"hint": "picture"}' in PAGE
    words = commands("## A folder as diffusers has it", "## When something is refused")
    assert len(words) == 4
    for each in words:
        assert run(each) == 0, each
    assert "samples are what their fields say" in capsys.readouterr().out
    model = load_model("runs/edges/controlnet/model.safetensors")
    assert model.config.control.hint == ("picture",)
    assert model.controlnet.hint_network.convs[0].weight.shape[1] == 3
    assert open_image(next(Path("samples/edges").glob("0*.png"))).size == (32, 24)
