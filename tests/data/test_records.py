"""Records: files become tensors in the stated ranges, whatever their mode, and bad files become one clear sentence."""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from ldm_us.data.opening import IMAGE_SUFFIXES, open_image
from ldm_us.data.organ import BREAST
from ldm_us.data.records import Record, load_image, load_mask, load_pair, union_of_masks


def save(path: Path, pixels: np.ndarray | list, mode: str = "L") -> Path:
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).convert(mode).save(path)
    return path


def record(image: Path, *masks: Path) -> Record:
    return Record(image, masks, "benign", BREAST.prompt("benign"), "g")


def test_the_class_prompt_is_the_papers():
    assert BREAST.prompt("malignant") == "Ultrasound image of a malignant breast"


def test_black_is_minus_one_and_white_is_one_in_three_equal_channels(tmp_path):
    x = load_image(save(tmp_path / "a.png", [[0, 255]]), 2)
    assert x.shape == (3, 2, 2)
    assert x.dtype == torch.float32
    assert x[:, :, 0].unique().tolist() == [-1]
    assert x[:, :, 1].unique().tolist() == [1]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_a_grey_image_gives_the_same_tensor_in_every_mode(tmp_path, mode):
    pixels = np.arange(64).reshape(8, 8) * 4
    grey = load_image(save(tmp_path / "grey.png", pixels), 8)
    assert torch.equal(load_image(save(tmp_path / "other.png", pixels, mode), 8), grey)


def test_a_coloured_mark_becomes_grey_in_all_channels(tmp_path):
    pixels = np.full((8, 8, 3), 80)
    pixels[2, 2] = (255, 255, 0)
    x = load_image(save(tmp_path / "marked.png", pixels, "RGB"), 8)
    assert torch.equal(x[0], x[1])
    assert torch.equal(x[0], x[2])
    assert x[0, 2, 2] == pytest.approx(0.299 * 2 + 0.587 * 2 - 1, abs=0.01)  # luma of yellow (Rec. 601)


@pytest.mark.parametrize("shape", [(20, 60), (60, 20), (5, 7)])
def test_the_whole_image_is_resized_so_marks_at_all_four_corners_stay(tmp_path, shape):
    pixels = np.zeros(shape)
    for rows in (slice(0, 2), slice(-2, None)):
        for columns in (slice(0, 2), slice(-2, None)):
            pixels[rows, columns] = 255
    x = load_image(save(tmp_path / "a.png", pixels), 32)
    assert x.shape == (3, 32, 32)
    assert all(x[0, i, j] > 0 for i in (0, -1) for j in (0, -1))
    assert x.min() >= -1
    assert x.max() <= 1


def test_masks_are_ored_together(tmp_path):
    masks = np.zeros((3, 4, 4))
    masks[0, 0, 0] = masks[1, 1, 1] = masks[2, 3, 0] = masks[2, 0, 0] = 255
    paths = [save(tmp_path / f"m{i}.png", mask, "1") for i, mask in enumerate(masks)]
    assert torch.equal(load_mask(paths, 4)[0], torch.from_numpy(masks.max(axis=0) / 255).float())
    assert load_mask(paths[:2], 4).sum() == 2


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P"])
def test_a_mask_reads_the_same_in_every_mode(tmp_path, mode):
    pixels = np.zeros((6, 6))
    pixels[1:3, 2:5] = 255
    hint = load_mask([save(tmp_path / "m.png", pixels, mode)], 6)
    assert hint.shape == (1, 6, 6)
    assert hint.dtype == torch.float32
    assert torch.equal(hint[0], torch.from_numpy(pixels / 255).float())


def test_the_mask_threshold_lies_between_127_and_128(tmp_path):
    pixels = np.zeros((40, 40))
    pixels[10:30, 11:30] = 255
    pixels[10:30, 10], pixels[10:30, 30] = 127, 128  # soft edges
    hint = load_mask([save(tmp_path / "m.png", pixels)], 40)[0]
    assert hint[20].nonzero().flatten().tolist() == list(range(11, 31))


def test_a_resized_mask_still_holds_only_zeros_and_ones(tmp_path):
    rows, columns = np.mgrid[:37, :53]
    disc = ((rows - 18) ** 2 + (columns - 26) ** 2 < 150) * 255
    hint = load_mask([save(tmp_path / "m.png", disc)], 20)
    assert hint.unique().tolist() == [0, 1]
    assert hint.mean() == pytest.approx((disc > 0).mean(), abs=0.03)


def test_a_mask_is_resized_by_its_nearest_pixel_and_not_by_a_vote(tmp_path):
    pixels = np.zeros((4, 4))
    pixels[1, 1] = 255  # one of the four pixels that become (0, 0), and the one that stands for them
    assert load_mask([save(tmp_path / "m.png", pixels)], 2).flatten().tolist() == [1, 0, 0, 0]


def test_no_mask_file_means_all_zeros():
    assert torch.equal(load_mask([], 5), torch.zeros(1, 5, 5))


def test_an_all_zero_rgb_mask_means_all_zeros(tmp_path):
    assert torch.equal(load_mask([save(tmp_path / "m.png", np.zeros((4, 6)), "RGB")], 5), torch.zeros(1, 5, 5))


def test_a_mask_of_zeros_and_ones_is_refused_and_not_read_as_empty(tmp_path):
    with pytest.raises(ValueError, match=r"m\.png .*brightest pixel is 1 .*white \(255\)"):
        load_mask([save(tmp_path / "m.png", [[0, 1]])], 4)


def test_image_and_mask_flip_together(tmp_path):
    pixels = np.zeros((8, 8))
    pixels[2, 1] = 255
    one = record(save(tmp_path / "a.png", pixels), save(tmp_path / "m.png", pixels))
    x, hint = load_pair(one, 8)
    x_flipped, hint_flipped = load_pair(one, 8, flip=True)
    assert (x[0] > 0).nonzero().tolist() == hint[0].nonzero().tolist() == [[2, 1]]
    assert (x_flipped[0] > 0).nonzero().tolist() == hint_flipped[0].nonzero().tolist() == [[2, 6]]


def test_a_pair_is_the_image_and_the_mask_loaded_alone(tmp_path):
    pixels = np.arange(48).reshape(6, 8) * 5
    image, mask = save(tmp_path / "a.png", pixels), save(tmp_path / "m.png", (pixels > 90) * 255, "1")
    x, hint = load_pair(record(image, mask), 16)
    assert torch.equal(x, load_image(image, 16))
    assert torch.equal(hint, load_mask([mask], 16))
    assert 0 < hint.mean() < 1


def test_a_pair_without_masks_has_an_empty_hint(tmp_path):
    _, hint = load_pair(record(save(tmp_path / "a.png", np.ones((4, 4)))), 8)
    assert torch.equal(hint, torch.zeros(1, 8, 8))


def test_a_mask_of_another_size_than_its_image_is_an_error_with_both_names_and_sizes(tmp_path):
    one = record(save(tmp_path / "a.png", np.zeros((6, 8))), save(tmp_path / "m.png", np.zeros((8, 6))))
    with pytest.raises(ValueError, match=r"m\.png is 6x8, but its image .*a\.png is 8x6\. Replace"):
        load_pair(one, 8)


def test_masks_of_different_sizes_are_an_error_with_both_names_and_sizes(tmp_path):
    paths = [save(tmp_path / "m.png", np.zeros((4, 4))), save(tmp_path / "m_1.png", np.zeros((4, 5)))]
    with pytest.raises(ValueError, match=r"m_1\.png is 5x4, but .*m\.png is 4x4"):
        load_mask(paths, 8)


def test_brackets_spaces_and_accents_in_paths_are_fine(tmp_path):
    folder = tmp_path / "bad [name] *"
    folder.mkdir()
    assert load_image(save(folder / "benign (1) \u00e9.png", [[7]]), 4).shape == (3, 4, 4)


def png_bytes(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


NOISE = png_bytes(np.random.default_rng(0).integers(0, 256, (40, 40)))
ZERO_WIDTH = struct.pack(">IIBBBBB", 0, 40, 8, 0, 0, 0, 0)
ZERO_WIDTH_PNG = NOISE[:16] + ZERO_WIDTH + struct.pack(">I", zlib.crc32(b"IHDR" + ZERO_WIDTH)) + NOISE[33:]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (NOISE[: len(NOISE) // 2], "is damaged and does not decode"),
        (b"patient notes, not an image", "is not an image"),
        (b"", "is an empty file"),
        (ZERO_WIDTH_PNG, "is not an image"),
    ],
    ids=["truncated", "text", "no bytes", "zero width"],
)
def test_a_file_that_does_not_decode_is_named_with_its_problem_and_what_to_do(tmp_path, content, problem):
    path = tmp_path / "benign (1).png"
    path.write_bytes(content)
    for load in (lambda: load_image(path, 8), lambda: load_mask([path], 8)):
        with pytest.raises(ValueError, match=problem) as error:
            load()
        assert str(path) in str(error.value)
        assert "Copy it again" in str(error.value) or "Replace or remove it" in str(error.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.png does not exist"):
        load_image(tmp_path / "none.png", 8)
    with pytest.raises(ValueError, match=r"is a folder|permission denied"):  # Windows reports a folder as the latter
        load_mask([tmp_path], 8)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "big.png", np.zeros((20, 20)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"big\.png is too large to decode safely"):
        load_image(path, 8)


def test_sixteen_bit_pixels_are_refused_and_not_clipped(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16)).save(path)
    with pytest.raises(ValueError, match="8 bits a pixel"):
        load_image(path, 4)


def shown(path: Path) -> np.ndarray:
    """What a viewer shows of a file: Pillow's own turn. From memory, for by its name it garbles a turned raw TIFF."""
    with Image.open(io.BytesIO(path.read_bytes())) as picture:
        return np.asarray(ImageOps.exif_transpose(picture).convert("L"))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_images_and_masks_are_turned_as_their_exif_orientation_says(tmp_path, turn, suffix):
    pixels = np.zeros((24, 32), np.uint8)
    pixels[8:16, 8:24] = 255
    pixels[:8, :8] = 255  # tells all eight orientations apart
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif, quality=100)
    seen = shown(path)
    assert seen.shape == ((24, 32) if turn < 5 else (32, 24))
    assert (seen[:8, :8] > 127).all() == (turn in (1, 5))
    assert (np.asarray(open_image(path).convert("L")) == seen).all()
    assert ((np.asarray(union_of_masks([path])) > 0) == (seen > 127)).all()


def test_a_turned_image_and_a_mask_drawn_on_what_is_shown_fit_each_other(tmp_path):
    pixels = np.full((24, 32), 200, np.uint8)
    pixels[2:8, 3:14] = 0
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=100)
    mask = save(tmp_path / "m.png", (shown(tmp_path / "a.jpg") < 100) * 255)
    x, hint = load_pair(record(tmp_path / "a.jpg", mask), 32)
    assert hint.sum() > 20
    assert x[:1][hint > 0].mean() < -0.9


def test_an_exif_block_that_cannot_be_read_turns_nothing(tmp_path):
    pixels = np.tile(np.uint8([[0, 255]]), (4, 2))
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=b"Exif\0\0no TIFF header in here")
    assert (np.asarray(open_image(tmp_path / "a.png")) == pixels).all()


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp", "png"])
def test_a_file_of_several_pages_or_frames_is_refused_with_their_number(tmp_path, suffix):
    frames = [Image.new("L", (8, 8), value) for value in (0, 90, 255)]
    frames[0].save(tmp_path / f"one.{suffix}")
    frames[0].save(tmp_path / f"many.{suffix}", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / f"one.{suffix}").size == (8, 8)
    for read in (open_image, lambda path: union_of_masks([path])):
        with pytest.raises(ValueError, match=rf"many\.{suffix} holds 3 pages or frames"):
            read(tmp_path / f"many.{suffix}")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_that_a_file_can_have_and_pillow_turns_grey_is_read(tmp_path, mode):
    picture = Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
    picture.save(path := tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png"))
    assert load_image(path, 4).min() > 0.98


@pytest.mark.parametrize("mode", ["LAB", "I", "I;16", "F"])
def test_every_other_mode_is_refused_by_name(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=rf"a\.tif has mode {mode}.*8-bit grey or RGB"):
        open_image(tmp_path / "a.tif")


def test_a_tiff_without_a_width_is_refused_in_one_sentence(tmp_path):
    Image.new("L", (8, 8)).save(path := tmp_path / "a.tif")
    content = bytearray(path.read_bytes())
    width = content.index(struct.pack("<H", 256), 8)  # the tag of the width
    content[width : width + 2] = struct.pack("<H", 255)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tif"):
        open_image(path)


def test_a_tiff_whose_second_page_has_no_size_is_refused_in_one_sentence(tmp_path):
    Image.new("L", (8, 8)).save(path := tmp_path / "a.tif", save_all=True, append_images=[Image.new("L", (8, 8))])
    content = bytearray(path.read_bytes())
    width = content.rindex(struct.pack("<HH", 256, 4) + struct.pack("<II", 1, 8))
    content[width : width + 2] = struct.pack("<H", 255)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tif is damaged"):
        open_image(path)


def test_an_image_with_transparency_is_taken_where_it_shows_the_same_over_black_and_refused_elsewhere(tmp_path):
    pixels = np.full((8, 8, 4), 255, np.uint8)
    pixels[..., :3] = 80
    pixels[:2] = 0  # the corner of a screenshot: black and transparent
    Image.fromarray(pixels).save(tmp_path / "black.png")
    assert load_image(tmp_path / "black.png", 8)[0, 0, 0] == -1
    pixels[0, 0, :3] = 90
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    with pytest.raises(ValueError, match=r"grey\.png is partly transparent"):
        open_image(tmp_path / "grey.png")
    pixels[..., 3] = 128  # the same everywhere: it says nothing
    Image.fromarray(pixels).save(tmp_path / "constant.png")
    assert load_image(tmp_path / "constant.png", 8)[0, 4, 4] == pytest.approx(80 / 127.5 - 1)


def test_folders_are_searched_for_suffixes_that_pillow_knows():
    Image.init()
    assert set(IMAGE_SUFFIXES) <= set(Image.registered_extensions())


@pytest.mark.parametrize("size", [0, -4])
def test_a_size_below_one_pixel_is_refused(tmp_path, size):
    with pytest.raises(ValueError, match=f"Image size {size}"):
        load_mask([], size)


CHANGES = st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=5)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, len(NOISE)), CHANGES)
def test_a_damaged_file_opens_or_raises_value_error_and_nothing_else(tmp_path, length, changes):
    content = bytearray(NOISE)
    for place, value in changes:
        content[place] = value
    path = tmp_path / "damaged.png"
    path.write_bytes(content[:length])
    with contextlib.suppress(ValueError):
        assert min(open_image(path).size) > 0
