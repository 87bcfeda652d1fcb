"""The invisible watermark: read after JPEG, not read in other pictures, and part of what is verified."""

import io
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

import sample
from ldm_us.runtime.entry import run_command
from ldm_us.synthesis.watermark import add_watermark, has_watermark
from tests.synthesis.test_verify import rewrite

needs_extra = pytest.mark.skipif(find_spec("blind_watermark") is None, reason="needs the extra watermark")


def speckle(seed, size=128):
    """A grey picture with structure at several scales, no black and no white."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(40, 190, (size // 8, size // 8), dtype=np.uint8)).resize((size, size))
    return Image.fromarray((np.asarray(coarse) + generator.integers(0, 25, (size, size))).astype(np.uint8))


@needs_extra
def test_the_mark_is_invisible_repeatable_and_survives_jpeg():
    for seed in range(4):
        picture = speckle(seed)
        marked = add_watermark(picture)
        error = np.square(np.asarray(marked, float) - np.asarray(picture, float)).mean()
        assert 10 * np.log10(255**2 / error) > 38
        assert np.array_equal(marked, add_watermark(picture))
        assert has_watermark(marked)
        file = io.BytesIO()
        marked.save(file, format="JPEG", quality=60)
        with Image.open(file) as compressed:
            assert has_watermark(compressed)


@needs_extra
def test_pictures_without_the_mark_have_none():
    assert not any(has_watermark(speckle(seed)) for seed in range(20))
    assert not has_watermark(Image.new("L", (128, 128)))
    assert not has_watermark(Image.new("L", (16, 16), 80))


@needs_extra
def test_a_watermarked_sample_verifies_and_without_fields_the_mark_still_speaks(run, tmp_path, weights, capsys):
    run(tmp_path / "out", "--class", "benign", "--n", 1, "--size", 128, "--watermark")
    path = tmp_path / "out" / "0000_benign_seed0.png"
    with Image.open(path) as picture:
        assert picture.text["watermark"].startswith("blind-watermark ")
        picture.copy().save(tmp_path / "copy.jpg", quality=80)
    assert sample.main(["--verify", str(path), "--weights", str(weights)]) == 0
    assert "with its watermark" in capsys.readouterr().out
    assert sample.main(["--verify", str(tmp_path / "copy.jpg"), "--weights", str(weights)]) == 1
    assert "but its watermark says that it is synthetic" in capsys.readouterr().out


@pytest.fixture
def no_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "blind_watermark", None)
    monkeypatch.setitem(sys.modules, "blind_watermark.bwm_core", None)


def test_without_the_extra_one_sentence_names_it(no_extra, refused, tmp_path):
    line = refused(tmp_path / "out", "--size", 128, "--watermark")
    assert "a watermark needs the extra `watermark`" in line
    assert not (tmp_path / "out").exists()


def test_without_the_extra_a_watermarked_sample_is_not_called_wrong(no_extra, run, weights, tmp_path, capsys):
    run(tmp_path / "out", "--class", "benign", "--n", 1)
    path = tmp_path / "out" / "0000_benign_seed0.png"
    rewrite(path, signed=True, watermark="blind-watermark 0.4.4")
    asked = ["--verify", str(path), "--weights", str(weights)]
    assert run_command(lambda: sample.main(asked)) == 2
    assert "a watermark needs the extra `watermark`" in capsys.readouterr().err


def test_a_picture_that_is_too_small_is_refused(refused, tmp_path):
    line = refused(tmp_path / "out", "--size", 32, "--watermark")
    assert line == "--watermark: a picture of 32 pixels is too small for it. Use 64 or more."
