"""Near-duplicates: the same picture is found whatever was done to it, others are not, and groups are joined by it."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from ldm_us.data import altered_copies, near_duplicates
from ldm_us.data.altered_copies import (
    AS_IT_IS,
    COARSE,
    COARSE_BLUR,
    LIKELY,
    LIKELY_AS_IT_IS,
    WAYS,
    Way,
    bounding,
    coarse,
    likely_pairs,
    unit,
    warp,
)
from ldm_us.data.near_duplicates import THRESHOLD, correlated_pairs, detail, families, join, merge_families, windows
from ldm_us.data.records import Record
from ldm_us.data.split import split_by_group


def speckle(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A picture of random blobs on a brightness that falls with depth, as all ultrasound images have it."""
    generator = np.random.default_rng(seed)
    blobs = Image.fromarray(generator.integers(0, 256, (30, 40), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fall = np.linspace(1, 0.2, size[1])[:, None]
    return Image.fromarray((np.asarray(blobs, np.float64) * fall).astype(np.uint8))


def record(path: Path, picture: Image.Image, group: str, label: str = "benign") -> Record:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return Record(path, (), label, "", group)


def correlation_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    """The largest Pearson correlation of the overlap over all shifts of -2..2, in float64 loops."""
    best = -1.0
    h, w = a.shape
    for down, across in itertools.product(range(-2, 3), repeat=2):
        x = a[max(0, down) : h + min(0, down), max(0, across) : w + min(0, across)]
        y = b[max(0, -down) : h + min(0, -down), max(0, -across) : w + min(0, -across)]
        best = max(best, float(np.corrcoef(x.ravel(), y.ravel())[0, 1]))
    return best


@pytest.mark.parametrize("block", [2, 7, 512])
def test_pairs_are_those_whose_largest_correlation_over_25_shifts_exceeds_the_threshold(monkeypatch, block):
    """Whatever the size of the blocks; images are mixtures, so that correlations lie on both sides of 0.5."""
    monkeypatch.setattr(near_duplicates, "BLOCK", block)
    generator = np.random.default_rng(0)
    base = generator.normal(size=(20, 20))
    images = []
    for i in range(7):
        moved = np.roll(base, (i % 4 - 1, 2 - i % 5), axis=(0, 1))
        images.append(moved + generator.normal(size=base.shape) * (0.3 + 0.2 * i))
    images += [generator.normal(size=base.shape) for _ in range(3)]
    expected = {
        (i, j): correlation_by_hand(images[i], images[j]) for i, j in itertools.combinations(range(len(images)), 2)
    }
    assert min(abs(value - 0.5) for value in expected.values()) > 1e-3, "no pair on the edge, where rounding decides"
    found = correlated_pairs(torch.tensor(np.stack(images), dtype=torch.float32), list(expected))
    assert found == [pair for pair, value in expected.items() if value > 0.5]
    assert 3 < len(found) < 40


def crop(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """Cut shares of the width and height off."""
    w, h = image.size
    return image.crop((round(w * left), round(h * top), round(w * (1 - right)), round(h * (1 - bottom))))


def shrunk(image: Image.Image) -> Image.Image:
    """Zoom out to 0.9, with black around."""
    small = Image.new(image.mode, image.size)
    small.paste(image.resize((round(image.width * 0.9), round(image.height * 0.9))), (8, 6))
    return small


CHANGES = {
    "the same file": lambda image: image,
    "half the size": lambda image: image.resize((80, 60), Image.Resampling.LANCZOS),
    "another mode": lambda image: image.convert("RGB"),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.5),
    "a little shifted": lambda image: image.transform(image.size, Image.Transform.AFFINE, (1, 0, 3, 0, 1, 2)),
    "a caliper drawn": lambda image: caliper(image),
    "brighter, cut at white": lambda image: image.point(lambda v: min(255, round(1.3 * v))),
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "half a turn": lambda image: image.rotate(180),
    "a quarter turn": lambda image: image.rotate(90, expand=True),
    "a quarter turn back": lambda image: image.rotate(-90, expand=True),
    "transposed": lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    "transversed": lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    "turned by 3 degrees": lambda image: image.rotate(3, Image.Resampling.BICUBIC),
    "turned by 10 degrees": lambda image: image.rotate(-10, Image.Resampling.BICUBIC),
    "zoomed by 0.9": shrunk,
    "cropped by 6 % at every edge": lambda image: crop(image, 0.06, 0.06, 0.06, 0.06),
    "cropped by 4 % at two edges": lambda image: crop(image, 0.04, 0, 0, 0.04),
    "cropped by 6 % at the bottom": lambda image: crop(image, 0, 0, 0, 0.06),
    "mirrored and turned": lambda image: ImageOps.mirror(image).rotate(4, Image.Resampling.BICUBIC),
    "mirrored and cropped": lambda image: ImageOps.mirror(crop(image, 0.05, 0.05, 0.05, 0.05)),
}


def caliper(image: Image.Image) -> Image.Image:
    image = image.convert("RGB")
    image.paste((255, 255, 0), (60, 40, 100, 42))
    return image


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_copy_is_found_whichever_of_the_two_came_first_and_an_image_of_another_breast_is_not(
    tmp_path, change
):
    records = [
        record(tmp_path / "a.png", speckle(1), "p1"),
        record(tmp_path / "b.png", speckle(2), "p2"),
        record(tmp_path / "c.png", change(speckle(1)), "p3"),
        record(tmp_path / "d.png", change(speckle(3)), "p4"),
        record(tmp_path / "e.png", speckle(3), "p5"),
    ]
    assert [r.group for r in merge_families(records)] == ["p1", "p2", "p1", "p4", "p4"]


def test_two_images_of_busis_list_are_compared_unaltered_alone_so_that_old_splits_stay(tmp_path):
    pictures = {"benign (4)": speckle(1), "benign (6)": ImageOps.mirror(speckle(1)), "benign (9001)": speckle(1)}
    records = [record(tmp_path / f"{name}.png", one, f"busi:{name}") for name, one in pictures.items()]
    assert [r.group for r in merge_families(records[:2])] == ["busi:benign (4)", "busi:benign (6)"]
    assert len({r.group for r in merge_families(records)}) == 1, "the third is not in the list"


def test_an_image_moved_far_is_another_image(tmp_path):
    far = speckle(1).transform((160, 120), Image.Transform.AFFINE, (1, 0, 30, 0, 1, 0))
    records = [record(tmp_path / f"{i}.png", picture, f"p{i}") for i, picture in enumerate((speckle(1), far))]
    assert merge_families(records) == records


@pytest.mark.parametrize("size", [(160, 120), (16, 16)])
def test_forty_different_images_have_no_copy_among_them_however_they_are_altered(tmp_path, size):
    records = [record(tmp_path / f"{i}.png", speckle(i, size), f"p{i}") for i in range(40)]
    assert merge_families(records) == records


def test_altering_an_image_is_what_pillow_does_to_it():
    """Each symmetry, and a turn in an image whose pixels are not square; the corners of the turn are black."""
    picture = speckle(5, (96, 96))
    transposes = [None, 0, 1, 3, 5, 2, 6]  # Pillow's numbers, in the order of EIGHT: 2 is a quarter turn
    for symmetry, number in enumerate(transposes):
        expected = picture if number is None else picture.transpose(Image.Transpose(number))
        cut = warp(as_tensor(picture), torch.ones(1), Way(symmetry), 96)
        torch.testing.assert_close(cut, as_tensor(expected)[:, 8:-8, 8:-8], atol=0.1, rtol=0)
    wide = picture.resize((192, 96), Image.Resampling.BICUBIC).rotate(10, Image.Resampling.BICUBIC).resize((96, 96))
    cut = warp(as_tensor(picture), torch.full((1,), 2.0), Way(0, 1.0, 1.0, 10), 96)
    assert np.corrcoef(cut.flatten(), as_tensor(wide)[:, 8:-8, 8:-8].flatten())[0, 1] > 0.99


def as_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture, np.float32))[None]


def test_flat_images_show_nothing_and_are_near_duplicates_of_nothing(tmp_path):
    records = [record(tmp_path / f"{i}.png", Image.new("L", (50, 50), 80), f"p{i}") for i in range(3)]
    assert merge_families(records) == records
    assert not windows(torch.zeros(1, 8, 8), 1, 1).any()


def test_groups_are_joined_across_datasets_and_bring_all_their_images(tmp_path):
    """A patient with images 1 and 2 and a case with 3 and a copy of 2 become one group; nobody else does."""
    records = [
        record(tmp_path / "1.png", speckle(1), "bus-bra:7"),
        record(tmp_path / "2.png", speckle(2), "bus-bra:7"),
        record(tmp_path / "3.png", speckle(3), "breast:9"),
        record(tmp_path / "4.png", speckle(2), "breast:9"),
        record(tmp_path / "5.png", speckle(5), "busi:benign (1)"),
    ]
    merged = merge_families(records)
    assert [r.group for r in merged] == ["breast:9"] * 4 + ["busi:benign (1)"]
    assert [r.image for r in merged] == [r.image for r in records]


def test_the_order_of_the_records_changes_no_group(tmp_path):
    records = [record(tmp_path / f"{i}.png", speckle(i % 4), f"p{i}") for i in range(8)]
    expected = merge_families(records)
    assert merge_families(records[::-1]) == expected[::-1]
    assert merge_families(merge_families(records)) == expected


def test_phantoms_are_not_compared_nor_even_opened(tmp_path):
    records = [Record(tmp_path / f"gone {i}.png", (), "benign", "", f"phantom 5:benign ({i})") for i in range(2)]
    assert merge_families(records) == records


def test_no_records_are_no_families():
    assert merge_families([]) == []


def test_an_image_that_does_not_open_is_named(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(ValueError, match=r"a\.png is not an image"):
        merge_families([Record(tmp_path / "a.png", (), "benign", "", "p")])


def test_families_are_near_duplicates_and_known_families_but_not_patients(tmp_path):
    groups = ["bus-bra:1", "bus-bra:1", "busi:benign (4)", "busi:benign (4)", "phantom 0:a", "phantom 0:a", "breast:1"]
    records = [Record(tmp_path / f"{i}.png", (), "benign", "", group) for i, group in enumerate(groups)]
    assert families(records, [(1, 6), (3, 6)]) == [[1, 2, 3, 6], [4, 5]]


def likely_by_all_products(images, way):
    """The correlation of every pair at every shift, in plain products of the whole images."""
    altered = unit(warp(images.images, images.aspects, way, COARSE))
    least = LIKELY_AS_IT_IS if way == AS_IT_IS else LIKELY
    found = set()
    for inside in images.insides:
        found |= {(i, j) for i, j in (altered @ inside.T > least).nonzero().tolist() if i != j}
    return found


@pytest.mark.parametrize("block", [7, 512])
def test_bounds_leave_out_no_pair_and_keep_none_that_all_products_do_not(monkeypatch, block):
    """On mixtures of a few pictures, of which many pairs correlate on both sides of what is asked."""
    monkeypatch.setattr(altered_copies, "BLOCK", block)
    monkeypatch.setattr(altered_copies, "COLUMNS", block + 3)
    generator = np.random.default_rng(0)
    pictures = np.stack([np.asarray(speckle(seed, (96, 96)), np.float32) for seed in range(3)])
    mixed = [sum(generator.dirichlet([0.4] * 3)[:, None, None] * pictures) for _ in range(30)]
    mixed += [np.zeros((96, 96), np.float32)]
    small = [Image.fromarray(each.astype(np.uint8)) for each in mixed]
    small += [change(small[0]) for change in CHANGES.values()]
    images = coarse([detail(each, blur=COARSE_BLUR) for each in small], torch.linspace(0.8, 1.4, len(small)))
    counts = []
    for way in (AS_IT_IS, *WAYS):
        expected = likely_by_all_products(images, way)
        assert likely_pairs(images, way) == expected
        counts.append(len(expected))
    assert 50 < counts[0] < len(small) ** 2 / 2, "neither none nor all"
    assert sum(count > 0 for count in counts) > 5


def test_the_product_of_two_bounds_is_at_least_that_of_the_images():
    cut = unit(torch.randn(40, 400, generator=torch.Generator().manual_seed(0)))
    axes = torch.linalg.qr(torch.randn(400, 96, generator=torch.Generator().manual_seed(1))).Q
    bounds = bounding(cut, axes)
    assert bounds.shape == (40, 97)
    assert bool((bounds @ bounds.T >= cut @ cut.T - 1e-5).all())


GRAPH = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=20)


@given(GRAPH)
def test_join_gives_the_connected_components_named_by_their_smallest(pairs):
    """Against the closure of the relation, by repeated multiplication of its matrix."""
    reach = np.eye(12, dtype=bool)
    for i, j in pairs:
        reach[i, j] = reach[j, i] = True
    for _ in range(4):
        reach = reach @ reach
    assert join(range(12), pairs) == {i: int(np.flatnonzero(reach[i])[0]) for i in range(12)}


def test_a_join_of_two_classes_stays_in_training(tmp_path):
    records = [record(tmp_path / f"{i}.png", speckle(i), f"p{i}") for i in range(4)]
    records += [
        record(tmp_path / "m.png", speckle(0), "q", "malignant"),
        record(tmp_path / "n.png", speckle(9), "r", "malignant"),
    ]
    for seed in range(5):
        _, test = split_by_group(merge_families(records), 0.5, seed)
        assert not {"p0", "q"} & {r.group for r in test}


def test_detail_keeps_what_is_small_and_drops_what_is_smooth():
    ramp = Image.fromarray(np.linspace(0, 255, 96)[:, None].repeat(96, axis=1).astype(np.uint8))
    assert detail(ramp)[12:-12].abs().max() <= 2
    assert detail(speckle(0)).std() > 5


def test_a_gpu_only_proposes_images_and_the_cpu_decides_which_are_pairs(monkeypatch):
    """A GPU that rounds up finds a pair too many, and one that rounds down by less than NEAR loses none."""
    asked = []

    def search(device, small, aspects, listed, slack):
        asked.append((device, len(small), slack))
        return {(1, 4), (4, 5)} if device == "cuda:1" else {(0, 1)}

    monkeypatch.setattr(near_duplicates, "copies_on", search)
    small, aspects = np.zeros((6, 96, 96), np.uint8), torch.ones(6)
    assert near_duplicates.copies(small, aspects, [False] * 6, "cuda:1") == {(1, 4)}
    assert near_duplicates.copies(small, aspects, [False] * 6, "cpu") == {(0, 1)}
    assert asked == [("cuda:1", 6, near_duplicates.NEAR), ("cpu", 3, 0.0), ("cpu", 6, 0.0)]


def test_less_than_the_threshold_counts_by_its_slack_alone(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    one, noise = torch.randn(2, 96, 96, generator=generator)
    details = torch.stack([one, one + 1.8 * noise])
    monkeypatch.setattr(near_duplicates, "REACH", 0)
    (correlation,) = (windows(details[:1], 0, 0) * windows(details[1:], 0, 0)).sum(dim=1).tolist()
    above = max(0.0, THRESHOLD - correlation) + 1e-4
    assert correlation < THRESHOLD
    assert correlated_pairs(details, [(0, 1)]) == []
    assert correlated_pairs(details, [(0, 1)], slack=above) == [(0, 1)]
