"""Where a model came from, through metadata and back."""

import pytest

from ldm_us.files.lineage import Lineage, read_lineage


def test_a_lineage_comes_back_from_the_metadata_with_its_entries_in_order():
    lineage = Lineage(()).extended({"stage": "vae", "data": ["BUSI"]}).extended({"stage": "unet", "lr": 1e-5})
    assert read_lineage(lineage.metadata()).entries == lineage.entries
    assert [entry["stage"] for entry in lineage.entries] == ["vae", "unet"]


def test_metadata_are_text_as_safetensors_wants():
    assert all(isinstance(value, str) for value in Lineage(({"steps": 3},)).metadata().values())


def test_extending_leaves_the_lineage_before_as_it_was_and_keeps_the_parent():
    before = Lineage(({"stage": "vae"},), parent="abc")
    after = before.extended({"stage": "unet"})
    assert before.entries == ({"stage": "vae"},)
    assert after.parent == "abc"


def test_a_file_without_lineage_has_an_empty_one_and_random_parents():
    assert read_lineage({"config": "{}"}) == Lineage((), "random")


def test_a_damaged_lineage_is_a_value_error():
    for damaged in ("[{", "5", "[1]"):
        with pytest.raises(ValueError, match="the lineage in a model file"):
            read_lineage({"lineage": damaged})


def digests(first, last):
    return {number.to_bytes(8, "little") for number in range(first, last)}


def test_the_images_of_every_stage_are_known_by_their_digests_and_those_of_a_stage_before_take_no_room():
    lineage = Lineage(()).extended({"stage": "vae"}, digests(0, 6000)).extended({"stage": "old"})
    lineage = lineage.extended({"stage": "unet"}, digests(0, 6000)).extended({"stage": "last"}, digests(5990, 6010))
    known = read_lineage(lineage.metadata()).trained_on()
    assert {digest: entry["stage"] for digest, entry in known.items()} == {
        **dict.fromkeys(digests(0, 6000), "vae"),
        **dict.fromkeys(digests(6000, 6010), "last"),
    }
    assert [entry.get("images") for entry in lineage.entries] == [6000, None, 6000, 20]
    assert len(lineage.metadata()["lineage"]) < 70_000


@pytest.mark.parametrize("damaged", ["!", "AAA", 5, ["x"]])
def test_damaged_digests_are_a_value_error(damaged):
    with pytest.raises(ValueError, match="the digests of images are damaged"):
        Lineage(({"stage": "vae", "new_images": damaged},)).trained_on()
