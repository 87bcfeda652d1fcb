"""New masks: what is fitted comes out of what is drawn, and no mask leaves its image or falls apart."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ldm_us.data.__main__ import main
from ldm_us.data.masks.augment import Augmentation, augment_mask
from ldm_us.data.masks.files import read_masks, write_masks
from ldm_us.data.masks.sampler import components, draw_mask, fit_shapes, measure_shape
from ldm_us.data.opening import open_image
from ldm_us.data.phantom.simulate import draw_lesions
from ldm_us.data.words import words_in
from ldm_us.runtime.entry import run_command
from ldm_us.synthesis.subjects import choose_subjects

SIZE = 96


def ellipse(row, column, height, width, tilt=0.0, amplitude=0.0, order=3, size=256):
    """An ellipse in pixels, its radius times 1 + amplitude cos(order theta)."""
    down, right = np.meshgrid(np.arange(size) - row, np.arange(size) - column, indexing="ij")
    u = (right * np.cos(tilt) + down * np.sin(tilt)) / width
    v = (down * np.cos(tilt) - right * np.sin(tilt)) / height
    return np.hypot(u, v) < 1 + amplitude * np.cos(order * np.arctan2(v, u))


def phantom_masks(label, count, lesions=1):
    """Masks drawn by the phantom's own shape model."""
    at = (np.arange(SIZE) + 0.5) * 36 / SIZE
    masks = []
    for seed in range(count):
        drawn = draw_lesions(np.random.default_rng(seed), label, 36.0, lesions)
        masks.append(np.any([lesion.ratio(at[:, None], at[None, :]) < 1 for lesion in drawn], axis=0))
    return masks


@pytest.fixture(scope="module")
def models():
    return {label: fit_shapes(phantom_masks(label, 60)) for label in ("benign", "malignant")}


@pytest.mark.parametrize("tilt", [-0.6, 0.0, 0.4])
def test_the_measures_of_an_ellipse_are_its_own(tilt):
    shape = measure_shape(ellipse(100, 140, 30, 60, tilt))
    assert shape.area == pytest.approx(np.pi * 30 * 60 / 256**2, rel=0.01)
    assert shape.aspect == pytest.approx(0.5, rel=0.02)
    assert shape.tilt == pytest.approx(tilt, abs=0.01)
    assert (shape.row, shape.column) == pytest.approx((100.5 / 256, 140.5 / 256), abs=1e-3)
    assert float(shape.amplitudes.max()) < 0.01


@pytest.mark.parametrize("order", [3, 5, 8])
@pytest.mark.parametrize("amplitude", [0.05, 0.15])
def test_the_fourier_amplitude_of_an_outline_is_measured_at_its_order(order, amplitude):
    amplitudes = measure_shape(ellipse(128, 128, 60, 70, amplitude=amplitude, order=order)).amplitudes
    assert amplitudes[order - 2] == pytest.approx(amplitude, rel=0.1)
    assert int(np.argmax(amplitudes)) == order - 2


@pytest.mark.parametrize("label", ["benign", "malignant"])
def test_a_model_fitted_to_drawn_masks_is_the_model_they_were_drawn_from(models, label):
    model = models[label]
    again = fit_shapes([draw_mask(np.random.default_rng(i), model, SIZE) for i in range(80)])
    error = np.sqrt(np.diag(model.covariance) / 80)
    assert (np.abs(again.mean - model.mean) < 4 * error + [0.1, 0.05, 0.05, 0.03, 0.03]).all()
    assert again.amplitudes.sum() == pytest.approx(model.amplitudes.sum(), rel=0.3)


def test_malignant_lesions_are_larger_and_more_irregular_in_the_model_and_in_what_it_draws(models):
    drawn = {
        label: fit_shapes([draw_mask(np.random.default_rng(i), model, SIZE) for i in range(40)])
        for label, model in models.items()
    }
    for of in (models, drawn):
        assert of["malignant"].mean[0] > of["benign"].mean[0] + 0.4
        assert of["malignant"].amplitudes[3:].sum() > 1.5 * of["benign"].amplitudes[3:].sum()


def test_every_drawn_lesion_is_one_piece_inside_the_image(models):
    for i in range(60):
        mask = draw_mask(np.random.default_rng(i), models["malignant"], SIZE)
        assert mask.shape == (SIZE, SIZE)
        assert len(components(mask)) == 1
        assert mask[1:-1, 1:-1].sum() == mask.sum()


def test_masks_with_two_lesions_are_fitted_lesion_by_lesion_and_drawn_with_as_many():
    masks = phantom_masks("benign", 40, lesions=2)
    model = fit_shapes(masks)
    assert np.mean(model.counts) > 1.6
    counts = [len(components(draw_mask(np.random.default_rng(i), model, SIZE))) for i in range(40)]
    assert set(counts) <= {1, 2}
    assert np.mean(counts) == pytest.approx(np.mean(model.counts), abs=0.25)


def test_a_lesion_that_finds_no_place_beside_the_others_is_left_out(models):
    large = replace(models["benign"], counts=(4,), areas=(0.2, 0.2))
    counts = [len(components(draw_mask(np.random.default_rng(i), large, SIZE))) for i in range(3)]
    assert max(counts) < 4
    assert min(counts) >= 1


def test_the_same_seed_draws_the_same_mask_and_another_one_another(models):
    one, again, other = (draw_mask(np.random.default_rng(seed), models["benign"], SIZE) for seed in (1, 1, 2))
    assert (one == again).all()
    assert (one != other).any()


def test_components_touch_at_corners_and_nowhere_else():
    mask = np.zeros((6, 6), bool)
    mask[0, 0] = mask[1, 1] = mask[4:, 4:] = True
    assert [int(one.sum()) for one in components(mask)] == [2, 4]
    assert components(np.zeros((3, 3), bool)) == []


@pytest.mark.parametrize("lesions", [1, 2])
def test_a_varied_mask_loses_nothing_over_the_edge_and_keeps_its_pieces(lesions):
    strong = Augmentation(shift=0.6, scale=0.6, rotate=90, elastic=0.1)
    changed = 0
    for i, mask in enumerate(phantom_masks("malignant", 25, lesions)):
        varied = augment_mask(np.random.default_rng(i), mask, strong)
        assert varied.shape == mask.shape
        assert len(components(varied)) == len(components(mask))
        assert 0.2 < varied.sum() / mask.sum() < 4  # exp(2 * 0.6) = 3.3, and the bend
        changed += int((varied != mask).any())
    assert changed >= 23


def test_each_kind_of_variation_does_what_it_says_and_nothing_else():
    mask = ellipse(30, 40, 8, 16, size=96)
    none = Augmentation(shift=0, scale=0, rotate=0, flip=False, elastic=0)
    before, areas = measure_shape(mask), set()
    for i in range(6):
        rng = np.random.default_rng(i)
        assert (augment_mask(rng, mask, none) == mask).all()
        shifted = measure_shape(augment_mask(rng, mask, Augmentation(0.2, 0, 0, False, 0)))
        assert (shifted.area, shifted.aspect) == pytest.approx((before.area, before.aspect), rel=0.06)
        scaled = measure_shape(augment_mask(rng, mask, Augmentation(0, 0.4, 0, False, 0)))
        assert (scaled.row, scaled.column) == pytest.approx((before.row, before.column), abs=0.01)
        areas.add(scaled.area)
        rotated = measure_shape(augment_mask(rng, mask, Augmentation(0, 0, 30, False, 0)))
        assert abs(rotated.tilt) < np.deg2rad(31)
        assert rotated.area == pytest.approx(before.area, rel=0.06)
    assert min(areas) < 0.9 * before.area < 1.1 * before.area < max(areas)


def test_a_flip_mirrors_left_to_right_every_second_time():
    mask = ellipse(30, 20, 8, 12, size=96)
    only = Augmentation(0, 0, 0, True, 0)
    flipped = [(augment_mask(np.random.default_rng(i), mask, only) == mask[:, ::-1]).all() for i in range(40)]
    assert 10 < sum(flipped) < 30


def test_an_empty_mask_and_too_few_lesions_are_refused():
    with pytest.raises(ValueError, match="an empty mask has no lesion to move"):
        augment_mask(np.random.default_rng(0), np.zeros((8, 8), bool))
    with pytest.raises(ValueError, match="1 lesions of 20 pixels or more: a shape model needs at least 2"):
        fit_shapes([ellipse(100, 100, 20, 20), np.zeros((256, 256), bool)])


@pytest.mark.parametrize("augment", [False, True])
def test_the_command_writes_masks_that_sample_py_knows_the_class_of_the_first_ones_whatever_n(busi, tmp_path, augment):
    flags = ["--like", str(busi), "--size", "64", *(["--augment"] if augment else [])]
    for n, name in ((6, "six"), (3, "three")):
        assert main(["masks", *flags, "--n", str(n), "--out", str(tmp_path / name)]) == 0
    subjects = choose_subjects([], None, tmp_path / "six", words_in("m", {}))
    assert sorted(subject.name for subject in subjects) == [
        f"{c} ({i})" for c in ("benign", "malignant") for i in (1, 2, 3)
    ]
    for path in (tmp_path / "three").iterdir():
        assert path.read_bytes() == (tmp_path / "six" / path.name).read_bytes()
        with Image.open(path) as picture:
            assert picture.size == (64, 64)
            assert set(np.unique(np.asarray(picture))) == {0, 255}


def test_a_folder_of_mask_files_with_busi_names_is_fitted_too(busi, tmp_path):
    assert main(["masks", "--like", str(busi), "--n", "8", "--size", "64", "--out", str(tmp_path / "first")]) == 0
    assert main(["masks", "--like", str(tmp_path / "first"), "--n", "2", "--out", str(tmp_path / "second")]) == 0
    assert {path.name for path in (tmp_path / "second").iterdir()} == {"benign (1)_mask.png", "malignant (1)_mask.png"}


def test_files_with_busi_names_are_taken_in_every_format_and_case_and_others_are_named(busi, tmp_path, capsys):
    folder = tmp_path / "like"
    folder.mkdir()
    names = ("benign (1)_mask.webp", "benign (2)_Mask.PNG", "malignant (1)_mask.gif", "malignant (2)_mask.tif")
    for i, name in enumerate(names):
        Image.fromarray(ellipse(100 + 9 * i, 90, 30 + i, 50)).convert("L").save(folder / name, lossless=True)
    (folder / "notes.txt").touch()
    assert {label: len(masks) for label, masks in read_masks(folder, 64)[0].items()} == {"benign": 2, "malignant": 2}
    assert main(["masks", "--like", str(folder), "--n", "2", "--size", "64", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err == "note: left out: 1: notes.txt.\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--n", "0"], "--n 0: use 1 or more"),
        (["--size", "4"], "--size 4: use 16 to 2048 pixels"),
        (["--like", "nowhere"], "nowhere does not exist"),
        (["--seed", "-1"], "--seed -1"),
    ],
)
def test_the_command_refuses_bad_input_in_one_sentence(busi, tmp_path, flags, message, capsys):
    arguments = ["masks", "--like", str(busi), "--out", str(tmp_path / "out"), *flags]
    assert run_command(lambda: main(arguments)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_writes_over_nothing(busi, tmp_path, capsys):
    (tmp_path / "note").touch()
    assert run_command(lambda: main(["masks", "--like", str(busi), "--out", str(tmp_path)])) == 2
    assert "exists and is not empty" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["masks", "binarize"])
def test_masks_take_the_place_of_masks_where_asked_and_of_nothing_else(command, busi, tmp_path, capsys, monkeypatch):
    given, out = tmp_path / "given", tmp_path / "out"
    assert main(["masks", "--like", str(busi), "--n", "4", "--out", str(given)]) == 0
    words = ["masks", "--like", str(given), "--n", "3"] if command == "masks" else ["binarize", str(given)]

    def call(*more, into=out):
        return run_command(lambda: main([*words, "--out", str(into), *more])), capsys.readouterr().err

    assert call()[0] == 0
    names = sorted(path.name for path in out.iterdir())
    Image.new("L", (8, 8)).save(out / names[0])
    assert "--overwrite" in call()[1]
    assert open_image(out / names[0]).size == (8, 8)
    (out / "notes.txt").touch()
    assert call("--overwrite")[0] == 2  # something else is there
    (out / "notes.txt").unlink()
    assert call("--overwrite", into=given)[0] == 2  # what is read
    assert len(list(given.iterdir())) == 4

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"ldm_us.data.masks.{'files' if command == 'masks' else 'binarize'}.save_png", interrupted)
        assert call("--overwrite")[0] == 130
    assert open_image(out / names[0]).size == (8, 8)
    assert call("--overwrite")[0] == 0
    assert open_image(out / names[0]).size == (128, 128)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "out"]


def test_structures_are_varied_together_and_the_inner_one_stays_inside(tmp_path):
    root = tmp_path / "data"
    (root / "benign").mkdir(parents=True)
    (root / "dataset.json").write_text('{"structures": {"lobe": [1, 2], "nodule": 2}}')
    labels = np.zeros((64, 64), np.uint8)
    labels[16:48, 12:52], labels[28:38, 24:36] = 1, 2
    for i in (1, 2):
        Image.fromarray(labels).save(root / "benign" / f"benign ({i})_mask.png")
        Image.new("L", (64, 64), 90).save(root / "benign" / f"benign ({i}).png")
    write_masks(root, 6, tmp_path / "out", size=64, augment=True)
    written = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "out").iterdir())]
    assert len({one.tobytes() for one in written}) == 6
    for one in written:
        assert set(np.unique(one)) == {0, 1, 3}, "3: where lobe and nodule are"
        assert len(components(one == 3)) == len(components(one > 0)) == 1
