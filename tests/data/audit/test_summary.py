"""The summary of a dataset: images, masks and classes, what was left out, what masks cover, prompts that are cut."""

import json
from pathlib import Path

import pytest
from PIL import Image

from ldm_us.data.audit.summary import Coverage, coverages, describe_masks, describe_reading, is_long
from ldm_us.data.decoded import Decoded
from ldm_us.data.readers.datasets import read_whole
from ldm_us.networks import clip
from tests.data.readers.test_datasets import busbra, busi, save


def ellipse_of(share: float, path: Path) -> Path:
    """A mask of 10 columns of which a share is white, from the left."""
    picture = Image.new("L", (10, 10))
    picture.paste(255, (0, 0, round(10 * share), 10))
    picture.save(path)
    return path


def test_the_summary_says_what_was_read_and_every_kind_of_what_was_not(tmp_path):
    root = busi(tmp_path / "set")
    save(root / "cyst" / "cyst (1).png")
    save(root / "benign" / "benign (9002).png")
    assert describe_reading(read_whole(root)) == [
        f"BUSI in {root}: 4 images (2 benign, 1 malignant, 1 normal), 3 masks",
        "left out, .png in set/cyst/: 1 (cyst (1).png)",
        "classes of one image, which is never held out: malignant, normal",
        "lesion images without a mask: 1: benign (9002).png",
        "share of the image that masks cover: least 1.56%, median 1.56%, largest 1.56%",
    ]


def test_columns_that_are_not_read_are_in_the_summary(tmp_path):
    assert "columns of bus_data.csv that are not read: BIRADS, Histology" in describe_reading(
        read_whole(busbra(tmp_path))
    )


def test_the_least_median_and_largest_share_are_told_and_inverted_masks_named(tmp_path):
    lines = []
    for i, share in enumerate((0.1, 0.3, 0.4, 0.2)):
        Image.new("L", (10, 10), 90).save(tmp_path / f"{i}.png")
        ellipse_of(share, tmp_path / f"{i}_m.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": "x", "mask": f"{i}_m.png"}))
    inverted = Image.new("L", (10, 10), 255)
    inverted.paste(0, (3, 3, 6, 6))
    inverted.save(tmp_path / "2_m.png")
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    reading = read_whole(tmp_path)
    assert describe_reading(reading)[1:] == [
        "share of the image that masks cover: least 10.00%, median 25.00%, largest 91.00%",
        "masks that look inverted (white in all corners): 1: 2.png",
    ]
    assert coverages(reading.records[1:2], Decoded(None, 128)) == [Coverage("1.png", 0.3, False, 0)]
    assert describe_masks([], 128) == []


def test_images_without_a_lesion_in_their_masks_are_named_also_where_their_class_is_unknown(tmp_path):
    lines = []
    for name, share in (("drawn", 0.2), ("black", 0), ("bare", None), ("healthy", 0)):
        Image.new("L", (10, 10), 90).save(tmp_path / f"{name}.png")
        line = {"file_name": f"{name}.png", "text": "x"} | ({"class": "normal"} if name == "healthy" else {})
        if share is not None:
            line |= {"mask": ellipse_of(share, tmp_path / f"{name}_m.png").name}
        lines.append(json.dumps(line))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert describe_reading(read_whole(tmp_path))[1:4] == [
        "classes of one image, which is never held out: normal",
        "lesion images or images of unknown class without a mask: 1: bare.png",
        "lesion images or images of unknown class whose masks are all empty: 1: black.png",
    ]
    alone = tmp_path / "alone"
    alone.mkdir()
    (tmp_path / "bare.png").rename(alone / "bare.png")
    (alone / "metadata.jsonl").write_text(lines[2])
    assert len(describe_reading(read_whole(alone))) == 1, "no image of unknown class has a mask there"


def test_prompts_that_clip_cuts_are_counted(tmp_path):
    for name in ("a", "b", "c"):
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
    texts = {"a": "a cyst", "b": "a mass " * 37 + "here", "c": "a mass " * 38}
    lines = [json.dumps({"file_name": f"{name}.png", "text": text}) for name, text in texts.items()]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert describe_reading(read_whole(tmp_path))[1:] == [
        "prompts of more than 75 tokens, of which the rest is not read: 1 of 3"
    ]
    assert describe_reading(read_whole(tmp_path), length=77 - 2)[1:] == [  # two learned tokens
        "prompts of more than 73 tokens, of which the rest is not read: 2 of 3"
    ]


@pytest.mark.parametrize("text", ["", "a benign breast", "!" * 75, "\u00e9" * 37])
def test_short_prompts_need_no_tokenizer(text, monkeypatch):
    monkeypatch.setattr(clip, "_open_clip_tokenizer", lambda: pytest.fail("the tokenizer was read"))
    assert not is_long(text)
