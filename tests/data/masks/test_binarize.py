"""Black-and-white copies of masks: what is lesion is said once, nothing is overwritten, and outlines are filled."""

from functools import partial

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ldm_us.data.__main__ import main
from ldm_us.data.masks.binarize import binarize
from ldm_us.data.opening import open_image
from ldm_us.data.records import union_of_masks
from ldm_us.runtime.entry import run_command

SIZE = (40, 30)


def drawn(path, *shapes, background=0):
    """Save a grey mask of ellipses, (box, level) each."""
    mask = Image.new("L", SIZE, background)
    for box, level in shapes:
        ImageDraw.Draw(mask).ellipse(box, fill=level)
    path.parent.mkdir(parents=True, exist_ok=True)
    mask.save(path)
    return np.asarray(mask)


def lesion_in(path):
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    assert set(np.unique(pixels)) <= {0, 255}
    return pixels > 0


@pytest.mark.parametrize(
    ("lesion", "levels"),
    [("85,255", {85, 255}), ("nonzero", {1, 85, 255}), ("80-90", {85}), ("dark", {0, 1, 85}), ("1", {1})],
)
def test_the_levels_that_are_named_are_lesion_and_nothing_else(tmp_path, lesion, levels):
    level = drawn(tmp_path / "m.png", ((4, 4, 20, 20), 85), ((8, 8, 14, 14), 255), ((25, 5, 35, 25), 1))
    shares = binarize(tmp_path / "m.png", tmp_path / "out", lesion)
    expected = np.isin(level, list(levels))
    assert (lesion_in(tmp_path / "out" / "m.png") == expected).all()
    assert shares["written"] == [expected.mean()]
    assert shares["nonzero"] == [(level > 0).mean()]
    assert (np.asarray(union_of_masks([tmp_path / "out" / "m.png"])) > 0).tolist() == expected.tolist()


def test_alpha_is_a_reading_and_what_is_transparent_is_no_lesion(tmp_path):
    picture = Image.new("RGBA", SIZE, (255, 255, 255, 0))
    ImageDraw.Draw(picture).ellipse((5, 5, 20, 20), fill=(0, 0, 0, 255))
    ImageDraw.Draw(picture).ellipse((8, 8, 12, 12), fill=(255, 255, 255, 255))
    picture.save(tmp_path / "m.png")
    opaque = np.asarray(picture)[..., 3] > 0
    white = opaque & (np.asarray(picture)[..., 0] > 0)
    for lesion, expected in (("alpha", opaque), ("nonzero", white), ("dark", opaque & ~white)):
        binarize(tmp_path / "m.png", tmp_path / lesion, lesion)
        assert (lesion_in(tmp_path / lesion / "m.png") == expected).all()


def test_a_folder_keeps_its_names_and_folders_and_what_is_no_mask_stays_out(tmp_path, capsys):
    for name in ("benign/a_mask.png", "benign/a.png", "b.bmp"):
        drawn(tmp_path / "in" / name, ((4, 4, 20, 20), 1))
    (tmp_path / "in" / "notes.txt").write_text("1 is a cyst")
    asked = ["binarize", str(tmp_path / "in"), "--lesion", "1", "--out", str(tmp_path / "deep" / "out")]
    assert run_command(partial(main, asked)) == 0
    out = tmp_path / "deep" / "out"
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.png")) == ["b.png", "benign/a_mask.png"]
    printed, told = capsys.readouterr()
    share = f"{(np.asarray(Image.open(tmp_path / 'in' / 'b.bmp')) > 0).mean():.2%}"
    assert f"written: least {share}, median {share}, largest {share} of the picture" in printed
    assert "above 127: least 0.00%" in printed
    assert told == "note: left out: 1: notes.txt.\n"


def test_outlines_are_filled_where_that_is_asked_for(tmp_path):
    outline = Image.new("L", SIZE)
    ImageDraw.Draw(outline).ellipse((5, 5, 25, 25), outline=255)
    outline.save(tmp_path / "m.png")
    filled = drawn(tmp_path / "filled.png", ((5, 5, 25, 25), 255)) > 0
    binarize(tmp_path / "m.png", tmp_path / "out", fill=True)
    assert (lesion_in(tmp_path / "out" / "m.png") == filled).all()
    binarize(tmp_path / "m.png", tmp_path / "as_it_is")
    assert (lesion_in(tmp_path / "as_it_is" / "m.png") == (np.asarray(outline) > 0)).all()


def test_nothing_is_overwritten_and_nothing_is_left_half_written(tmp_path):
    drawn(tmp_path / "in" / "a.png", ((4, 4, 20, 20), 255))
    drawn(tmp_path / "in" / "b.png", ((4, 4, 20, 20), 85), ((8, 8, 14, 14), 255))
    for out, lesion, sentence in (
        (tmp_path / "in", "nonzero", "--out .*in: exists and is not empty"),
        (tmp_path / "out", None, r"b\.png has more than two levels"),
        (tmp_path / "out", "17", "no pixel has a level of --lesion 17"),
        (tmp_path / "out", "bright", "--lesion bright: give levels such as 85,200-255, or above 127, nonzero"),
    ):
        with pytest.raises(ValueError, match=sentence):
            binarize(tmp_path / "in", out, lesion)
        assert [path.name for path in tmp_path.iterdir()] == ["in"]
        assert len(list((tmp_path / "in").iterdir())) == 2
    with pytest.raises(ValueError, match=r"none\.png does not exist"):
        binarize(tmp_path / "none.png", tmp_path / "out")
    drawn(tmp_path / "in" / "a.bmp", ((4, 4, 20, 20), 255))
    with pytest.raises(ValueError, match="two masks differ in their suffix alone"):
        binarize(tmp_path / "in", tmp_path / "out", "nonzero")


def overlay(level, alpha):
    """A picture of these levels and alphas (h, w), each one number or an array."""
    planes = [np.broadcast_to(np.asarray(plane, np.uint8), (30, 40)) for plane in (level, level, level, alpha)]
    return Image.fromarray(np.stack(planes, axis=2))


LEFT, RIGHT = (np.zeros((30, 40), np.uint8) for _ in range(2))
LEFT[8:20, 5:15] = RIGHT[8:20, 25:35] = 1


@pytest.mark.parametrize(
    ("picture", "lesion", "expected"),
    [
        (Image.fromarray(LEFT), "nonzero", LEFT),
        (Image.fromarray(LEFT * 85 + RIGHT * 255), "85", LEFT),
        (Image.fromarray(LEFT * 100 + RIGHT * 200), "100,200", LEFT + RIGHT),
        (overlay(255, LEFT * 50 + RIGHT * 100), "alpha", LEFT + RIGHT),
        (overlay(0, LEFT * 90 + RIGHT * 255), "alpha", LEFT + RIGHT),
        (overlay(LEFT * 255, RIGHT * 255), "alpha", RIGHT),
        (overlay(LEFT * 255, 255 - LEFT * 255), "transparent", LEFT),
        (overlay(LEFT * 60 + RIGHT * 90, (LEFT + RIGHT) * 255), "60", LEFT),
    ],
    ids=["numbers", "classes", "greys", "alphas", "dark alphas", "two shapes", "hole", "dark colours"],
)
def test_what_is_refused_and_no_photograph_has_a_reading_that_reads_it(tmp_path, picture, lesion, expected):
    picture.save(tmp_path / "m.png")
    with pytest.raises(ValueError, match="binarize --lesion LEVELS"):
        union_of_masks([tmp_path / "m.png"])
    binarize(tmp_path / "m.png", tmp_path / "out", lesion)
    assert (lesion_in(tmp_path / "out" / "m.png") == (expected > 0)).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_masks_of_16_bits_are_read_where_their_levels_say_which_is_lesion(tmp_path, suffix):
    for name, level in (("full", 65535), ("byte", 255), ("low", 4096), ("empty", 0)):
        Image.fromarray(LEFT.astype(np.uint16) * level).save(tmp_path / f"{name}{suffix}")
    Image.fromarray(LEFT.astype(np.int32) * 65535).save(tmp_path / "wide.tif")
    binarize(tmp_path, tmp_path / "out")
    read = {path.stem: lesion_in(path).tolist() for path in (tmp_path / "out").iterdir()}
    drawn_as = (LEFT > 0).tolist()
    assert read == dict.fromkeys(("full", "byte", "low", "wide"), drawn_as) | {"empty": (LEFT > 1).tolist()}


def test_masks_of_16_bits_with_other_levels_are_refused_or_named(tmp_path):
    Image.fromarray(LEFT.astype(np.uint16)).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match=r"one\.png .*brightest pixel is 1 .*binarize --lesion LEVELS"):
        union_of_masks([tmp_path / "one.png"])
    binarize(tmp_path / "one.png", tmp_path / "out", "1")
    assert (lesion_in(tmp_path / "out" / "one.png") == (LEFT > 0)).all()
    Image.fromarray(LEFT.astype(np.uint16) * 300 + RIGHT.astype(np.uint16) * 65535).save(tmp_path / "three.png")
    with pytest.raises(ValueError, match=r"three\.png has mode I;16, more than 8 bits a pixel"):
        union_of_masks([tmp_path / "three.png"])
    Image.fromarray(LEFT.astype(np.uint16) * 65535).save(tmp_path / "image.png")
    with pytest.raises(ValueError, match=r"image\.png has mode I;16, more than 8 bits a pixel"):
        open_image(tmp_path / "image.png")
