"""Black-and-white copies of masks: what is lesion is said once, nothing is overwritten, and outlines are filled."""

from functools import partial

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ldm_us.data.__main__ import main
from ldm_us.data.masks.binarize import binarize
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
