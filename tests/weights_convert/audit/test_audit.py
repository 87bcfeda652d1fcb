"""`python -m weights_convert audit`: every tensor has a row that is true; what does not fit is listed and counted."""

import csv
import dataclasses
import hashlib
import io
import math
import os
import re
import sys
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm_us.config import SD15, TINY
from ldm_us.diffusion.ddpm import make_schedule
from tests.golden.converted import source_from_state_dict
from tests.golden.original import LAYOUTS, PREFIXES, tiny_compvis, to_open_clip
from weights_convert.audit.command import say
from weights_convert.audit.findings import audit, audit_rows, totals
from weights_convert.audit.numbers import CHUNK, numbers_of
from weights_convert.audit.text import verdict
from weights_convert.convert import examine_source, target_shapes
from weights_convert.sources import open_source

UNET = PREFIXES["unet"]
NAN, ZERO, CONSTANT = (UNET + name for name in ("out.2.weight", "out.2.bias", "time_embed.0.bias"))
MISSING, MISSHAPED, EXTRA = UNET + "out.0.bias", UNET + "time_embed.2.bias", "<b>evil</b>"


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """The denoiser of a tiny file with one damage of every kind."""
    tensors = {key: value.clone() for key, value in tiny_compvis("unet").items()}
    tensors[NAN][0, 0, 0, :2] = torch.tensor([math.nan, math.inf])
    tensors[ZERO].zero_()
    tensors[CONSTANT].fill_(0.5)
    del tensors[MISSING]
    tensors[MISSHAPED] = torch.ones(5)
    tensors[EXTRA] = torch.ones(2, 3)
    path = tmp_path_factory.mktemp("damaged") / "damaged.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def damaged_audit(damaged):
    return audit(open_source(damaged), TINY)


def rows_by_key(found):
    assert len({row.key for row in found.rows}) == len(found.rows)
    return {row.key: row for row in found.rows}


def test_every_tensor_of_a_file_has_one_row_with_its_bytes_and_numbers(inputs):
    found = audit(open_source(inputs / "model.safetensors"), TINY)
    tensors = {key: value.numpy() for key, value in load_file(inputs / "model.safetensors").items()}
    rows = rows_by_key(found)
    assert rows.keys() == tensors.keys()
    for key, values in tensors.items():
        numbers = rows[key].numbers
        assert numbers.sha256 == hashlib.sha256(values.tobytes()).hexdigest()
        assert (numbers.lowest, numbers.highest, numbers.count) == (values.min(), values.max(), values.size)
        assert numbers.rms == pytest.approx(math.sqrt(np.mean(values.astype(np.float64) ** 2)), rel=1e-12)
    assert Counter(row.status for row in found.rows) == {"used": len(tensors) - 1, "ignored": 1}
    used = [target for row in found.rows for target in row.targets]
    assert set(used) == {name for name in target_shapes(TINY) if not name.startswith("controlnet.")}
    assert len(used) == len(set(used))
    assert found.is_clean


def test_totals_are_the_sums_of_the_sizes_of_every_tensor(damaged_audit):
    tensors = [value for key, value in tiny_compvis("unet").items() if key not in (MISSING, MISSHAPED)]
    total = {total.part: total for total in damaged_audit.totals}["unet"]
    assert (total.tensors, total.parameters) == (len(tensors), sum(value.numel() for value in tensors))
    whole = tiny_compvis("unet").values()
    expected = (len(whole), sum(value.numel() for value in whole))
    assert (total.expected_tensors, total.expected_parameters) == expected
    assert damaged_audit.totals[0].tensors == 0


def test_the_totals_of_stable_diffusion_1_5_are_those_of_the_original_names_and_shapes():
    layout = LAYOUTS["compvis_single_file"]
    tensors = {key: torch.empty(shape, device="meta") for key, shape in layout.items()}
    found = totals(audit_rows(examine_source(source_from_state_dict(tensors), SD15), SD15), SD15)
    sizes = {total.part: (total.parameters, total.tensors) for total in found}
    for part in ("vae", "text", "unet"):
        own = [
            math.prod(s) for key, s in layout.items() if key.startswith(PREFIXES[part]) and "position_ids" not in key
        ]
        assert sizes[part] == (sum(own), len(own))
    assert sizes["unet"] == (859_520_964, 686)  # as diffusers counts them too
    assert sizes["controlnet"] == (0, 0)


def test_damage_of_every_kind_is_found_where_it_was_planted(damaged_audit):
    rows = rows_by_key(damaged_audit)
    problems = {row.key: row.problem for row in damaged_audit.problems}
    expected = {NAN: "not finite", MISSING: "missing", MISSHAPED: "misshaped", EXTRA: "unexpected"}
    assert problems == expected
    assert rows[NAN].numbers.flag == "1 NaN, 1 infinite"
    assert rows[ZERO].numbers.flag == "all zero"
    assert rows[CONSTANT].numbers.flag == "constant 0.5"
    assert rows[MISSING].numbers is None
    assert rows[MISSING].targets == ("unet.decoder.norm_out.bias",)
    assert rows[MISSHAPED].note == "should be [128]"
    flagged = {key for key, row in rows.items() if row.numbers is not None and row.numbers.flag}
    assert flagged == {NAN, ZERO, CONSTANT, MISSHAPED, EXTRA}  # the last two are all ones


def test_damage_is_printed_with_exit_code_1_and_every_problem_is_named(damaged, run_audit):
    code, text, error = run_audit(damaged, "--preset", "tiny")
    assert (code, error) == (1, "")
    assert "Not clean: 1 misshaped, 1 missing, 1 not finite, 1 unexpected." in text
    assert all(key in text for key in (NAN, MISSING, MISSHAPED, "evil"))
    assert hashlib.sha256(damaged.read_bytes()).hexdigest() in text
    assert "where it is from is not known" in text


def test_a_clean_file_has_exit_code_0_and_a_wrong_preset_is_suspected(inputs, run_audit):
    code, text, _ = run_audit(inputs / "control.pth", "--preset", "tiny")
    assert code == 0
    assert "Clean: everything fits tiny" in text
    code, text, _ = run_audit(inputs / "control.pth", "--preset", "sd15")
    assert code == 1
    assert "does another --preset fit?" in text
    assert re.search(r"misshaped: and \d+ more; --html and --csv list them all", text)


def test_a_split_tensor_has_one_row_and_infinities_that_are_not_used_do_no_harm():
    clip = to_open_clip(tiny_compvis("text")) | {"attn_mask": torch.full((77, 77), -math.inf).triu(1)}
    found = audit(source_from_state_dict(clip), TINY)
    rows = rows_by_key(found)
    row = rows["transformer.resblocks.0.attn.in_proj_weight"]
    assert row.targets == tuple(f"text.blocks.0.attention.to_{name}.weight" for name in "qkv")
    assert row.note == "split into 3 equal parts"
    assert rows["attn_mask"].status == "ignored"
    assert rows["attn_mask"].numbers.infinities == 77 * 76 / 2
    assert found.is_clean


def test_transforms_are_named():
    vae = {key: value for key, value in tiny_compvis("vae", "unet").items()}
    vae |= {f"model_ema.{key[6:].replace('.', '')}": v for key, v in vae.items() if key.startswith(UNET)}
    rows = rows_by_key(audit(source_from_state_dict(vae), TINY, ema=True))
    assert rows["first_stage_model.encoder.mid.attn_1.q.weight"].note == "[128, 128, 1, 1] -> [128, 128]"
    assert rows["first_stage_model.encoder.conv_in.weight"].note == "none"
    assert rows["model_ema.diffusion_modelout2weight"].note == "ema name"
    assert rows[f"{UNET}out.2.weight"].note == "unet: --ema takes its moving average"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_numbers_are_those_of_the_whole_tensor_across_chunks_in_every_type(dtype):
    tensor = torch.randn(CHUNK + 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    numbers = numbers_of(tensor)
    wide = tensor.double().numpy()
    assert numbers.sha256 == hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()
    assert (numbers.lowest, numbers.highest) == (wide.min(), wide.max())
    assert numbers.rms == pytest.approx(np.sqrt((wide**2).mean()))


@pytest.mark.parametrize(
    ("values", "flag"),
    [([], ""), ([0.0], "all zero"), ([3.0], ""), ([3.0, 3.0], "constant 3"), ([math.nan, 1.0, 1.0], "1 NaN")],
)
def test_flags_of_short_tensors(values, flag):
    assert numbers_of(torch.tensor(values)).flag == flag


def test_a_transposed_view_is_hashed_row_by_row():
    tensor = torch.arange(6.0).reshape(2, 3).T
    assert numbers_of(tensor).sha256 == hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def test_the_csv_has_a_line_for_every_tensor_of_ours_and_of_the_file(damaged, damaged_audit, run_audit, tmp_path):
    run_audit(damaged, "--preset", "tiny", "--csv", tmp_path / "a.csv")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text(encoding="utf-8"))))
    assert Counter(line["key"] for line in lines) == {row.key: max(1, len(row.targets)) for row in damaged_audit.rows}
    for line, row in zip(lines, damaged_audit.rows, strict=True):  # nothing is split here
        assert line["sha256"] == ("" if row.numbers is None else row.numbers.sha256)
        assert line["status"] == row.status
    assert float({line["key"]: line for line in lines}[CONSTANT]["highest"]) == 0.5


class Page(HTMLParser):
    """Counts the rows of the table of keys, and what a page would load."""

    def __init__(self):
        super().__init__()
        self.statuses, self.loaded, self.tags = Counter(), [], Counter()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        attributes = dict(attrs)
        self.statuses.update((attributes.get("data-status") or "").split()[:1])
        self.loaded += [value for name, value in attrs if name in ("src", "href")]


def test_the_page_has_a_row_for_every_key_loads_nothing_and_trusts_no_name(damaged, damaged_audit, run_audit, tmp_path):
    _, text, _ = run_audit(damaged, "--preset", "tiny", "--html", tmp_path / "a.html")
    assert f"wrote {tmp_path / 'a.html'}" in text
    content = (tmp_path / "a.html").read_text(encoding="ascii")
    page = Page()
    page.feed(content)
    assert page.statuses == Counter(row.status for row in damaged_audit.rows)
    assert page.loaded == []
    assert page.tags["b"] == 0
    assert "\x1b" not in content
    assert "url(" not in content
    assert verdict(damaged_audit) in content


def test_bad_input_is_one_sentence_and_exit_code_2(inputs, run_audit, tmp_path):
    (tmp_path / "there.html").write_text("mine", encoding="ascii")
    save_file({"fc": torch.ones(2)}, tmp_path / "other.safetensors")
    source = inputs / "control.pth"
    for arguments, sentence in (
        ((tmp_path / "no.ckpt",), "no such file or folder"),
        ((tmp_path / "other.safetensors",), "no known model"),
        ((source, "--ema"), "has no UNet to take the moving average of. Leave --ema out"),
        ((source, "--against", inputs / "clip.safetensors"), "has no tensor to compare"),
        ((source, "--html", tmp_path / "there.html"), "the file exists. Add --overwrite"),
        ((source, "--html", tmp_path), "--html is a folder"),
        ((source, "--html", tmp_path / "no" / "a.html"), "there is no folder"),
        ((source, "--csv", tmp_path / "a.html"), "the result is a .csv file. Let --csv end so"),
    ):
        code, text, error = run_audit(*arguments, "--preset", "tiny")
        assert (code, text) == (2, ""), arguments
        assert error.startswith("error: ")
        assert sentence in error
        assert error.count("\n") == 1
    assert (tmp_path / "there.html").read_text(encoding="ascii") == "mine"
    assert run_audit(source, "--preset", "tiny", "--html", tmp_path / "there.html", "--overwrite")[0] == 0


def test_what_lies_beside_src_is_read_with_and_without_another_model(inputs, run_audit, tmp_path):
    save_file(tiny_compvis("controlnet"), tmp_path / "control.safetensors")
    (tmp_path / "control.yaml").write_text("global_average_pooling: True")
    for options in ((), ("--against", inputs / "control.pth")):
        code, _, error = run_audit(tmp_path / "control.safetensors", "--preset", "tiny", *options)
        assert (code, "global_average_pooling is true" in error) == (2, True)


def test_an_audit_takes_the_prediction_that_the_file_leaves_open(run_audit, tmp_path):
    noise = dataclasses.replace(TINY.schedule, prediction="v", zero_terminal_snr=True)
    own = {"alphas_cumprod": make_schedule(noise).alpha_bar.float()}
    save_file(tiny_compvis("vae", "text", "unet") | own, tmp_path / "noise.safetensors")
    code, _, error = run_audit(tmp_path / "noise.safetensors", "--preset", "tiny")
    assert (code, "--prediction v" in error) == (2, True)
    assert run_audit(tmp_path / "noise.safetensors", "--preset", "tiny", "--prediction", "v")[0] == 0


def test_a_reader_that_stops_reading_is_no_error(monkeypatch):
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        say("a summary that nobody reads")
        print("what is left in the buffer is lost without an error")


def test_a_number_beyond_fp16_makes_an_audit_unclean_and_is_noted_by_an_import(run_audit, convert, tmp_path):
    tensors = {name: value.clone() for name, value in tiny_compvis("vae", "text", "unet").items()}
    tensors[NAN].view(-1)[3] = -1e30
    save_file(tensors, tmp_path / "big.safetensors")
    code, text, _ = run_audit(tmp_path / "big.safetensors", "--preset", "tiny")
    assert code == 1
    assert "Not clean: 1 too large." in text
    assert f"too large: {NAN}" in text
    code, _, error = convert(tmp_path / "big.safetensors", "--out", tmp_path / "out.safetensors")
    assert (code, error.count("\n")) == (0, 1)
    assert f"1 tensors hold numbers beyond 65504, the largest of fp16 ({NAN})" in error
