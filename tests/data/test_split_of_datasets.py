"""The split of train.py over several datasets: a copy in another dataset is on the side of its original."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm_us.training.dataset import split_data
from tests.data.readers.test_datasets import busbra
from tests.data.test_near_duplicates import speckle


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """BUS-BRA with three images, two of one case, and a folder with metadata that holds a copy of one."""
    root = tmp_path_factory.mktemp("copied")
    busbra(root / "busbra")
    for i, path in enumerate(sorted((root / "busbra" / "Images").iterdir())):
        speckle(i, (8 * 16, 8 * 12)).save(path)
    lines = []
    for i in range(2, 8):
        (root / "other").mkdir(exist_ok=True)
        speckle(i).save(root / "other" / f"{i}.png")
        label = "benign" if i % 2 == 0 else "malignant"
        lines.append(json.dumps({"file_name": f"{i}.png", "text": "x", "class": label}))
    (root / "other" / "metadata.jsonl").write_text("\n".join(lines))
    return [root / "busbra", root / "other"]


@settings(deadline=None, max_examples=15)
@given(held_out=st.floats(0.05, 0.95))
def test_a_near_duplicate_in_another_dataset_is_never_on_the_other_side_of_the_split(copied, held_out):
    train, test = split_data(copied, held_out)
    assert len(train) + len(test) == 9
    sides = Counter(r.group for r in train), Counter(r.group for r in test)
    assert not sides[0].keys() & sides[1].keys()
    copies = [r.image.name for side in (train, test) for r in side if r.group == "bus-bra:17"]
    assert sorted(copies) == ["2.png", "bus_0017-s.png"]
