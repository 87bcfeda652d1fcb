"""sample.py --verify FOLDER: every sample that the manifest lists, by one loaded model."""

from functools import partial

import numpy as np
import pytest
from PIL import Image

import sample
from ldm_us.runtime.entry import run_command
from ldm_us.synthesis import verify as verifying
from ldm_us.synthesis.verify import NAMED
from tests.synthesis.test_verify import brighter, rewrite


@pytest.fixture
def verify(weights, capsys):
    """A function: sample.py --verify; -> exit code and what it printed."""

    def call(path, *options):
        words = [str(word) for word in ("--verify", path, "--weights", weights, *options)]
        capsys.readouterr()
        code = run_command(partial(sample.main, words))
        out = capsys.readouterr()
        return code, out.out or out.err

    return call


@pytest.fixture
def folder(run, masks, tmp_path):
    out = tmp_path / "out"
    run(out, "--mask", masks, "--balance", 2, 1, 1, "--n", 4, "--layout", "busi", "--steps", 1, "--trajectory")
    return out


def test_a_folder_as_it_was_made_verifies_and_loads_its_model_once(folder, verify, masks, monkeypatch):
    loads = []
    load = verifying.load_sampler
    monkeypatch.setattr(verifying, "load_sampler", lambda *words, **named: loads.append(1) or load(*words, **named))
    assert verify(folder) == (0, f"{folder}: all 4 samples are what their fields say.\n")
    assert len(loads) == 1
    assert verify(folder, "--mask", masks)[0] == 0


def swap(path, other):
    kept = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(kept)


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda out: rewrite(out / "benign/benign (1).png", pixels=brighter, signed=True), "benign (1).png: 1 of 256"),
        (lambda out: (out / "normal/normal (1).png").write_bytes(b""), "normal (1).png: missing or cut off"),
        (lambda out: (out / "normal/normal (1)_mask.png").unlink(), "normal (1)_mask.png: missing or cut off"),
        (
            lambda out: Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(out / "benign/benign (2)_mask.png"),
            "benign (2)_mask.png: not the mask of benign (2).png",
        ),
        (lambda out: swap(out / "benign/benign (1).png", out / "benign/benign (2).png"), "its line of manifest.jsonl"),
        (lambda out: Image.new("L", (16, 16)).save(out / "benign/benign (9).png"), "manifest.jsonl does not list it"),
    ],
)
def test_what_is_not_as_it_was_made_is_named(folder, verify, harm, sentence):
    harm(folder)
    code, said = verify(folder)
    assert code == 1
    assert "with 4 samples:" in said.splitlines()[0]
    assert sentence in said


def test_a_long_list_of_problems_is_cut(folder, verify):
    for number in range(20, 29):
        Image.new("L", (16, 16)).save(folder / "benign" / f"benign ({number}).png")
    code, said = verify(folder)
    assert code == 1
    assert said.splitlines()[0].endswith("9 problems with 4 samples:")
    assert len(said.splitlines()) == 1 + NAMED + 1
    assert said.splitlines()[-1] == "and 4 more."


def test_a_folder_without_a_manifest_is_refused(verify, tmp_path):
    code, said = verify(tmp_path)
    assert code == 2
    assert "no manifest.jsonl in it" in said
