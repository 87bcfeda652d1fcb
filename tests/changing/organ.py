"""docs/changing.md, change 6: the commands of the page, on a folder as the page has it, with fewer steps."""

import json
import re
from functools import partial

import numpy as np
import pytest
from PIL import Image

import sample
import train
from ldm_us.data.__main__ import main as data_main
from ldm_us.files.checkpoint import read_metadata
from ldm_us.files.lineage import read_lineage
from ldm_us.runtime.entry import run_command
from tests.changing.page import changes

MAINS = {"train.py": train.main, "sample.py": sample.main, "ldm_us.data": data_main}
FEWER = {"--steps": "2", "--batch": "2", "--text-warmup": "2"}
SMALL = {"train.py": ["--size", "32", "--validate-every", "0", "--sample-every", "0"]}
SMALL["sample.py"] = ["--size", "32", "--steps", "2", "--n", "1"]


@pytest.fixture
def thyroid(tmp_path, monkeypatch):
    """The folder of the page, eight times over, in the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thyroid").mkdir()
    (block,) = re.findall(r"^```json\n(.*?)^```$", changes()[5].text, re.MULTILINE | re.DOTALL)
    lines = []
    for i, line in enumerate(line for _ in range(8) for line in block.splitlines()):
        row = json.loads(line)
        number = re.match(r"\d+", row["file_name"])[0]
        own = str(i + 1)
        row |= {"file_name": f"{own}.png", "group": f"patient {own}"}
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32), np.uint8)).save(f"thyroid/{own}.png")
        if "mask" in row:
            assert row["mask"] == f"{number}_mask.png"
            row["mask"] = f"{own}_mask.png"
            mask = np.zeros((32, 32), np.uint8)
            mask[8:20, 3 + i % 9 : 18] = 255
            Image.fromarray(mask).save(f"thyroid/{own}_mask.png")
        lines.append(json.dumps(row))
    (tmp_path / "thyroid" / "metadata.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_the_commands_lead_from_a_folder_to_samples_that_follow_a_mask(thyroid, capsys):
    for words in changes()[5].commands:
        name, *argv = words[1:] if words[0] == "-m" else words
        if name == "pytest":
            continue
        argv = [FEWER.get(before, word) for before, word in zip(["", *argv], argv, strict=False)]
        assert run_command(partial(MAINS[name], [*argv, *SMALL.get(name, [])])) == 0
    said = capsys.readouterr()
    assert "imagefolder in thyroid: 24 images (8 normal, 16 unknown), 16 masks" in said.out
    assert len([*(thyroid / "samples").glob("0000_*.png")]) == 1
    entries = read_lineage(read_metadata(thyroid / "runs" / "thyroid" / "controlnet" / "model.safetensors")).entries
    assert [entry["stage"] for entry in entries] == ["vae", "unet", "controlnet"]
