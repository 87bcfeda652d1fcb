"""What files decode to is kept: found without opening them, and never after a file has changed."""

import errno
import os
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_us.data import decoded as module
from ldm_us.data import digests, near_duplicates
from ldm_us.data.decoded import Decoded, Pictures, check_pairs
from ldm_us.data.digests import signature
from ldm_us.data.framing import Frame
from ldm_us.data.near_duplicates import merge_families
from ldm_us.data.readers.datasets import read_datasets
from ldm_us.data.records import load_pair, mask_tensor, open_pair
from ldm_us.files.atomic import sha256_file
from ldm_us.training.dataset import data_hashes, load_training_set

SIZE = 20  # 400 pixels: mask bits fill 50 bytes


@pytest.fixture
def records(own_busi):
    return sorted(read_datasets([own_busi]))


@pytest.fixture
def settled(monkeypatch):
    """Files of a moment ago count as long unchanged."""
    monkeypatch.setattr(digests, "SETTLED", -1.0)


@pytest.fixture
def opened(monkeypatch):
    """The names of files that were opened or hashed."""
    seen = []
    for place, name in ((module, "open_image"), (digests, "sha256_file")):
        call = getattr(place, name)
        monkeypatch.setattr(place, name, lambda path, call=call: seen.append(path.name) or call(path))
    union = module.union_of_masks
    monkeypatch.setattr(module, "union_of_masks", lambda paths: seen.extend(p.name for p in paths) or union(paths))
    return seen


def same(one, other):
    assert torch.equal(one.masks[:], other.masks[:])
    assert torch.equal(one.pixels[:], other.pixels[:])
    assert (one.keys, one.images, one.prompts) == (other.keys, other.images, other.prompts)
    assert one.decoded_sha256(True) == other.decoded_sha256(True)


def test_images_and_masks_are_those_of_load_pair(records, tmp_path):
    for folder in (None, tmp_path / "cache"):
        data = load_training_set(records, Decoded(folder, SIZE, True))
        for i, record in enumerate(records):
            x, mask = load_pair(record, SIZE)
            torch.testing.assert_close(data.pixels[i].float() / 127.5 - 1, x[:1], atol=1e-6, rtol=0)
            assert torch.equal(data.masks[i], mask > 0.5)
            assert data.masks[i].dtype == torch.bool
        assert data.drawn().tolist() == [bool(load_pair(record, SIZE)[1].any()) for record in records]
        assert set(data.members) == {(SIZE, SIZE, "squash")}


def test_a_second_start_opens_and_hashes_nothing_and_finds_the_same(records, tmp_path, settled, opened):
    paths = [path for record in records for path in (record.image, *record.masks)]
    once = len(paths) + len({sha256_file(path) for path in paths})  # hashed, and of the same content one is opened
    starts = []
    for _ in range(2):
        decoded = Decoded(tmp_path / "cache", SIZE, True)
        merged = merge_families(records, decoded)
        starts.append((merged, load_training_set(merged, decoded), data_hashes(merged, None, decoded)))
        assert len(opened) == (0 if len(starts) == 2 else once)
        opened.clear()
    assert starts[0][0] == starts[1][0] == merge_families(records)
    same(starts[0][1], starts[1][1])
    assert starts[0][2] == starts[1][2] == data_hashes(records)


def test_of_changed_files_those_alone_are_opened_again(records, tmp_path, settled, opened):
    load_training_set(records, Decoded(tmp_path / "cache", SIZE, True))
    opened.clear()
    picture = Image.open(records[3].image)
    Image.fromarray(255 - np.asarray(picture)).save(records[3].image)
    data = load_training_set(records, Decoded(tmp_path / "cache", SIZE, True))
    assert set(opened) == {records[3].image.name}
    same(data, load_training_set(records, SIZE))


@pytest.mark.skipif(os.name == "nt", reason="there the time of the last change is not told")
def test_a_change_that_keeps_the_size_and_the_time_of_the_content_is_seen(tmp_path, settled):
    path = tmp_path / "a.png"
    Image.new("L", (8, 8), 10).save(path)
    before, first = os.stat(path), Decoded(tmp_path / "cache", 8).file_hashes([path])
    time.sleep(0.02)  # coarser than any clock of a file system that tells parts of seconds
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = os.stat(path)
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert Decoded(tmp_path / "cache", 8).file_hashes([path]) == [sha256_file(path)] != first


def test_a_file_that_has_just_changed_or_has_whole_seconds_is_hashed_every_time(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    assert signature(path) == "", "another write within the same tick of the clock would leave the same times"
    Decoded(tmp_path / "cache", 8).file_hashes([path])
    assert not (tmp_path / "cache" / "files.rows").exists()
    monkeypatch.setattr(digests, "SETTLED", -1.0)
    found = os.stat(path)
    assert signature(path) != ""

    class Whole:
        st_ino, st_size, st_mtime_ns = found.st_ino, found.st_size, found.st_mtime_ns
        st_ctime, st_ctime_ns = 1000.0, 1000 * 10**9

    monkeypatch.setattr(os, "stat", lambda _: Whole)
    assert signature(path) == ""


@pytest.mark.parametrize("mask", [False, True])
def test_a_file_that_changes_between_its_hash_and_its_reading_is_refused_and_not_kept(records, tmp_path, mask):
    decoded = Decoded(tmp_path / "cache", SIZE)
    record = next(record for record in records if record.masks)
    path = record.masks[0] if mask else record.image
    decoded.file_hashes([path])
    Image.new("L", (40, 48)).save(path)
    facts = decoded.mask_facts if mask else decoded.image_facts
    with pytest.raises(ValueError, match="changed while it was read") as refusal:
        facts([record])
    assert str(path) in str(refusal.value)
    kept = Decoded(tmp_path / "cache", SIZE)
    assert len((kept.masks if mask else kept.images).rows) == 0


def test_rows_that_are_gone_are_not_taken_for_the_last_one(records, tmp_path, monkeypatch):
    decoded = Decoded(tmp_path / "cache", SIZE)
    monkeypatch.setattr(decoded.images, "add", lambda *_: None)
    with pytest.raises(ValueError, match="what was written there is gone"):
        decoded.image_facts(records)


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_read_and_the_rest_is_kept_in_memory(
    records, tmp_path, settled, capsys, monkeypatch, error
):
    folder = tmp_path / "cache"
    load_training_set(records[:3], Decoded(folder, SIZE, True))
    whole = load_training_set(records, Decoded(None, SIZE, True))

    def refuse(file):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("ldm_us.files.rows.take_exclusive", refuse)
    capsys.readouterr()
    same(load_training_set(records, Decoded(folder, SIZE, True)), whole)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert "cannot be written" in said
    assert str(folder) in said


def test_another_version_of_what_decodes_opens_all_again(records, tmp_path, settled, opened, monkeypatch):
    load_training_set(records, Decoded(tmp_path / "cache", SIZE))
    opened.clear()
    monkeypatch.setattr(module, "decoder", lambda more=(): "another Pillow")
    load_training_set(records, Decoded(tmp_path / "cache", SIZE))
    paths = [path for record in records for path in (record.image, *record.masks)]
    assert len(opened) == len({sha256_file(path) for path in paths})


def test_kept_pairs_are_those_of_a_search_and_of_other_images_are_searched_again(tmp_path, settled, monkeypatch):
    searched, search = [], near_duplicates.search
    monkeypatch.setattr(near_duplicates, "search", lambda *args: searched.append(1) or search(*args))
    root = tmp_path / "data"
    (root / "benign").mkdir(parents=True)
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (40, 40), dtype=np.uint8)).resize((96, 96)) for _ in "abc"]
    for i, picture in enumerate([*pictures, pictures[0]]):
        picture.save(root / "benign" / f"benign ({9000 + i}).png")
    records = read_datasets([root])
    groups = [r.group for r in merge_families(records)]
    assert groups == [f"busi:benign ({i})" for i in (9000, 9001, 9002, 9000)]
    searched.clear()
    for _ in range(2):
        assert [r.group for r in merge_families(records, Decoded(tmp_path / "cache", SIZE))] == groups
    assert len(searched) == 1
    pictures[1].save(records[3].image)
    assert merge_families(records, Decoded(tmp_path / "cache", SIZE))[3].group == "busi:benign (9001)"
    assert len(searched) == 2


def test_a_mask_of_another_size_than_its_image_is_refused_as_by_open_pair(records, tmp_path):
    Image.new("L", (7, 9)).save(records[2].masks[0])
    with pytest.raises(ValueError, match="7x9") as by_hand:
        open_pair(records[2])
    with pytest.raises(ValueError, match="7x9") as found:
        check_pairs(records, Decoded(tmp_path / "cache", SIZE))
    assert str(found.value) == str(by_hand.value)


@pytest.mark.parametrize("bits", [True, False])
def test_pictures_take_every_index_that_a_tensor_takes(bits):
    generator = np.random.default_rng(0)
    whole = generator.integers(0, 2 if bits else 256, (5, 1, 3, 3), dtype=np.uint8)
    flat = whole.reshape(5, -1)
    table = np.packbits(flat, axis=1) if bits else flat
    at = np.array([4, 0, 0, 2])
    pictures, expected = Pictures(table, at, [Frame(3, 3)] * 4, bits), torch.from_numpy(whole[at])
    expected = expected.bool() if bits else expected
    for index in (
        2,
        slice(None),
        slice(1, 3),
        torch.tensor([3, 3, 0]),
        torch.tensor([True, False, True, True]),
        slice(0, 0),
    ):
        assert torch.equal(pictures[index], expected[index])
    assert pictures.any().tolist() == expected.flatten(1).any(dim=1).tolist()
    assert len(pictures) == 4
    assert mask_tensor(None, 3).shape == pictures[0].shape
