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
