"""What a mask is: two levels but for soft edges and noise, as seen over black; the rest is refused and says why."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from ldm_us.data.mask_rule import drawn_lesion, looks_inverted
from ldm_us.data.records import union_of_masks

SIZE = (160, 128)


def ellipse(box=(48, 38, 96, 90), value=255):
    """A picture of one lesion."""
    mask = Image.new("L", SIZE)
    ImageDraw.Draw(mask).ellipse(box, fill=value)
    return mask


LESION = np.asarray(ellipse()) > 0


def in_alpha(colour, hidden=None, mode="RGBA"):
    """The lesion in one colour over full transparency, under which lies the colour hidden."""
    picture = Image.new("RGBA", SIZE, (*([hidden if hidden is not None else colour] * 3), 0))
    picture.paste((colour, colour, colour, 255), mask=ellipse())
    return picture.convert(mode)


def lesion_of(picture, path="m.png"):
    return drawn_lesion(picture, path)


def encoded(picture, form, quality):
    buffer = io.BytesIO()
    picture.save(buffer, form, quality=quality)
    return Image.open(buffer)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize(("colour", "hidden"), [(255, 255), (255, 0), (0, 0), (0, 255), (200, 0), (60, 0)])
def test_a_lesion_in_one_colour_over_transparency_is_its_shape_in_alpha(mode, colour, hidden):
    assert (lesion_of(in_alpha(colour, hidden, mode)) == LESION).all()


def test_a_transparent_colour_of_a_palette_or_of_grey_is_no_lesion(tmp_path):
    palette = ellipse().convert("P")
    palette.putpalette([255, 255, 255] * 255 + [255, 255, 255])  # white in white, one of them transparent
    palette.save(tmp_path / "p.png", transparency=0)
    ellipse(value=255).point(lambda v: 255 if v else 254).save(tmp_path / "l.png", transparency=254)
    for name in ("p.png", "l.png"):
        assert ((np.asarray(union_of_masks([tmp_path / name])) > 0) == LESION).all()


def test_two_levels_within_a_transparent_frame_are_read_over_black():
    picture = ellipse().convert("RGBA")
    picture.paste((255, 255, 255, 0), (0, 0, 160, 20))
    assert (lesion_of(picture) == LESION).all()


@pytest.mark.parametrize("alpha", [0, 90, 255])
def test_a_constant_alpha_says_nothing(alpha):
    picture = ellipse().convert("RGBA")
    picture.putalpha(alpha)
    assert (lesion_of(picture) == LESION).all()


@pytest.mark.parametrize("colour", ["red", "white", "black", (60, 60, 60)])
@pytest.mark.parametrize("opaque", [30, 100, 127, 200])
def test_a_shape_that_is_half_transparent_is_lesion_where_it_is_drawn(colour, opaque):
    """An overlay of an annotator: one colour of one alpha over full transparency."""
    picture = Image.new("RGB", SIZE, colour)
    picture.putalpha(ellipse(value=opaque))
    assert (lesion_of(picture) == LESION).all()


def test_shapes_of_several_alphas_are_more_than_two_levels():
    picture = Image.new("RGB", SIZE, "red")
    picture.putalpha(two(50, 100))
    with pytest.raises(ValueError, match=r"too dark to count|more than two levels"):
        lesion_of(picture)


def test_colours_and_alpha_that_tell_two_shapes_are_refused():
    picture = ellipse().convert("RGBA")
    picture.putalpha(ellipse((100, 30, 140, 80)))
    with pytest.raises(ValueError, match=r"m\.png has one shape in its colours and another one in its transparency"):
        lesion_of(picture)
    hole = Image.new("RGBA", SIZE, (0, 0, 0, 255))  # black all around a hole
    hole.paste((255, 255, 255, 0), mask=ellipse())
    with pytest.raises(ValueError, match=r"m\.png is dark where it is opaque.*binarize"):
        lesion_of(hole)


def classes(inner=255, outer=85):
    mask = ellipse(value=outer)
    ImageDraw.Draw(mask).ellipse((60, 50, 85, 75), fill=inner)
    return mask


def bordered(value=1):
    mask = ellipse(value=value)
    ImageDraw.Draw(mask).ellipse((48, 38, 96, 90), outline=255)
    return mask


def two(one=100, other=200, box=(20, 30, 60, 90)):
    mask = ellipse(box, one)
    ImageDraw.Draw(mask).ellipse((90, 30, 120, 90), fill=other)
    return mask


def voc():
    mask = Image.new("P", SIZE)
    mask.putpalette([0, 0, 0, 128, 0, 0, *[0] * 18, 64, 0, 0])
    mask.paste(1, (20, 20, 40, 40))
    mask.paste(8, (60, 20, 140, 100))
    return mask


def photograph():
    noise = Image.fromarray(np.random.default_rng(7).integers(0, 256, (128, 160), dtype=np.uint8))
    pixels = np.asarray(noise.filter(ImageFilter.GaussianBlur(2)), float)
    return Image.fromarray(((pixels - pixels.mean()) / pixels.std() * 30 + 100).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("picture", "sentence"),
    [
        (classes(), r"more than two levels \(levels such as 0, 85, 255\)"),
        (encoded(classes(), "JPEG", 75), "more than two levels"),
        (classes(255, 170), "more than two levels"),
        (bordered(), r"more than two levels \(levels such as 0, 1, 255\)"),
        (two(), r"levels such as 0, 100, 200"),
        (two(100, 255, (20, 30, 22, 32)), "too dark to count"),  # three pixels wide: no area of its own
        (voc(), r"more than two levels \(levels such as 0, 64, 128"),
        (photograph(), "has many greys .*photograph"),
        (ellipse(value=1), "brightest pixel is 1 and only pixels above 127 count"),
    ],
    ids=["classes", "jpeg", "both bright", "border", "two greys", "small", "voc", "photograph", "numbers"],
)
def test_what_has_other_than_two_levels_is_refused_with_its_levels_and_the_way_round(picture, sentence):
    with pytest.raises(ValueError, match=rf"m\.png .*{sentence}") as error:
        lesion_of(picture)
    assert ("python -m ldm_us.data binarize --lesion LEVELS" in str(error.value)) == ("photograph" not in sentence)


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
@pytest.mark.parametrize("quality", [95, 75, 50])
def test_the_noise_of_compression_is_no_level(form, quality):
    for lesion in (ellipse(), ellipse((20, 20, 24, 25)), two(255, 255)):
        read = lesion_of(encoded(lesion, form, quality))
        assert np.mean(read != (np.asarray(lesion) > 0)) < 0.001


@pytest.mark.parametrize("resampling", [Image.Resampling.BILINEAR, Image.Resampling.LANCZOS])
@pytest.mark.parametrize("factor", [0.6, 1.7, 4])
def test_soft_edges_are_no_level(resampling, factor):
    small = two(255, 255).resize((int(160 * factor), int(128 * factor)), resampling)
    for soft in (small, small.filter(ImageFilter.GaussianBlur(1))):
        assert (lesion_of(soft) == (np.asarray(soft) > 127)).all()


def test_pure_colours_count_as_white_does():
    for colour in ("red", "lime", "blue", "yellow"):
        picture = Image.new("RGB", SIZE)
        picture.paste(colour, mask=ellipse())
        assert (lesion_of(picture) == LESION).all()


def test_a_lesion_in_another_grey_than_white_and_a_background_that_is_not_black_are_two_levels():
    for background, value in ((0, 200), (30, 160), (100, 255)):
        assert (lesion_of(ellipse().point(lambda v, b=background, w=value: w if v else b)) == LESION).all()


def test_a_mask_looks_inverted_where_most_of_it_and_all_its_corners_are_white():
    assert looks_inverted(~LESION)
    assert looks_inverted(Image.fromarray(~LESION))
    corner = ~LESION
    corner[0, -1] = False
    assert not looks_inverted(corner)
    assert not looks_inverted(LESION)
