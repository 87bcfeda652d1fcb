"""The physics-based scanner: the fast one's breasts, scatterers at their places, and it goes on after a stop."""

from types import SimpleNamespace

import numpy as np
import pytest

import ldm_us.data.phantom.files as files
import ldm_us.data.phantom.must as must
import ldm_us.runtime.checks as checks
from ldm_us.data.__main__ import main
from ldm_us.data.phantom.bmode import Scanner
from ldm_us.data.phantom.grid import PIXELS, Grid
from ldm_us.data.readers.busi import read_busi
from ldm_us.runtime.entry import run_command

GRID = Grid(side=30.0)
CLEAN = Scanner(
    frequency=8.0, cycles=2.0, focus=15.0, tgc=0.4, dynamic_range=60.0, gain=0.0, gamma=1.0, noise_floor=-200.0
)


def phantom(*arguments):
    """Run the command with --scanner must: its exit code."""
    return run_command(lambda: main(["phantom", "--scanner", "must", "--size", "32", *map(str, arguments)]))


@pytest.fixture
def stand_in(monkeypatch):
    """A scanner that shows echogenicity plus noise at once, counts its images, and is stopped after `stop` of them."""
    state = SimpleNamespace(stop=None, made=0)

    def scan(rng, grid, echo, gain, scanner):
        if state.made == state.stop:
            raise KeyboardInterrupt
        state.made += 1
        return np.clip(1 + (echo + rng.standard_normal(echo.shape, dtype=np.float32)) / 60, 0, 1)

    monkeypatch.setitem(files.SCANNERS, "must", scan)
    monkeypatch.setattr(files, "check_extra", lambda *_: None)
    return state


def contents(folder):
    """The bytes of every file by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_pymust_one_sentence_names_the_extra_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    assert phantom("--n", 3, "--out", tmp_path / "set") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pymust is not installed. Install the extra simulation" in error
    assert not any(tmp_path.iterdir())


def test_masks_lesions_and_layout_are_those_of_the_fast_scanner(tmp_path, stand_in):
    assert phantom("--n", 9, "--out", tmp_path / "must") == 0
    files.write_phantoms(files.Plan(n=9, size=32, seed=0), tmp_path / "fast")
    slow, fast = contents(tmp_path / "must"), contents(tmp_path / "fast")
    masks = [name for name in fast if "_mask" in name]
    assert sorted(slow) == sorted(fast)
    assert len(masks) > 8
    assert all(slow[name] == fast[name] for name in masks)
    assert not any(slow[name] == fast[name] for name in fast if name.endswith(").png"))


def test_a_simulation_cut_short_goes_on_and_gives_the_bytes_of_one_that_was_not(tmp_path, stand_in, capsys):
    whole, out = tmp_path / "whole", tmp_path / "set"
    assert phantom("--n", 7, "--out", whole) == 0
    stand_in.made, stand_in.stop = 0, 4
    assert phantom("--n", 7, "--out", out) == 130
    assert "set.unfinished; the same command goes on there" in capsys.readouterr().err
    assert not out.exists()
    assert len(list((tmp_path / "set.unfinished").glob("*/*).png"))) == 4
    stand_in.made, stand_in.stop = 0, None
    capsys.readouterr()
    assert phantom("--n", 7, "--out", out) == 0
    assert "4 of 7 images are there" in capsys.readouterr().err
    assert stand_in.made == 3
    assert contents(out) == contents(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "whole"]
    assert len(read_busi(out)) == 7


def test_what_was_begun_with_other_options_is_not_gone_on_with(tmp_path, stand_in, capsys):
    stand_in.stop = 2
    assert phantom("--n", 7, "--out", tmp_path / "set") == 130
    before = contents(tmp_path)
    stand_in.stop = None
    assert phantom("--n", 7, "--seed", 1, "--out", tmp_path / "set") == 2
    assert "was begun with other options" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_the_response_of_the_probe_is_divided_out(monkeypatch):
    response = np.exp(-GRID.z / 10) * np.ones((1, PIXELS), np.float32)
    wanted = 10 ** np.linspace(-5, -1, PIXELS, dtype=np.float32)[None, :] * np.ones((PIXELS, 1), np.float32)

    def intensities(grid, media):
        (_, strength), (_, single) = media
        return [response * wanted * strength.size, response * single.size]

    monkeypatch.setattr(must, "intensities", intensities)
    flat = np.zeros((PIXELS, PIXELS), np.float32)
    shown = must.scan(np.random.default_rng(0), GRID, flat, flat, CLEAN)
    inner = slice(60, -60)  # the response is blurred, and mirrored at the edges
    assert np.abs(60 * (shown - 1) - 10 * np.log10(wanted))[inner].max() < 1.0


def test_scatterers_are_as_strong_as_the_anatomy_and_the_gain_say(monkeypatch):
    seen = {}

    def intensities(grid, media):
        seen["places"], seen["strength"] = media[0]
        return [np.ones((PIXELS, PIXELS), np.float32) for _ in media]

    monkeypatch.setattr(must, "intensities", intensities)
    deep = np.where(GRID.z < 15, 0, -20) * np.ones((1, PIXELS), np.float32)
    must.scan(np.random.default_rng(0), GRID, deep, deep, CLEAN)
    below = seen["places"][0] > 15
    rms = [np.sqrt(np.mean(np.square(seen["strength"][some]))) for some in (~below, below)]
    assert seen["strength"].size == round(must.DENSITY * 900)
    assert rms == pytest.approx([1, 0.01], rel=0.05)  # 20 dB less by the anatomy and 20 dB less by the gain


def test_the_echoes_of_all_batches_are_summed(monkeypatch):
    def simus(x, z, strength, delays, probe, options):
        echoes = np.zeros((int(z.max() * 1e5), probe.Nelements), np.float32)  # near scatterers, short echoes
        np.add.at(echoes, (z * 1e5).astype(int) - 1, strength[:, None])
        return echoes, None

    pymust = SimpleNamespace(simus=simus, utils=SimpleNamespace(Options=SimpleNamespace))
    probe = SimpleNamespace(Nelements=2, fs=2e7, c=1540.0)
    places = np.random.default_rng(0).uniform(0, 5, (2, 50))
    sums = []
    for batch in (7, 50):
        monkeypatch.setattr(must, "BATCH", batch)
        sums.append(must.receive(pymust, probe, np.zeros(2), GRID, places, np.ones(50, np.float32)))
    assert sums[0].shape == sums[1].shape
    assert sums[0].sum() == 100
    assert np.array_equal(*sums)


def test_simus_and_the_beamformer_put_a_scatterer_where_it_is_and_keep_the_terminal_clean(capfd):
    pytest.importorskip("pymust", reason="the extra simulation is not installed")
    places = np.array([[10.0], [20.0]])
    (image,) = must.intensities(GRID, [(places, np.ones(1, np.float32))])
    row, column = np.unravel_index(image.argmax(), image.shape)
    assert abs(GRID.z[row, 0] - 10) < 0.15
    assert abs(GRID.x[0, column] - 20) < 0.2
    level = 10 * np.log10(image / image.max() + 1e-12)
    assert level[row + 20 :].max() < -40  # no echo of it where nothing is: grating lobes, edge waves
    assert capfd.readouterr() == ("", "")
