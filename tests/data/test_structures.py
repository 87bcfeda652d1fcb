"""Masks of several structures, and pictures, as hints: what a dataset says, and what a ControlNet is shown."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ldm_us.config import MASK, PICTURE
from ldm_us.data.decoded import Decoded
from ldm_us.data.readers.datasets import hint_shown, read_datasets, read_whole
from ldm_us.data.records import followed, load_mask, mask_file, of_structure, shown_mask, union_of_masks
from ldm_us.data.structure import in_channels, labels_of, sums_of
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.networks.controlnet import hint_channels
from ldm_us.training.dataset import load_training_set

NAMES = ("lobe", "nodule")
LABELS = np.kron(np.array([[0, 1, 1], [0, 1, 2], [0, 0, 3]], np.uint8), np.ones((4, 4), np.uint8))
NOISE = np.random.default_rng(0).integers(60, 200, (12, 12), dtype=np.uint8)


@pytest.fixture
def described(tmp_path):
    """A function of what dataset.json says of structures, and of mask files: a folder of two images as records."""

    def write(about, *masks):
        root = tmp_path / "data"
        root.mkdir()
        lines = []
        for i in range(2):
            Image.fromarray(NOISE).save(root / f"{i}.png")
            listed = {}
            for k, mask in enumerate(masks):
                mask.save(root / f"{i}_mask_{k}.png")
                listed[NAMES[k]] = f"{i}_mask_{k}.png"
            named = listed if len(masks) > 1 else next(iter(listed.values()))
            lines.append({"file_name": f"{i}.png", "text": "a thyroid", "class": "benign", "mask": named})
        (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
        (root / "dataset.json").write_text(json.dumps({"classes": ["benign"], "without": []} | about))
        return read_datasets([root])

    return write


def picture(levels):
    return Image.fromarray(levels)


def expected(levels, *of_each):
    """The sum of 2^k over the structures whose labels these are."""
    return sum(np.isin(levels, labels).astype(np.float32) * 2**k for k, labels in enumerate(of_each))


def test_labels_of_one_file_are_a_channel_each_and_may_share_a_label(described):
    first, _ = described({"structures": {"lobe": [1, 2], "nodule": [2, 3]}}, picture(LABELS))
    assert first.structures == NAMES
    assert first.organ.hint == NAMES
    hint = load_mask(followed(first, NAMES).masks, 12)
    assert np.array_equal(hint[0].numpy(), expected(LABELS, (1, 2), (2, 3)))
    assert np.array_equal(load_mask(first.masks, 12)[0].numpy() > 0, LABELS > 0), "without channels all are one mask"


def test_colours_name_structures_too(described):
    coloured = np.zeros((12, 12, 3), np.uint8)
    coloured[LABELS == 1], coloured[LABELS == 2] = (255, 0, 0), (0, 255, 16)
    first, _ = described({"structures": {"lobe": "#ff0000", "nodule": "#00ff10"}}, Image.fromarray(coloured))
    hint = load_mask(followed(first, NAMES).masks, 12)
    assert np.array_equal(hint[0].numpy(), expected(LABELS, (1,), (2,)))


def test_masks_that_are_named_one_by_one_are_a_channel_each(described):
    lobe, nodule = (picture(np.isin(LABELS, labels).astype(np.uint8) * 255) for labels in ((1, 2), (2, 3)))
    first, _ = described({"structures": list(NAMES)}, lobe, nodule)
    for hint in (NAMES, NAMES[::-1]):
        levels = load_mask(followed(first, hint).masks, 12)[0].numpy()
        order = ((1, 2), (2, 3)) if hint == NAMES else ((2, 3), (1, 2))
        assert np.array_equal(levels, expected(LABELS, *order))


def test_a_label_that_no_description_names_is_one_sentence(described):
    first, _ = described({"structures": {"lobe": 1, "nodule": 2}}, picture(LABELS))
    with pytest.raises(ValueError, match=r"0_mask_0.png: 3 is there, and the labels with a name are 1, 2\. Name it"):
        load_mask(first.masks, 12)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"structures": {"lobe": 0}}, "Give each a label, from 1 on"),
        ({"structures": {"lobe": 1, "nodule": "#ff0000"}}, "Give each a label, from 1 on"),
        ({"structures": {"lobe": []}}, "Give each a label, from 1 on"),
        ({"structures": {}}, "there are 0 structures"),
        ({"structures": [f"s{i}" for i in range(9)]}, "there are 9 structures"),
        ({"structures": ["a/b"]}, "'a/b' cannot be a structure"),
        ({"structures": list(NAMES), "hint": "picture"}, "the hint is 'picture'"),
        ({"hint": "edges"}, "the hint is 'edges'"),
    ],
)
def test_what_makes_no_sense_in_a_description_is_one_sentence(described, about, said):
    with pytest.raises(ValueError, match=r"dataset\.json") as found:
        described(about, picture(LABELS))
    assert said in str(found.value)


def test_any_picture_is_a_hint_where_the_dataset_says_so(described):
    first, _ = described({"hint": "picture"}, picture(NOISE))
    assert first.organ.hint == PICTURE
    assert np.array_equal(load_mask(followed(first, PICTURE).masks, 12)[0].numpy(), NOISE)


def test_a_structure_without_a_channel_is_refused_and_so_are_two_pictures_to_follow(described):
    first, _ = described({"structures": {"lobe": 1, "nodule": [2, 3]}}, picture(LABELS))
    with pytest.raises(ValueError, match="shows 'nodule', and the ControlNet has channels for lobe, cyst"):
        followed(first, ("lobe", "cyst"))
    with pytest.raises(ValueError, match="follows one picture"):
        in_channels(first.masks, (), PICTURE)


def test_one_structure_is_chosen_by_its_name_and_another_name_is_refused(described):
    records = described({"structures": {"lobe": 1, "nodule": [2, 3]}}, picture(LABELS))
    nodule = of_structure(records, "nodule")[0]
    assert np.array_equal(load_mask(nodule.masks, 12)[0].numpy() > 0, np.isin(LABELS, (2, 3)))
    assert of_structure(records, None) == records
    with pytest.raises(ValueError, match="--structure cyst: the masks show lobe, nodule"):
        of_structure(records, "cyst")


def test_datasets_that_show_different_structures_do_not_mix(described, tmp_path):
    described({"structures": {"lobe": 1, "nodule": [2, 3]}}, picture(LABELS))
    one = read_whole(tmp_path / "data")
    (tmp_path / "data" / "dataset.json").write_text("{}")
    with pytest.raises(ValueError, match=r"shows lobe, nodule, and .* mask\. Describe both alike"):
        hint_shown([one, read_whole(tmp_path / "data")])


@given(st.integers(2, 8), st.data())
@settings(max_examples=30, deadline=None)
def test_a_mask_file_is_read_as_what_was_written(count, data):
    """Whatever structures lie over each other: any sum of 2^k has a label of its own."""
    values = data.draw(st.lists(st.integers(0, 2**count - 1), min_size=16, max_size=16))
    mask = torch.tensor(values).view(1, 4, 4).float()
    hint = tuple(f"s{k}" for k in range(count))
    written = np.asarray(mask_file(mask, hint))
    back = sum(np.isin(written, labels).astype(int) << k for k, labels in enumerate(labels_of(count)))
    assert np.array_equal(back, mask[0].numpy())
    assert sums_of(count)[:count] == [2**k for k in range(count)], "a label is the structure of its number"
    shown = shown_mask(mask, hint)
    assert torch.equal(shown > 0, mask > 0)
    assert bool((shown[mask.long() % 2 == 1] == 1).all()), "the first structure is white"


def test_a_small_structure_is_not_lost_when_a_mask_is_made_smaller(described):
    labels = np.ones((12, 12), np.uint8)
    labels[5:7, 5:7] = 2
    labels[0] = 0
    first, _ = described({"structures": {"lobe": [1, 2], "nodule": 2}}, picture(labels))
    hint = load_mask(followed(first, NAMES).masks, 3)
    assert bool((hint.long() >> 1 & 1).any())
    assert union_of_masks(followed(first, NAMES).masks).mode == "P"


def test_what_a_training_is_given_is_what_is_loaded(described, tmp_path):
    records = [
        followed(r, NAMES) for r in described({"structures": {"lobe": [1, 2], "nodule": [2, 3]}}, picture(LABELS))
    ]
    for folder in (None, tmp_path / "cache"):
        data = load_training_set(records, Decoded(folder, 12, levels=True))
        assert data.masks[:].dtype == torch.uint8
        assert np.array_equal(data.masks[0][0].numpy(), expected(LABELS, (1, 2), (2, 3)))
        assert data.drawn().tolist() == [True, True]


@pytest.mark.parametrize("hint", [MASK, PICTURE, NAMES, ("a", "b", "c", "d", "e", "f", "g", "h")])
def test_a_controlnet_sees_a_channel_for_each_structure_and_else_three_equal_ones(micro, hint):
    model = LatentDiffusion(micro)
    controlnet = model.add_controlnet(hint)
    assert model.config.control.hint == hint
    channels = hint_channels(hint)
    assert controlnet.hint_network.convs[0].weight.shape[1] == channels == (3 if len(hint) == 1 else len(hint))
    most = {MASK: 1, PICTURE: 255}.get(hint, 2 ** len(hint) - 1)
    masks = torch.randint(0, most + 1, (2, 1, 8, 8)).float()
    seen = controlnet.hint_of(masks)
    assert seen.shape == (2, channels, 8, 8)
    if len(hint) == 1:
        assert torch.equal(seen, (masks / most).expand(-1, 3, -1, -1))
    else:
        assert torch.equal((seen * 2 ** torch.arange(channels).view(1, -1, 1, 1)).sum(1, keepdim=True), masks)
