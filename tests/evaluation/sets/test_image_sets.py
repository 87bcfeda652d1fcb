"""ldm_us/evaluation/sets/image_sets.py: which two sets may be compared, and at which size."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_us.data.records import Record
from ldm_us.evaluation.sets.image_sets import check_enough, check_sets, grey_deviation, read_set, stream


def save_set(folder: Path, n: int, size: int = 16, seed: int = 0, colour: bool = False) -> list[Record]:
    """A set in the layout of BUSI, of noise."""
    (folder / "benign").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(n):
        pixels = rng.integers(0, 256, (size, size, 3) if colour else (size, size), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "benign" / f"benign ({i + 1}).png")
        Image.new("L", (size, size), 255).save(folder / "benign" / f"benign ({i + 1})_mask.png")
    return read_set([folder])


def test_sets_of_one_size_are_compared_at_that_size(tmp_path: Path) -> None:
    assert check_sets(save_set(tmp_path / "a", 3), save_set(tmp_path / "b", 2, seed=1), None) == 16


def test_sets_of_different_sizes_are_refused_unless_a_size_is_given(tmp_path: Path) -> None:
    real, generated = save_set(tmp_path / "a", 3, size=24), save_set(tmp_path / "b", 3, seed=1)
    with pytest.raises(ValueError, match=r"--real has images of 24x24 and --generated has images of 16x16.*--size 16"):
        check_sets(real, generated, None)
    assert check_sets(real, generated, 16) == 16


def test_images_that_are_in_both_sets_are_refused_however_their_files_are_written(tmp_path: Path) -> None:
    """The pixels are the same in another format, in RGB and with other metadata."""
    real, generated = save_set(tmp_path / "a", 3), save_set(tmp_path / "b", 3, seed=1)
    Image.open(real[1].image).convert("RGB").save(generated[2].image, compress_level=1)
    with pytest.raises(ValueError, match=r"--generated: 1 of 3 images are, pixel for pixel, .* --real \(benign \(2\)"):
        check_sets(real, generated, None)
    assert check_sets(real, generated, None, seek_copies=True) == 16
    with pytest.raises(ValueError, match="--generated: 3 of 3 images"):
        check_sets(real, save_set(tmp_path / "c", 3), None, seek_copies=True)


def test_a_file_that_is_listed_twice_is_refused_and_two_files_of_one_image_are_not(tmp_path: Path) -> None:
    real, generated = save_set(tmp_path / "a", 3), save_set(tmp_path / "b", 3, seed=1)
    with pytest.raises(ValueError, match=r"--generated: .*benign \(1\).png is listed twice"):
        check_sets(real, [*generated, *read_set([tmp_path / "a" / ".." / "b"])], None)
    shutil.copy(real[0].image, real[1].image)
    assert check_sets(real, generated, None) == 16


def test_images_and_sizes_of_a_few_pixels_are_refused(tmp_path: Path) -> None:
    real, dots = save_set(tmp_path / "a", 3), save_set(tmp_path / "b", 3, size=1)
    with pytest.raises(ValueError, match=r"--generated: .* is 1x1. Give images of 8 pixels"):
        check_sets(real, dots, None)
    with pytest.raises(ValueError, match="--size 1: no picture"):
        check_sets(real, real, 1)


def test_a_grey_and_a_coloured_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--generated: in colour, but --real is grey"):
        check_sets(save_set(tmp_path / "a", 3), save_set(tmp_path / "b", 3, colour=True), None)


def test_an_empty_set_and_too_small_a_set_are_refused(tmp_path: Path) -> None:
    real = save_set(tmp_path / "a", 3)
    with pytest.raises(ValueError, match="--generated: no images"):
        check_sets(real, [], None)
    with pytest.raises(ValueError, match="--real: 3 images, but KID needs at least 50"):
        check_enough(real, 50, "--real", "KID")


def test_a_folder_of_samples_is_read_from_its_manifest(tmp_path: Path) -> None:
    Image.new("L", (16, 16)).save(tmp_path / "0000_benign_seed0.png")
    line = {"number": 0, "file_name": "0000_benign_seed0.png", "class": "benign", "prompt": "a prompt"}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    (record,) = read_set([tmp_path])
    assert (record.label, record.prompt, record.masks) == ("benign", "a prompt", ())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"[]\n", "line 1: not a line of sample"),
        (b'{"file_name": "a.png", "class": ["a"]}\n', "line 1: .*not a text"),
        (b'{"file_name": "a.png", "class": 5}\n', "line 1: .*not a text"),
        (b'{"file_name": "a.png", "prompt": 5}\n', "line 1: .*not a text"),
        (b'{"file_name": 5}\n', "line 1: "),
        (b"\xff\xfe", "manifest.jsonl: not a manifest of sample.py"),
    ],
)
def test_a_manifest_that_sample_py_did_not_write_is_one_sentence(tmp_path: Path, text: bytes, sentence: str) -> None:
    (tmp_path / "manifest.jsonl").write_bytes(text)
    with pytest.raises(ValueError, match=sentence):
        read_set([tmp_path])


def test_samples_of_one_mask_or_of_one_init_are_one_group_and_normal_ones_without_a_lesion_are_not(
    tmp_path: Path,
) -> None:
    lines = {
        "a": {"class": "benign", "mask_sha256": "m1"},
        "b": {"class": "malignant", "mask_sha256": "m1"},
        "c": {"class": "benign", "mask_sha256": "m2"},
        "d": {"class": "normal", "mask_sha256": "empty"},
        "e": {"class": "normal", "mask_sha256": "empty"},
        "f": {"prompt": "f"},
        "g": {"mask_sha256": "m3", "init_sha256": "i"},
        "h": {"mask_sha256": "m4", "init_sha256": "i"},
        "i": {"mask_sha256": "m4"},
    }
    text = "".join(json.dumps({"file_name": f"{name}.png"} | entry) + "\n" for name, entry in lines.items())
    (tmp_path / "manifest.jsonl").write_text(text)
    members: dict[str, str] = {}
    for record in read_set([tmp_path]):
        members[record.group] = members.get(record.group, "") + record.image.stem
    assert sorted(members.values()) == ["ab", "c", "d", "e", "f", "ghi"]


def test_the_stream_gives_every_image_once_in_order_and_in_0_to_1(tmp_path: Path) -> None:
    records = save_set(tmp_path / "a", 5)
    batches = list(stream(records, 16, batch=2))
    assert [tuple(batch.shape) for batch in batches] == [(2, 1, 16, 16), (2, 1, 16, 16), (1, 1, 16, 16)]
    expected = [torch.from_numpy(np.array(Image.open(record.image))) / 255 for record in records]
    assert torch.allclose(torch.cat(batches)[:, 0], torch.stack(expected), atol=1e-6)


def test_grey_deviation_is_the_largest_difference_of_channels_in_a_pixel(tmp_path: Path) -> None:
    pixels = np.full((4, 4, 3), 100, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    pixels[2, 1] = (100, 93, 104)
    Image.fromarray(pixels).save(tmp_path / "mark.png")
    assert grey_deviation(Image.open(tmp_path / "grey.png")) == 0
    assert grey_deviation(Image.open(tmp_path / "mark.png")) == 11
