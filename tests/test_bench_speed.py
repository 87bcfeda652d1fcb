"""The benchmark against diffusers as far as it goes without diffusers: alternation, ratios, floors, bars, the page."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from bench.speed import measuring, turns
from bench.speed.__main__ import main
from bench.speed.command_line import build_parser
from bench.speed.measuring import Rates, alternate, bytes_of, flops_of
from bench.speed.page import page
from bench.speed.settings import Settings, settings_of
from bench.speed.table import ON_CPU, ON_GPU, Bar, Row, bars_for, paper_minutes, table
from bench.speed.turns import PartError
from ldm_us.runtime.entry import run_command
from tests.conftest import MICRO

SETTINGS = Settings(Path("filled.safetensors"), Path("diffusers"), Path("."))
UNET = Row("UNet, batch 1", "float32", [1.0, 2.0, 9.0], [2.0, 2.5, 3.0])


def cells_of(row, *bars):
    """The cells of a row, by the names of their columns; the bar's verdict has none."""
    header, _, line = table([row], bars).splitlines()[:3]
    names = [name.strip() or "verdict" for name in header.split("|")[1:-1]]
    return dict(zip(names, (cell.strip() for cell in line.split("|")[1:-1]), strict=True))


def test_both_sides_are_called_in_turn_and_each_begins_every_other_round():
    calls = []
    ours, theirs = alternate(lambda: calls.append("o"), lambda: calls.append("t"), rounds=3)
    assert "".join(calls) == "ot" + "to" + "ot"
    assert len(ours) == len(theirs) == 3


def test_times_go_to_the_side_that_took_them(monkeypatch):
    monkeypatch.setattr(measuring, "timed", lambda call, clock: (None, call()))
    assert alternate(lambda: 1.0, lambda: 2.0, rounds=2) == ([1.0, 1.0], [2.0, 2.0])


def test_the_ratio_is_the_median_of_the_rounds_and_the_spread_their_extremes():
    cells = cells_of(UNET)
    assert cells["ratio"] == "0.80"  # of 0.5, 0.8 and 3; the ratio of the medians is the same by chance alone
    assert replace(UNET, theirs=[2.0, 1.0, 90.0]).ratio == 0.5  # of 0.5, 2 and 0.1; the medians give 1
    assert cells["spread"] == "0.50 to 3.00"
    assert (cells["ours"], cells["diffusers"]) == ("2 s", "2.5 s")


@pytest.mark.parametrize(("theirs", "expected"), [(1.0, "pass"), (0.999, "MISS")])
def test_a_bar_is_passed_up_to_its_edge(theirs, expected):
    assert cells_of(Row("UNet, batch 1", "float32", [1.0], [theirs]), *ON_CPU)["verdict"] == expected


def test_half_precision_has_a_bar_of_its_own():
    row = Row("UNet, batch 1", "bfloat16", [0.97], [1.0])
    assert cells_of(row, *ON_CPU)["verdict"] == "MISS"
    assert cells_of(replace(row, dtype="float32"), *ON_CPU)["verdict"] == "pass"


def test_a_bar_that_was_not_measured_says_so_and_why():
    tables = table([Row("epoch, mean of 100", "float32", note="it needs 30 GiB")], ON_CPU)
    (epoch,) = [line for line in tables.splitlines() if line.startswith("| epoch")]
    assert "not measured: it needs 30 GiB" in epoch
    assert tables.count("not measured") == len(ON_CPU)
    assert "pass" not in tables


def test_a_share_of_the_matrix_rate_must_be_reached_too():
    bar = Bar("training step", 0.8, share=0.45)
    row = Row("training step, UNet, batch 1", "bfloat16", [1.0], [2.0], floor=0.45)
    assert cells_of(row, bar)["verdict"] == "pass"
    assert cells_of(replace(row, floor=0.44), bar)["verdict"] == "MISS"
    assert cells_of(replace(row, floor=None), bar)["verdict"] == "MISS"


def test_compiled_rows_have_the_bars_of_compiled_rows():
    row = Row("sample with mask, 50 steps", "bfloat16", [0.85], [1.0])
    assert cells_of(row, *ON_GPU)["verdict"] == "MISS"
    assert cells_of(replace(row, compiled=True), *ON_GPU)["verdict"] == "pass"
    assert bars_for("cuda:1") == ON_GPU
    assert bars_for("cpu") == ON_CPU


def test_the_floor_is_the_slower_of_computing_and_moving():
    rates = Rates(matrix=100.0, copy=10.0)
    assert rates.floor(200, 5) == 2.0
    assert rates.floor(200, 50) == 5.0


def test_flop_of_products_convolutions_and_attention_are_counted_with_their_gradients():
    q, conv, image = torch.randn(1, 2, 8, 4), torch.nn.Conv2d(3, 5, 3, padding=1), torch.randn(1, 3, 6, 6)
    assert flops_of(lambda: torch.ones(2, 3) @ torch.ones(3, 4))[1] == 2 * 2 * 3 * 4
    assert flops_of(lambda: conv(image))[1] == 2 * 36 * 5 * 27
    attention = 2 * (2 * 2 * 8 * 8 * 4)  # two products of a head of each of two
    assert flops_of(lambda: F.scaled_dot_product_attention(q, q, q))[1] == attention
    q.requires_grad_(True)
    with_gradients = flops_of(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward())[1]
    assert with_gradients > 2 * attention
    assert bytes_of([conv]) == 4 * (5 * 27 + 5)


def test_settings_reach_another_process_unchanged():
    options = build_parser().parse_args(["--quick", "--unet-batch", "1", "3", "--images", "4", "--epoch-batch", "2"])
    settings = settings_of(options, Path("a/w.safetensors"), Path("a/diffusers"), 2)
    assert Settings.from_json(settings.to_json()) == settings
    assert (settings.size, settings.batches, settings.images, settings.scratch) == (256, (1, 3), 4, Path("a"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--size", "0"], "--size 0: use 1 or more"),
        (["--unet-batch", "2", "0"], "--unet-batch [2, 0]: use 1 or more"),
        (["--images", "5", "--epoch-batch", "2"], "--images 5: use a multiple of --epoch-batch, 2"),
    ],
)
def test_sizes_that_mean_nothing_are_refused(words, sentence, capsys, tmp_path):
    assert run_command(lambda: main(["--table", "--out", str(tmp_path), *words])) == 2
    assert sentence in capsys.readouterr().err


def test_sides_in_processes_of_their_own_take_turns(monkeypatch):
    calls = []
    monkeypatch.setattr(turns, "child", lambda part, settings: calls.append(part) or part)
    pairs = turns.in_turn("epoch", replace(SETTINGS, turns=2))
    assert calls == ["epoch:ours", "epoch:theirs", "epoch:theirs", "epoch:ours"]
    assert pairs == [("epoch:ours", "epoch:theirs")] * 2


def test_a_process_that_fails_is_an_error_that_says_its_last_line(capsys):
    with pytest.raises(PartError, match="no such part"):
        turns.child("no such part", SETTINGS)
    capsys.readouterr()


@pytest.fixture
def trained(monkeypatch):
    """training_rows of steps that were measured elsewhere, on a machine of so many bytes."""

    def run(free, needed=10.0, failing=()):
        def sides(stage, settings):
            if stage in failing:
                raise PartError("killed")
            seconds = {str(batch): [1.0 * batch] for batch in settings.training_batches}
            return [({"seconds": seconds, "flops": {"1": 50}, "weights": 1, "peak": 2**30},) * 2]

        monkeypatch.setattr(turns, "in_turn", sides)
        monkeypatch.setattr(turns, "free_memory", lambda: free)
        monkeypatch.setattr(turns, "needed_memory", lambda settings, stage, batch: needed * batch)
        monkeypatch.setattr(turns, "measured_rates", lambda *arguments: Rates(100.0, 100.0))
        return {row.what: row for row in turns.training_rows(replace(SETTINGS, training_batches=(1, 4)))}

    return run


def test_a_step_that_would_not_fit_is_not_tried_and_says_what_it_needs(trained):
    rows = trained(free=30.0)
    assert rows["training step, UNet, batch 1"].ratio == 1.0
    assert rows["training step, UNet, batch 1"].floor == 0.5
    assert "GiB" in rows["training step, UNet, batch 4"].note
    assert rows["peak memory, training step of the UNet up to batch 1"].ours == [1.0]
    assert "training step, LoRA, batch 4" not in rows


def test_a_stage_that_fails_leaves_the_others(trained):
    rows = trained(free=None, failing=("ControlNet",))
    assert rows["training step, ControlNet, batch 1"].note == "killed"
    assert rows["training step, LoRA, batch 1"].ratio == 1.0


def test_a_step_needs_more_memory_for_more_trained_weights_more_pixels_and_more_images(tmp_path):
    from bench.parity import fill_model

    settings = replace(SETTINGS, weights=fill_model(MICRO, tmp_path / "filled.safetensors"))
    lora, control, unet = (turns.needed_memory(settings, stage, 1) for stage in ("LoRA", "ControlNet", "UNet"))
    assert lora < min(control, unet)
    assert turns.needed_memory(settings, "LoRA", 4) > lora > turns.needed_memory(replace(settings, size=64), "LoRA", 1)


def test_the_first_epoch_pays_for_the_cache_and_a_hundred_share_it(monkeypatch):
    monkeypatch.setattr(turns, "too_large", lambda *arguments: "")
    monkeypatch.setattr(turns, "in_turn", lambda *arguments: [({"epoch": 1.0, "cache": 2.0}, {"epoch": 4.0})])
    first, mean = turns.epoch_rows(SETTINGS)
    assert (first.what, first.ratio) == ("first epoch, 32 images, batch 1", 0.75)
    assert (mean.family, mean.ratio) == ("epoch", pytest.approx(1.02 / 4))


def test_the_papers_minutes_follow_from_the_fastest_steps_of_both_stages():
    rows = [
        Row("training step, UNet, batch 1", "bfloat16", [1.0], [1.0]),
        Row("training step, UNet, batch 4", "bfloat16", [2.0], [1.0]),
        Row("training step, ControlNet, batch 1", "bfloat16", [0.1], [1.0]),
    ]
    assert paper_minutes(rows) == pytest.approx(100 * 617 * (0.5 + 0.1) / 60)
    assert paper_minutes(rows[:2]) is None


def write_result(folder, group="networks", rows=(UNET,), machine="a machine"):
    """What the command writes for a group."""
    result = {
        "group": group,
        "command": "python -m bench.speed --quick",
        "machine": machine,
        "device": "cpu",
        "versions": {"torch": "2"},
        "settings": json.loads(SETTINGS.to_json()),
        "load": [1.0, 2.0],
        "seconds": 3.0,
        "rates": {"matrix": 5e10, "copy": 1e10},
        "rows": [asdict(row) for row in rows],
    }
    (folder / f"{group}_float32.json").write_text(json.dumps(result))


def test_a_page_is_made_of_what_a_folder_holds(tmp_path, capsys):
    write_result(tmp_path)
    write_result(tmp_path, "epoch", [Row("epoch, mean", "float32", [1.0], [2.0])])
    assert main(["--table", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.count("    python -m bench.speed --quick\n") == 1
    assert "a machine; torch 2." in text
    assert "matrix product 50 GFLOP/s, copy 10.0 GB/s" in text
    assert "It took 6 s; load meanwhile: 1.0 to 2.0." in text
    assert text.index("| UNet, batch 1") < text.index("| epoch, mean") < text.index("| sample with mask")


def test_results_of_two_machines_are_not_mixed(tmp_path):
    with pytest.raises(ValueError, match="nothing is measured"):
        page(tmp_path)
    write_result(tmp_path)
    write_result(tmp_path, "epoch", machine="another")
    with pytest.raises(ValueError, match="several machines"):
        page(tmp_path)


def test_what_is_there_is_not_measured_again_unless_asked(tmp_path, monkeypatch, capsys):
    measured = []
    for name in ("check_extra", "quiet", "write_weights"):
        monkeypatch.setattr(f"bench.speed.__main__.{name}", lambda *arguments: None)
    monkeypatch.setattr("bench.speed.__main__.measure", lambda group, *arguments: measured.append(group))
    write_result(tmp_path)
    words = ["--only", "networks", "start", "--threads", str(torch.get_num_threads()), "--out", str(tmp_path)]
    assert main(words) == 0
    assert measured == ["start"]
    assert main([*words, "--overwrite"]) == 0
    assert measured == ["start", "networks", "start"]
    capsys.readouterr()


def test_without_diffusers_one_sentence_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("ldm_us.runtime.checks.find_spec", lambda name: None)
    assert run_command(lambda: main(["--out", str(tmp_path)])) == 2
    assert "Install the extra bench" in capsys.readouterr().err
