"""Sizes and framings: buckets of a model, the nearest of them, and images that stay on their masks."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ldm_us.config import ASPECTS, PRESETS
from ldm_us.data.audit.summary import cut_off_notes
from ldm_us.data.decoded import Decoded
from ldm_us.data.framing import (
    KEPT,
    LEAST_AREA,
    LONGEST,
    MOST_STRETCH,
    Frame,
    Framing,
    as_frame,
    bucket_sizes,
    fit_by,
    parse_size,
    stretch,
)
from ldm_us.data.records import Record, image_tensor, mask_tensor
from ldm_us.data.regions import height_over_width, resize_mask, share_cut_off

sides = st.integers(8, 700)
models = st.tuples(st.integers(1, 12), st.sampled_from([4, 8, 16, 64])).map(lambda pair: (pair[0] * pair[1], pair[1]))


@given(models)
@settings(deadline=None)
def test_buckets_are_multiples_no_larger_than_the_square_and_lie_and_stand_alike(model):
    side, multiple = model
    sizes = bucket_sizes(side, multiple)
    assert (side, side) in sizes
    assert set(sizes) == {(width, height) for height, width in sizes}
    for height, width in sizes:
        assert height % multiple == width % multiple == 0
        assert LEAST_AREA * side**2 <= height * width <= side**2
        assert max(height, width) <= LONGEST * min(height, width)
    aspects = [height / width for height, width in sizes]
    assert aspects == sorted(set(aspects)), "one size of each aspect"


@pytest.mark.parametrize("preset", ["sd15", "us128"])
def test_the_buckets_of_the_presets_bridge_every_aspect_from_1_to_2_up_to_2_to_1(preset):
    config = PRESETS[preset]
    framing = Framing(config.image_size, "bucket", config.size_multiple)
    assert len(framing.sizes) == 11
    for ratio in np.geomspace(0.5, 2, 101):
        frame = framing.frame(1000, round(1000 * ratio))
        assert frame.fit == "squash"
        assert stretch(round(1000 * ratio), 1000, frame.size) <= MOST_STRETCH


@given(models, sides, sides)
@settings(deadline=None)
def test_a_picture_goes_into_the_nearest_bucket_and_is_never_stretched_far(model, height, width):
    framing = Framing(model[0], "bucket", model[1])
    frame = framing.frame(width, height)
    distance = abs(math.log(height / width) - math.log(frame.height / frame.width))
    for h, w in framing.sizes:
        assert distance <= abs(math.log(height / width) - math.log(h / w)) + 1e-6
    assert (frame.fit == "letterbox") == (math.exp(distance) > MOST_STRETCH + 1e-12)


@given(models, st.integers(1, 700), st.sampled_from(["bucket", "squash", "letterbox", "crop"]))
@settings(deadline=None)
def test_a_square_picture_becomes_the_square_to_the_bit_whatever_the_rule(model, side, rule):
    grey = np.random.default_rng(0).integers(0, 256, (min(side, 40),) * 2, dtype=np.uint8)
    picture, target = Image.fromarray(grey), min(model[0], 64)
    frame = Framing(target, rule, min(model[1], target)).frame(*picture.size)
    assert frame.size == (target, target)
    plain = picture.resize((target, target), Image.Resampling.BICUBIC)
    assert np.array_equal(
        image_tensor(picture, frame)[0].numpy(), np.asarray(plain, np.float32) / np.float32(127.5) - 1
    )
    assert np.array_equal(resize_mask(grey > 200, frame), resize_mask(grey > 200, target))


@given(st.integers(20, 120), st.integers(20, 120), st.sampled_from(ASPECTS), st.randoms())
@settings(deadline=None, max_examples=60)
def test_image_and_mask_stay_on_each_other_by_every_rule(height, width, rule, random):
    """An image that is its own mask is white where the mask is."""
    top, left = random.randrange(height - 12), random.randrange(width - 12)
    drawn = np.zeros((height, width), np.uint8)
    drawn[top : random.randrange(top + 10, height), left : random.randrange(left + 10, width)] = 255
    picture = Image.fromarray(drawn)
    frame = Framing(64, rule, 8).frame(width, height)
    x, mask = image_tensor(picture, frame)[0].numpy(), mask_tensor(picture, frame, keep_small=False)[0].numpy() > 0
    assert x.shape == mask.shape == frame.size
    edges = np.abs(np.diff(mask.astype(int), axis=0)).sum() + np.abs(np.diff(mask.astype(int), axis=1)).sum()
    assert ((x > 0) != mask).sum() <= edges, "they differ along the outline at most"


def test_letterboxing_keeps_the_shape_and_bars_are_black_and_empty():
    picture = Image.fromarray(np.full((50, 100), 255, np.uint8))
    frame = Framing(64, "letterbox").frame(*picture.size)
    x, mask = image_tensor(picture, frame)[0].numpy(), mask_tensor(picture, frame)[0].numpy()
    for values, outside in ((x, -1), (mask, 0)):
        assert (values[:16] == outside).all()
        assert (values[48:] == outside).all()
        assert (values[16:48] == 1).all()


def test_cropping_shows_the_middle_and_tells_what_it_cuts_off():
    drawn = np.zeros((50, 100), bool)
    drawn[20:30, 20:30] = True  # columns 25 to 75 are shown
    frame = Framing(50, "crop").frame(100, 50)
    assert resize_mask(drawn, frame).sum() == 50
    assert share_cut_off(drawn, frame) == 0.5
    drawn[:, 25:] = False
    assert share_cut_off(drawn, frame) == 1
    assert not resize_mask(drawn, frame).any(), "a lesion outside is no lesion smaller than a pixel"
    assert share_cut_off(drawn, Frame(50, 50)) == 0


def save_record(folder, name, column):
    drawn = np.zeros((50, 100), np.uint8)
    drawn[20:30, column : column + 10] = 255
    Image.fromarray(drawn).save(folder / f"{name}.png")
    path = folder / f"{name}.png"
    return Record(path, (path,), "benign", "", name)


def test_lesions_that_a_crop_cuts_are_named_and_more_than_a_few_are_refused(tmp_path):
    records = [save_record(tmp_path, f"{i:02}", 45) for i in range(30)]
    decoded = Decoded(None, Framing(50, "crop"))
    assert cut_off_notes(records, decoded) == []
    records.append(save_record(tmp_path, "out", 20))
    (note,) = cut_off_notes(records, decoded)
    assert "cuts a part of the lesions off in 1: out.png of 31 images" in note
    records = [save_record(tmp_path, f"{i:02}", 20) for i in range(3)]
    with pytest.raises(ValueError, match="Use --aspect bucket"):
        cut_off_notes(records, Decoded(None, Framing(50, "crop")))


@given(st.integers(10, 2000), st.integers(10, 2000))
def test_an_evaluation_keeps_the_aspect_to_the_pixel_at_one_area(height, width):
    frame = Framing(128, KEPT).frame(width, height)
    assert frame.fit == "squash"
    if max(height, width) <= 4 * min(height, width):
        assert stretch(height, width, frame.size) < 1.02
        assert frame.height * frame.width == pytest.approx(128**2, rel=0.02)


def test_a_rule_for_a_size_that_was_asked_for_puts_bars_where_a_bucket_would_stretch_too_far():
    assert fit_by("bucket", (448, 640), 640, 448) == Frame(448, 640)
    assert fit_by("bucket", 512, 640, 448) == Frame(512, 512, "letterbox")
    assert fit_by("squash", 512, 640, 448) == Frame(512, 512)


@pytest.mark.parametrize(
    ("text", "size"), [("512", 512), ("512x512", 512), ("640x448", (448, 640)), ("640X448", (448, 640))]
)
def test_a_size_is_written_width_first(text, size):
    assert parse_size(text) == size
    assert str(as_frame(size)) == (text.lower() if "x" in text.lower() else "512x512")


@pytest.mark.parametrize("text", ["", "x", "640x", "x448", "1x2x3", "-5", "6.5", "640*448", "\u0663"])
def test_what_is_no_size_is_one_sentence(text):
    with pytest.raises(ValueError, match=re.escape("WIDTHxHEIGHT, such as 640x448.")):
        parse_size(text)


def test_the_shape_of_a_lesion_is_that_of_its_largest_region():
    mask = np.zeros((40, 40), bool)
    mask[5:25, 5:15] = True
    mask[30:32, 0:39] = True
    assert height_over_width(mask) == 2.0
    assert math.isnan(height_over_width(np.zeros((4, 4), bool)))
