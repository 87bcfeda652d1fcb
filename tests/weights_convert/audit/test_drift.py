"""The drift between two files: known changes give known figures, whatever names the files use."""

import math
import xml.etree.ElementTree as ElementTree
from itertools import groupby

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ldm_us.config import PRESETS, TINY
from tests.golden.converted import convert_state_dict, source_from_state_dict
from tests.golden.original import PREFIXES, tiny_compvis, to_diffusers, to_open_clip
from weights_convert.__main__ import main
from weights_convert.audit.blocks import KIND_NAMES, block_of, kind_of, network_order
from weights_convert.audit.chart import drift_chart
from weights_convert.audit.drift import by_block, by_kind, measure_drift, most_drifted, unchanged_parts
from weights_convert.audit.findings import audit
from weights_convert.audit.text import drift_lines
from weights_convert.convert import target_shapes

UNET = PREFIXES["unet"]
SCALED, FROM_0 = f"{UNET}out.2.weight", f"{UNET}out.2.bias"


def compare(a, b, **options):
    return audit(source_from_state_dict(a), TINY, other=source_from_state_dict(b), **options)


@pytest.fixture(scope="module")
def comparison():
    """A layer scaled by 1.5, a bias that was all zero, all else unchanged."""
    base = tiny_compvis("unet", "text") | {FROM_0: torch.zeros(4)}
    return compare(base | {SCALED: 1.5 * base[SCALED], FROM_0: torch.ones(4)}, base)


def test_a_scaled_layer_has_exactly_its_scale_minus_1_and_all_others_are_identical(comparison):
    drifts = {drift.target: drift for drift in comparison.drifts}
    assert {t for t, d in drifts.items() if d.state != "identical"} == {
        "unet.decoder.conv_out.weight",
        "unet.decoder.conv_out.bias",
    }
    scaled, values = drifts["unet.decoder.conv_out.weight"], tiny_compvis("unet")[SCALED]
    assert scaled.relative == pytest.approx(0.5, abs=1e-7)
    assert scaled.largest == pytest.approx(0.5 * float(values.abs().max()), rel=1e-6)
    assert scaled.cosine == pytest.approx(1, abs=1e-12)
    assert math.isinf(drifts["unet.decoder.conv_out.bias"].relative)
    others = [d for t, d in drifts.items() if d.state == "identical"]
    assert {(d.relative, d.largest) for d in others} == {(0.0, 0.0)}
    assert len(drifts) == len(others) + 2 == 686 + 36


def test_drift_is_that_of_numpy_in_float64():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50, 60))
    drift = measure_drift("unet.x", torch.from_numpy(a), torch.from_numpy(b))
    assert drift.relative == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b))
    assert drift.largest == np.abs(a - b).max()
    assert drift.cosine == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    assert drift.state == "changed"


def test_states_are_of_bits_not_of_values():
    def state(a, b):
        return measure_drift("unet.x", a, b).state

    values = torch.tensor([1.0, math.nan, 0.1])
    assert state(values, values.clone()) == "identical"
    assert measure_drift("unet.x", values, values.clone()).relative == 0
    assert state(torch.tensor([0.0]), torch.tensor([-0.0])) == "changed"
    assert state(values, values.half()) == state(values.half(), values) == "rounded"
    assert state(values, values.half() + 1) == "changed"
    assert state(values.bfloat16(), values.half()) == "changed"
    assert math.isnan(measure_drift("unet.x", values, torch.ones(3)).relative)
    assert math.isnan(measure_drift("unet.x", torch.zeros(3), torch.ones(3)).cosine)


@pytest.mark.parametrize("layout", ["ours", "diffusers", "diffusers_old", "open_clip"])
def test_two_layouts_of_one_model_are_identical(layout):
    compvis = tiny_compvis("vae", "text")
    if layout == "ours":
        other = convert_state_dict(compvis, TINY)
    elif layout == "open_clip":
        other = to_open_clip(tiny_compvis("text"))
    else:
        other = to_diffusers(compvis, "vae", old=layout == "diffusers_old")
    for a, b in ((compvis, other), (other, compvis)):
        found = compare(a, b)
        assert {drift.state for drift in found.drifts} == {"identical"}
        assert len(found.drifts) == len(set(drift.target for drift in found.drifts))
    assert unchanged_parts(found.drifts).keys() == {drift.target.split(".")[0] for drift in found.drifts}
    assert len(found.other.pieces) - len(found.drifts) == {"ours": 0, "open_clip": 248}.get(layout, 36)


def test_a_block_is_the_vector_of_its_matrices_and_a_group_of_norms_that_of_its_norms():
    rng = torch.Generator().manual_seed(0)
    base = tiny_compvis("unet")
    tuned = {key: value + 0.01 * torch.randn(value.shape, generator=rng) for key, value in base.items()}
    drifts = compare(tuned, base).drifts

    def expected(names):
        a, b = (torch.cat([x[name].double().flatten() for name in names]) for x in (tuned, base))
        return float((a - b).norm() / b.norm())

    middle = [key for key in base if key.startswith(f"{UNET}middle_block.") and base[key].dim() > 1]
    assert {b.name: b.relative for b in by_block(drifts)}["middle"] == pytest.approx(expected(middle), rel=1e-9)
    cross = [key for key in base if "attn2" in key and base[key].dim() > 1]
    assert {b.name: b.relative for b in by_kind(drifts)}["cross-attention"] == pytest.approx(expected(cross), rel=1e-9)
    norms = [d for d in drifts if "norm" in d.target]
    total = math.sqrt(sum(d.squared_difference for d in norms) / sum(d.squared_norm for d in norms))
    assert {b.name: b.relative for b in by_kind(drifts)}["norm"] == pytest.approx(total)
    furthest = most_drifted(drifts, 10)
    assert [d.relative for d in furthest] == sorted((d.relative for d in drifts if d.axes > 1), reverse=True)[:10]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_tensor_has_a_block_and_a_kind_and_the_blocks_of_a_network_are_in_a_row(preset):
    targets = sorted(target_shapes(PRESETS[preset]), key=network_order)
    assert {kind_of(target) for target in targets} == set(KIND_NAMES)
    rows = [block for block, _ in groupby(targets, key=block_of)]
    assert len(rows) == len(set(rows))
    unet = [name for part, name in rows if part == "unet"]
    levels = len(PRESETS[preset].unet.multipliers)
    encoder, decoder = ([f"{half} level {i}" for i in range(levels)] for half in ("encoder", "decoder"))
    assert unet == ["time embedding", "encoder in", *encoder, "middle", *decoder, "out"]
    text = [name for part, name in rows if part == "text"]
    assert text == ["embeddings", *(f"block {i}" for i in range(PRESETS[preset].text.layers)), "out"]


def test_the_moving_average_can_be_compared_with_the_weights_of_the_same_file():
    model = tiny_compvis("unet")
    whole = model | {f"model_ema.{key[6:].replace('.', '')}": 2 * value for key, value in model.items()}
    drifts = compare(whole, whole, ema=True).drifts
    assert len(drifts) == 686
    assert {d.relative for d in drifts} == {1.0}


def test_the_text_names_what_changed_and_sums_up_what_did_not(comparison):
    text = "\n".join(drift_lines(comparison))
    assert "722 tensors in both: 720 identical to the bit" in text
    assert ", 2 changed" in text
    assert "text: nothing changed: all 36 tensors are identical to the bit" in text
    assert "unet out" in text
    assert text.count("unet.decoder.conv_out.weight") == 1
    assert "text block" not in text


def test_a_file_that_was_only_rounded_is_summed_up_too():
    base = tiny_compvis("text")
    found = compare({key: value.half() if value.is_floating_point() else value for key, value in base.items()}, base)
    assert unchanged_parts(found.drifts) == {"text": "all 36 tensors are equal but for the rounding of their type"}


def test_the_chart_has_one_dot_per_tensor_and_places_what_has_no_ratio(comparison):
    drifts = [drift for drift in comparison.drifts if drift.target.startswith("unet.")]
    svg = ElementTree.fromstring(drift_chart(drifts, "drift"))
    marked = {mark.find("title").text.split(":")[0]: float(mark.get("y")) for mark in svg.iter("use") if len(mark)}
    height = {name: y for name, y in marked.items() if name.startswith("unet.")}
    assert height.keys() == {drift.target for drift in drifts}
    assert marked.keys() - height.keys() == {block.name for block in by_block(drifts)}
    from_0, scaled = height["unet.decoder.conv_out.bias"], height["unet.decoder.conv_out.weight"]
    assert from_0 < scaled < height["unet.time.linear_1.weight"]
    assert len({y for y in height.values()}) == 3
    assert drift_chart([d for d in drifts if d.state == "identical"], "nothing")


def test_the_command_compares_files_and_a_folder(tmp_path, capsys):
    base = tiny_compvis("vae")
    save_file(base | {"first_stage_model.quant_conv.bias": torch.ones(8)}, tmp_path / "tuned.safetensors")
    (tmp_path / "folder" / "vae").mkdir(parents=True)
    save_file(to_diffusers(base, "vae"), tmp_path / "folder" / "vae" / "diffusion_pytorch_model.safetensors")
    files = [str(tmp_path / "tuned.safetensors"), "--against", str(tmp_path / "folder"), "--preset", "tiny"]
    assert main(["audit", *files, "--html", str(tmp_path / "a.html"), "--csv", str(tmp_path / "a.csv")]) == 0
    assert "248 tensors in both: 247 identical to the bit" in capsys.readouterr().out
    assert (tmp_path / "a.csv").read_text(encoding="utf-8").count(",identical,") == 247
    assert "Where vae changed" in (tmp_path / "a.html").read_text(encoding="ascii")
