"""Pictures: rounding to 8 bits, PNG text fields, labelled grids."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_us.files.pictures import labelled_grid, save_png, to_picture


def test_pixels_are_rounded_and_not_cut():
    values = torch.tensor([0.0, 0.4999 / 255, 0.5001 / 255, 127.6 / 255, 1.0]).view(1, 1, 5)
    assert np.asarray(to_picture(values)).tolist() == [[0, 0, 1, 128, 255]]


def test_values_outside_0_to_1_are_clamped_and_not_wrapped():
    assert np.asarray(to_picture(torch.tensor([-0.5, 1.5]).view(1, 1, 2))).tolist() == [[0, 255]]


def test_three_channels_become_rgb_with_the_channel_order_kept():
    x = torch.zeros(3, 2, 4)
    x[0] = 1.0
    picture = to_picture(x)
    assert (picture.mode, picture.size) == ("RGB", (4, 2))
    assert picture.getpixel((0, 0)) == (255, 0, 0)


def test_png_fields_come_back_and_pixels_are_exact(tmp_path):
    values = torch.arange(64).view(1, 8, 8) / 255
    save_png(to_picture(values), tmp_path / "a.png", {"prompt": "a breast", "seed": "3"})
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.text == {"prompt": "a breast", "seed": "3"}
        assert np.array_equal(np.asarray(picture), np.arange(64).reshape(8, 8))


def test_a_picture_that_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    save_png(Image.new("L", (4, 4), 7), tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "save", fail_after_some_bytes)
    with pytest.raises(OSError, match="No space"):
        save_png(Image.new("L", (4, 4), 9), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.getpixel((0, 0)) == 7


def fail_after_some_bytes(_self, file, **_options):
    file.write(b"half")
    raise OSError(28, "No space left on device")


def test_a_grid_holds_every_cell_unscaled_in_its_row_and_column():
    rows = [[Image.new("L", (16, 16), 10 * (3 * i + j) + 40) for j in range(3)] for i in range(2)]
    grid = np.asarray(labelled_grid(rows, ["first", "second"], ["a", "b", "c"]))
    corners = {}
    for value in (40, 50, 60, 70, 80, 90):
        ys, xs = np.nonzero(grid == value)
        assert len(ys) >= 256
        block = [
            (y, x)
            for y, x in zip(ys.tolist(), xs.tolist(), strict=True)
            if (grid[y : y + 16, x : x + 16] == value).all() and grid[y : y + 16, x : x + 16].shape == (16, 16)
        ]
        assert len(block) == 1
        corners[value] = block[0]
    assert corners[40][0] == corners[50][0] == corners[60][0] < corners[70][0]
    assert corners[40][1] == corners[70][1] < corners[50][1] < corners[60][1]


def test_a_grid_draws_its_labels_and_leaves_empty_cells_blank():
    cell = Image.new("L", (32, 32), 128)
    with_label = np.asarray(labelled_grid([[cell, None]], ["benign"]))
    without = np.asarray(labelled_grid([[cell, None]], [""]))
    assert (with_label < 100).any()
    assert not (without < 100).any()
    assert (without[:, -32:] == 255).all()
