"""python -m ldm_us.evaluation realism: planted differences are found, none are made up, and refusals are clear."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from scipy.ndimage import gaussian_filter
from scipy.stats import hypergeom, mannwhitneyu

from ldm_us.data.framing import KEPT, Framing
from ldm_us.data.records import Record
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.evaluation import difference
from ldm_us.evaluation.__main__ import main
from ldm_us.evaluation.realism.comparison import compare
from ldm_us.evaluation.realism.measures import FIGURES, Measured, measure
from ldm_us.evaluation.realism.picture import SETS, bin_edges, histogram
from ldm_us.evaluation.realism.table import bound_sentences, effect_text, figure_cells, figure_test_as_json, summary
from ldm_us.evaluation.sets.image_sets import one_per_family, read_set, shared_classes
from ldm_us.files.checkpoint import save_model
from ldm_us.runtime.entry import run_command
from tests.conftest import MICRO

SIDE, IMAGES = 64, 12


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(difference, "RESAMPLES", 200)


def speckle(rng: np.random.Generator, grain: float) -> np.ndarray:
    """A log-compressed Rayleigh envelope with grains of this size, darker with depth."""
    field = gaussian_filter(rng.normal(size=(2, SIDE, SIDE)), (0, grain, 1.5 * grain))
    db = 20 * np.log10(np.hypot(*field) / field.std())
    return np.clip(150 + 255 / 60 * db - np.linspace(0, 60, SIDE)[:, None], 0, 255)


def save_set(
    folder: Path, seed: int, grain: float = 1.0, depth: float = 60, labels: tuple[str, ...] = ("benign", "malignant")
) -> Path:
    """A folder in the layout of BUSI: lesions darker than what is around them by `depth`; normal images have none."""
    rng = np.random.default_rng(seed)
    for label in labels:
        (folder / label).mkdir(parents=True)
        for i in range(IMAGES):
            image, mask = speckle(rng, grain), np.zeros((SIDE, SIDE), bool)
            if label != "normal":
                mask[20:36, 18 + i : 40 + i] = True
            picture = Image.fromarray(np.clip(image - depth * mask, 0, 255).astype(np.uint8))
            picture.save(folder / label / f"{label} ({9000 + i}).png")
            Image.fromarray(mask).save(folder / label / f"{label} ({9000 + i})_mask.png")
    return folder


def run(*arguments: object) -> int:
    return run_command(partial(main, ["realism", "--no-two-sample", *map(str, arguments)]))


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return save_set(tmp_path_factory.mktemp("sets") / "real", 0)


def by_row(printed: dict) -> dict:
    return {(row["figure"], row["class"]): row for row in printed["figures"]}


def test_a_planted_difference_is_found_where_it_is_planted_and_written(real, tmp_path, capsys):
    other = save_set(tmp_path / "other", 1, grain=1.6, depth=25)
    assert run("--real", real, "--generated", other, "--out", tmp_path / "out") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out" / "realism.json").read_text())
    rows = by_row(printed)
    for key in ("axial_width", None), ("lateral_width", None), ("gcnr", "benign"), ("lesion_contrast", "malignant"):
        assert rows[key]["p_holm"] < 0.01
    assert rows["axial_width", None]["cliffs_delta"] > 0.9, "larger grains"
    assert rows["lesion_contrast", "benign"]["cliffs_delta"] > 0.9, "less dark lesions"
    assert rows["gcnr", "benign"]["cliffs_delta"] < -0.9
    assert rows["depth_2", None]["p_holm"] > 0.05, "the same grey above the lesions"
    assert printed["size"] == SIDE
    assert printed["real"]["by_class"] == {"benign": IMAGES, "malignant": IMAGES}

    table = (tmp_path / "out" / "realism.md").read_text()
    assert table.count("| < 0.001 |") == sum(row["p_holm"] < 0.001 for row in printed["figures"])
    assert "| Lesion gCNR, benign | 0 hidden, 1 apart |" in table
    with Image.open(tmp_path / "out" / "realism.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in SETS:
        assert (pixels == ImageColor.getrgb(colour)).all(axis=1).sum() > 1000, "a line of each set in every panel"


def test_sets_of_one_distribution_do_not_differ(real, tmp_path, capsys):
    assert run("--real", real, "--generated", save_set(tmp_path / "other", 2)) == 0
    rows = by_row(json.loads(capsys.readouterr().out))
    assert len(rows) == 5 + 1 + 8 + 2 * 4
    assert min(row["p_holm"] for row in rows.values()) > 0.05


def test_the_two_sample_test_stands_in_the_result_and_on_the_page_and_may_be_left_out(tmp_path, capsys, monkeypatch):
    many = [save_set(tmp_path / name, seed, labels=("benign", "malignant", "normal")) for seed, name in enumerate("ab")]
    arguments = ["realism", "--real", many[0], "--generated", many[1], "--two-sample-steps", 1]
    with monkeypatch.context() as patch:
        patch.setattr("ldm_us.evaluation.realism.two_sample.FEWEST", 36)
        assert main([*map(str, arguments), "--seed", "3", "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)["two_sample"]
    assert (found["crop"], found["steps"], found["seed"]) == (32, 1, 3)
    assert found["against_real"]["trained_on"] == found["against_real"]["tested_on"] == [18, 18]
    assert found["real_halves"]["trained_on"] == found["real_halves"]["tested_on"] == [9, 9]
    against = found["against_real"]
    page = (tmp_path / "out" / "realism.md").read_text()
    assert f"| Real and generated | {against['auc']:.2f} [{against['low']:.2f}, {against['high']:.2f}] |" in page
    assert "| Real and real: two halves |" in page
    assert "grain" in page.split("two-sample")[-1]
    assert main([*map(str, arguments)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["two_sample"] is None
    sentence = "Two-sample test: it needs 40 images of each set, of the same classes, not 36."
    assert sentence in printed["left_out"]
    assert main([*map(str, arguments), "--no-two-sample"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["two_sample"] is None
    assert sentence not in printed["left_out"]


def test_folders_without_masks_have_no_lesion_figures_and_the_result_says_so(real, tmp_path, capsys):
    lines = []
    for i, path in enumerate(sorted(save_set(tmp_path / "other", 3, labels=("benign",)).glob("benign/*).png"))):
        path.rename(tmp_path / f"{i}.png")
        lines.append(json.dumps({"number": i, "file_name": f"{i}.png"}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    for left in (tmp_path / "other" / "benign").iterdir():
        left.unlink()
    assert run("--real", real, "--generated", tmp_path) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {row["class"] for row in printed["figures"]} == {None}
    assert printed["generated"]["by_class"] == {"unknown": IMAGES}
    assert any("no lesion masks in the images compared with it" in sentence for sentence in printed["left_out"])


def test_classes_of_one_set_alone_are_left_out_and_named(real, tmp_path, capsys):
    other = save_set(tmp_path / "other", 4, labels=("malignant", "normal"))
    assert run("--real", real, "--generated", other) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["real"]["by_class"] == {"malignant": IMAGES}
    assert f"{IMAGES} benign images of --real: the other set has no benign images." in printed["left_out"]
    assert f"{IMAGES} normal images of --generated: the other set has no normal images." in printed["left_out"]


def test_a_class_with_too_few_lesions_is_left_out_and_counted(real, tmp_path):
    records = [record for record in read_set([real]) if record.label == "benign" or "9003" in record.image.name]
    measured, _ = measure(records, Framing(SIDE), 60, lambda: None)
    rows, _, left_out = compare(measured, measured, paired=False)
    assert {row.label for row in rows} == {None, "benign"}
    assert "Lesion gCNR, malignant: 1 and 1 values, but each set needs 10." in left_out
    assert [row.difference.effect for row in rows] == pytest.approx([0] * len(rows), abs=1e-12)


def test_near_duplicates_count_once_and_families_of_two_classes_not_at_all(real, tmp_path):
    records = read_set([save_set(tmp_path / "other", 5)])
    source = records[0].image.read_bytes()
    (tmp_path / "copy.png").write_bytes(source)
    copy = Record(tmp_path / "copy.png", (), "benign", "", "copy")
    assert one_per_family([*records, copy])[0] == one_per_family(records)[0]
    other = Record(tmp_path / "copy.png", (), "malignant", "", "copy")
    kept, mixed = one_per_family([*records, other])
    assert (len(kept), mixed) == (2 * IMAGES - 1, 1)


def test_only_classes_that_both_sets_have_are_shared_unless_a_class_is_unknown():
    def of(*labels: str) -> list[Record]:
        return [Record(Path(label), (), label, "", label) for label in labels]

    assert shared_classes(of("benign", "normal"), of("benign", "malignant")) == {"benign"}
    assert shared_classes(of("benign", "normal"), of("unknown")) == {"benign", "normal", "unknown"}
    with pytest.raises(ValueError, match="holds the classes normal, but --real benign"):
        shared_classes(of("benign"), of("normal"))


def test_a_perfect_autoencoder_changes_nothing_and_a_blur_what_it_blurs(real):
    records = read_set([real])[:IMAGES]
    rows, _, _ = compare(*measure(records, Framing(SIDE), 60, lambda: None, lambda x: x), paired=True)
    assert all(row.difference == difference.Difference(0, 0, 0, 1) for row in rows)

    def blur(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(gaussian_filter(x.numpy(), (0, 0, 0.8, 0.8)))

    rows, _, _ = compare(*measure(records, Framing(SIDE), 60, lambda: None, blur), paired=True)
    found = {row.name: row for row in rows}
    for name, sign in {"nakagami_m": 1, "envelope_snr": 1, "axial_width": 1, "detail": -1}.items():
        assert found[name].p_holm < 0.01
        assert np.sign([found[name].difference.low, found[name].difference.high]).tolist() == [sign, sign]
    assert abs(found["depth_3"].difference.effect) < 1, "a blur keeps the mean of a band"


def test_means_and_spreads_are_those_of_the_values_and_the_mean_grey_is_that_of_the_pixels(real):
    records = read_set([real])[:IMAGES]
    measured, _ = measure(records, Framing(SIDE), 60, lambda: None)
    greys = [np.asarray(Image.open(record.image), float).mean() for record in records]
    assert measured.of("mean_grey") == pytest.approx(greys)
    found = summary(measured.of("mean_grey"), np.inf)
    assert (found["mean"], found["sd"]) == pytest.approx((np.mean(greys), np.std(greys, ddof=1)), rel=1e-3)


@pytest.mark.parametrize(("wide_real", "wide_other", "sign"), [(0, 0, ""), (0, 1, ">= "), (1, 0, "<= "), (1, 1, "~ ")])
def test_grain_wider_than_the_window_is_shown_as_a_bound_and_so_is_what_is_made_of_it(wide_real, wide_other, sign):
    rng = np.random.default_rng(8)
    sets = [made_up(rng, {"benign": 20}, 4.0, 0.0) for _ in range(2)]
    for one, wide in zip(sets, (wide_real, wide_other), strict=True):
        one.bounds["axial_width"] = 16.0
        for figures in one.figures[: 12 * wide]:
            figures["axial_width"] = 16.0
    tests, _, _ = compare(*sets, paired=True)
    (test,) = (test for test in tests if test.name == "axial_width")
    assert effect_text(test).startswith(f"{sign}{'+' * (test.difference.effect >= 0)}")
    row = figure_test_as_json(test)
    assert [row[kind].get("lower_bounds", 0) for kind in ("real", "reconstructed")] == [12 * wide_real, 12 * wide_other]
    assert [cell.startswith(">= 16.0") for cell in figure_cells(test)[2:4]] == [bool(wide_real), bool(wide_other)]
    said = bound_sentences(tests)
    assert len(said) == bool(sign)
    assert all(
        sentence.startswith(f"Axial grain: {12 * wide_real} real and {12 * wide_other} other") for sentence in said
    )


def test_the_rank_of_a_bound_among_measured_values_is_known_so_that_deltas_of_one_bounded_set_are_exact():
    rng = np.random.default_rng(9)
    real, other = (made_up(rng, {"benign": 20}, 4.0, 0.0) for _ in range(2))
    deltas = []
    for wide in (16.0, 1e6):
        for figures in other.figures:
            figures["axial_width"] = wide
        tests, _, _ = compare(real, other, paired=False)
        deltas += [test.difference.effect for test in tests if test.name == "axial_width"]
    assert deltas == [1, 1]


def test_reconstructions_come_from_the_models_autoencoder(real, tmp_path, capsys):
    torch.manual_seed(0)
    save_model(LatentDiffusion(MICRO), tmp_path / "m.safetensors", {})
    assert run("--real", real, "--reconstructions", tmp_path / "m.safetensors", "--size", SIDE) == 0
    printed = json.loads(capsys.readouterr().out)
    rows = by_row(printed)
    assert rows["detail", None]["p_holm"] < 0.01, "random weights destroy every image"
    assert rows["detail", None]["mean_difference"] < 0
    assert printed["reconstructed"]["measured"] == printed["real"]["measured"] == 2 * IMAGES
    assert printed["real"]["artefacts"]["largest_grey_deviation"] == 0 < printed["reconstructed"]["artefacts"][
        "median_grey_deviation"
    ], "three channels of an untrained decoder"  # fmt: skip


def test_bad_input_is_refused_in_one_sentence(real, tmp_path, capsys):
    other = save_set(tmp_path / "other", 6)
    for path in list(other.glob("*/*9*")):
        if int(path.name.split("(")[1][:4]) > 9003:
            path.unlink()
    save_model(LatentDiffusion(MICRO), tmp_path / "m.safetensors", {})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "realism.md").write_text("mine")
    vae = ("--reconstructions", tmp_path / "m.safetensors")
    cases = {
        (
            "--generated",
            other,
        ): "--generated, near-duplicates counted once: 8 images, but a distribution needs at least 10",
        ("--generated", real): "pixel for pixel",
        ("--generated", other, "--size", 32): "--size 32: speckle is measured at 64 pixels and more",
        ("--generated", other, "--dynamic-range", 0): "use more than 0 dB",
        ("--generated", other, "--two-sample-steps", 0): "--two-sample-steps 0: use 1 or more",
        ("--generated", other, "--seed", -1): "--seed -1: use 0 up to",
        ("--generated", other, "--dynamic-range", "nan"): "use a finite number",
        ("--generated", other, "--out", tmp_path / "out"): "has realism.md already",
        ("--generated", other, "--out", tmp_path / "m.safetensors"): "exists and is not a folder",
        (*vae, "--size", 66 + 1): "needs a multiple of",
        vae: "--size 16: speckle is measured at 64 pixels and more",
    }
    for arguments, sentence in cases.items():
        capsys.readouterr()
        assert run("--real", real, *arguments) == 2
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(error) == 1
        assert sentence in error[0]
    assert (tmp_path / "out" / "realism.md").read_text() == "mine"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["realism.md"]


def test_a_histogram_is_a_share_of_all_values_even_of_those_beyond_its_bins():
    rng = np.random.default_rng(0)
    first, second = np.append(rng.normal(size=99), 1e6), rng.normal(size=30)
    edges = bin_edges(first, second)
    assert edges[-1] < 1e3, "one outlier does not squeeze all others into one bin"
    assert [histogram(values, edges).sum() for values in (first, second)] == pytest.approx([1, 1])
    assert np.diff(bin_edges(np.ones(20), np.ones(20))).min() > 0


def made_up(rng, counts, shift, corners):
    """Measured values without images: a figure that grows from class to class, and black corners in a share."""
    measured = Measured()
    for i, (label, count) in enumerate(counts.items()):
        for _ in range(count):
            figures = {name: float(rng.normal(4 * i + shift)) for name in FIGURES}
            measured.add("", label, np.full((32, 32), 0 if rng.random() < corners else 99, np.uint8), figures, 0)
            measured.grey_deviation[-1] = int(rng.poisson(2 + shift))
    return measured


def test_another_mix_of_classes_is_no_difference_and_a_shift_within_classes_is(monkeypatch):
    monkeypatch.setattr(difference, "RESAMPLES", 50)
    rng = np.random.default_rng(0)
    real = made_up(rng, {"benign": 60, "malignant": 20}, 0.0, 0.1)
    for shift, differs in ((0.0, False), (1.0, True)):
        other = made_up(rng, {"benign": 25, "malignant": 75}, shift, 0.1)
        rows, _, _ = compare(real, other, paired=False)
        pooled = [row for row in rows if row.label is None]
        assert all((row.p_holm < 0.01) == differs for row in pooled)
        assert all(row.difference.low < row.difference.effect < row.difference.high for row in pooled)
        assert mannwhitneyu(pooled[0].real, pooled[0].other).pvalue < 1e-6, "the pooled values differ"


def test_artefacts_are_tested_by_class_and_corrected_with_the_figures(monkeypatch):
    """Fisher's exact p is the sum of the hypergeometric chances that are no larger than that of what was seen."""
    monkeypatch.setattr(difference, "RESAMPLES", 50)
    rng = np.random.default_rng(1)
    counts = {"benign": 40, "malignant": 40}
    real, other = made_up(rng, counts, 0.0, 0.6), made_up(rng, counts, 1.5, 0.0)
    rows, tests, _ = compare(real, other, paired=False)
    by_name = {(test.name, test.label): test for test in tests}
    assert set(by_name) == {("black_upper_corners", label) for label in counts} | {("grey_deviation", None)}
    hits = [sum(one.black_corners[:40]) for one in (real, other)]
    chance = hypergeom(80, sum(hits), 40).pmf(np.arange(41))
    expected = chance[chance <= chance[hits[0]] * (1 + 1e-9)].sum()
    assert by_name["black_upper_corners", "benign"].p == pytest.approx(expected)
    assert all(test.p_holm < 0.01 for test in tests)
    every = [row.difference.p for row in rows] + [test.p for test in tests]
    assert [row.p_holm for row in rows] + [test.p_holm for test in tests] == pytest.approx(difference.holm(every))
    _, same, _ = compare(real, real, paired=True)
    assert all(test.p == 1 for test in same)


def test_grains_as_wide_as_high_stay_so_at_the_true_aspect_and_not_squashed(tmp_path):
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(256, 512)), 3)
    path, grey = tmp_path / "image.png", (128 + 40 * noise / noise.std()).clip(0, 255).astype(np.uint8)
    Image.fromarray(grey).save(path)
    record = Record(path, (), "benign", "", "1")
    ratio = {}
    for rule in (KEPT, "squash"):
        (figures,) = measure([record], Framing(128, rule), 60, lambda: None)[0].figures
        ratio[rule] = figures["lateral_width"] / figures["axial_width"]
    assert ratio[KEPT] == pytest.approx(1, abs=0.1)
    assert ratio["squash"] < 0.65


def test_widths_are_given_in_mm_where_the_size_of_a_pixel_is_known(real, tmp_path, capsys):
    """The same images twice: of half of them pixels are 0.1 mm deep and 0.2 mm wide, of one more than twice as much."""
    sets = [real, save_set(tmp_path / "other", 1)]
    lines = []
    for i, record in enumerate(read_set([sets[0]])):
        spacing = {"spacing": [0.1, 0.2]} if i % 2 else {"spacing": 0.5} if i == 0 else {}
        image, mask = (path.relative_to(real).as_posix() for path in (record.image, record.masks[0]))
        lines.append({"file_name": image, "text": "x", "mask": mask, "class": record.label} | spacing)
    listed = tmp_path / "listed"
    shutil.copytree(real, listed)
    (listed / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run("--real", listed, "--generated", sets[1], "--out", tmp_path / "out") == 0
    printed = json.loads(capsys.readouterr().out)
    widths = printed["real"]["widths_mm"]
    pixels = by_row(printed)["lateral_width", None]["real"]["median"]
    assert widths["lateral_width"]["n"] == IMAGES + 1
    assert widths["lateral_width"]["median"] == pytest.approx(0.2 * pixels, rel=0.2)
    assert "widths_mm" not in printed["generated"]
    assert printed["left_out"][0].startswith("--real: a pixel is 0.1 mm down in ")
    assert (
        "Axial grain of 13 real images, of which the size of a pixel is known: 0."
        in (tmp_path / "out" / "realism.md").read_text()
    )
