"""bench/bars.py: what passes is called pass and what misses a miss, at each edge and beyond it."""

import copy
import json
from functools import partial

import pytest

from bench.bars import BANDS, RESULTS, bars, main
from ldm_us.runtime.entry import run_command

REAL = {"detail": 20.0, "nakagami_m": 1.4} | {f"depth_{band}": 100.0 for band in BANDS}
MADE = REAL | {"axial_width": 2.1, "lateral_width": 5.0, "mean_grey": 70.0}
EDGES = {  # the statistic, the last values that pass, and by how much a value beyond them misses
    "axial_width": ("median", (2.01, 2.23), 0.001),
    "lateral_width": ("median", (4.8, 5.5), 0.001),
    "detail": ("median", (19.0, 21.0), 0.001),
    "nakagami_m": ("median", (1.2, 1.6), 0.001),
    **{f"depth_{band}": ("mean", (92.0, 108.0), 0.01) for band in BANDS},
    "mean_grey": ("sd", (13.0, 19.0), 0.01),
}
SINGLE = [  # file and keys, the last value that passes, the first that misses
    ("realism_reconstructed/realism.json", ("two_sample", "against_real", "auc"), 0.65, 0.6501),
    ("realism_samples/realism.json", ("two_sample", "against_real", "auc"), 0.75, 0.7501),
    ("classes.json", ("accuracy", "all", "share"), 0.9, 0.899),
    ("masks.json", ("dice", "true", "all", "mean"), 0.85, 0.849),
    ("masks.json", ("dice", "shuffled", "all", "mean"), 0.299, 0.3),
    ("reconstruction.json", ("psnr_db", "mean"), 27.0, 26.999),
    ("memorisation/memorisation.json", ("flagged", "any", "share"), 0.03, 0.031),
]


@pytest.fixture
def results():
    """Results of a model that passes every bar."""
    rows = [
        {"figure": name, "class": label, "real": {"median": REAL.get(name, 9), "mean": REAL.get(name, 9), "sd": 16.0}}
        | {"generated": {"median": value, "mean": value, "sd": 16.0}}
        for label in (None, "benign")
        for name, value in MADE.items()
    ]
    realism = {"figures": rows, "two_sample": {"against_real": {"auc": 0.6}, "real_halves": {"auc": 0.5}}}
    found = {
        "reconstruction.json": {"psnr_db": {"mean": 28.0}},
        "classes.json": {"accuracy": {"all": {"share": 0.95}, "benign": {"share": 0.1}}},
        "masks.json": {"dice": {"true": {"all": {"mean": 0.9}}, "shuffled": {"all": {"mean": 0.2}}}},
        "realism_samples/realism.json": copy.deepcopy(realism),
        "realism_reconstructed/realism.json": copy.deepcopy(realism),
        "memorisation/memorisation.json": {"flagged": {"any": {"share": 0.01}}},
    }
    assert set(found) == set(RESULTS)
    return found


def missed(results, weights=19.0):
    return [bar.what for bar in bars(results, weights) if not bar.passed]


def put(results, file, keys, value):
    place = results[file]
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value


def test_a_model_that_is_as_wanted_passes_every_bar(results):
    assert missed(results) == []
    assert len(bars(results, 19.0)) == 4 + 8 + 1 + 8


@pytest.mark.parametrize("name", EDGES)
def test_a_figure_of_the_samples_passes_at_both_edges_and_misses_beyond_each(results, name):
    statistic, edges, step = EDGES[name]
    row = next(i for i, row in enumerate(results["realism_samples/realism.json"]["figures"]) if row["figure"] == name)
    for edge, sign in zip(edges, (-1, 1), strict=True):
        for value, misses in ((edge, 0), (edge + sign * step, 1)):
            put(results, "realism_samples/realism.json", ("figures", row, "generated", statistic), value)
            assert len(missed(results)) == misses, value


@pytest.mark.parametrize(("file", "keys", "passes", "misses"), SINGLE)
def test_a_bar_with_one_edge_passes_at_it_and_misses_beyond_it(results, file, keys, passes, misses):
    put(results, file, keys, passes)
    assert missed(results) == []
    put(results, file, keys, misses)
    assert len(missed(results)) == 1


def test_weights_of_20_megabytes_pass_and_a_byte_more_misses(results):
    assert missed(results, 20.0) == []
    assert missed(results, 20.000001) == ["weights of the package"]


def test_a_two_sample_test_that_was_left_out_is_a_miss_and_not_a_pass(results):
    results["realism_samples/realism.json"]["two_sample"] = None
    assert missed(results) == ["two-sample AUC, samples"]


def test_a_miss_is_printed_and_is_no_error_and_what_was_not_measured_is_no_pass(results, tmp_path, capsys):
    put(results, "masks.json", ("dice", "true", "all", "mean"), 0.1)
    for name, result in results.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(result))
    assert main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "| MISS " in line] == [line for line in lines if "own mask" in line]
    assert lines[-1] == "20 of 21 bars passed. A miss is a figure, not an error."
    for name, bars_lost in {"masks.json": 2, "realism_samples/realism.json": 14}.items():
        text = (tmp_path / name).read_text()
        (tmp_path / name).unlink()
        assert main([str(tmp_path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert sum("| not measured |" in line for line in lines) == bars_lost
        assert lines[-1] == f"{tmp_path / name}: no such file. `make bars` writes it."
        (tmp_path / name).write_text(text)
    (tmp_path / "masks.json").write_text("{")
    assert run_command(partial(main, [str(tmp_path)])) == 2
    assert "masks.json is not JSON" in capsys.readouterr().err
