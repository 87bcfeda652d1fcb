"""Masks as arrays: what is said of them, their outline, and the same lesion elsewhere or larger."""

import numpy as np

from ldm_us.data.masks.shape import COLOURS, canvas_picture, described, mask_picture, moved, outline
from ldm_us.data.records import union_of_masks
from ldm_us.data.structure import in_channels


def disk(y=32, x=32, r=8, size=(64, 96)):
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= r**2


def test_area_and_pieces_are_told():
    assert described(np.zeros((8, 8), bool)) == "No lesion drawn yet."
    two = disk(16, 16, 4) | disk(48, 80, 4)
    assert described(two) == f"Lesion: {100 * two.mean():.1f} % of the picture, 2 pieces."
    assert described(np.ones((8, 8), bool), ["cyst"]) == "Cyst: 100.0 % of the picture, 1 piece."


def test_a_mask_is_white_on_black():
    picture = mask_picture(disk())
    assert picture.mode == "L"
    assert picture.size == (96, 64)
    assert set(np.unique(picture)) == {0, 255}


def test_an_outline_is_drawn_at_the_edge_alone():
    line = np.asarray(outline(disk(), grow=4))
    assert line.shape == (256, 384, 4)
    drawn = line[..., 3] > 0
    assert drawn.any()
    assert not drawn[128, 128], "the middle of the lesion stays free"
    large = np.kron(disk(), np.ones((4, 4), bool))
    rows, columns = np.nonzero(drawn)
    near = [large[max(y - 3, 0) : y + 4, max(x - 3, 0) : x + 4] for y, x in zip(rows, columns, strict=True)]
    assert all(part.any() and not part.all() for part in near)


def test_a_lesion_moves_by_shares_of_the_picture_and_grows_about_its_centre():
    assert (moved(disk(), 0, 0, 1) == disk()).all()
    assert (moved(disk(), 0.25, -0.25, 1) == disk(16, 56)).all()
    grown = moved(disk(), 0, 0, 2)
    assert 3.5 < grown.sum() / disk().sum() < 4.5
    assert np.abs(np.argwhere(grown).mean(axis=0) - (32, 32)).max() < 0.6


def test_what_leaves_the_picture_is_cut_and_an_empty_mask_stays_empty():
    assert 0 < moved(disk(), -0.33, 0, 1).sum() < disk().sum()
    assert not moved(disk(), 2, 0, 1).any()
    assert not moved(np.zeros((8, 8), bool), 0.5, 0, 2).any()


def test_several_structures_are_told_outlined_and_moved_each(tmp_path):
    lobe, nodule = disk(), disk(16, 56)
    sums = (lobe | nodule.astype(np.uint8) << 1).astype(np.uint8)
    sums[:, 31:33] |= 2
    assert described(sums, ("lobe", "nodule")).startswith("Lobe: ")
    assert "Nodule: " in described(sums, ("lobe", "nodule"))
    assert described(sums * 0, ("lobe", "nodule")) == "No lobe or nodule drawn yet."
    colours = {tuple(one) for one in np.asarray(outline(sums)).reshape(-1, 4)}
    assert colours == {(0, 0, 0, 0), (*bytes.fromhex(COLOURS[0][1:]), 255), (*bytes.fromhex(COLOURS[1][1:]), 255)}
    assert set(np.unique(moved(sums, 0.1, 0, 1))) == {0, 1, 2, 3}
    mask_picture(sums, ("lobe", "nodule")).save(tmp_path / "m.png")
    read = union_of_masks(in_channels([tmp_path / "m.png"], (), ("lobe", "nodule")))
    assert (np.asarray(read) == sums).all()
    assert (np.asarray(canvas_picture(sums, 2)) == sums).all()
    assert (np.asarray(canvas_picture(lobe, 1)) == 255 * lobe).all()
