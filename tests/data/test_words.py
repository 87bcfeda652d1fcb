"""The words of a model: what a stage keeps of its prompts, and which of them --class and the notes take."""

import json
from collections import Counter
from pathlib import Path

import pytest

from ldm_us.config import BUNDLED
from ldm_us.data.organ import UNKNOWN, Organ
from ldm_us.data.records import Record
from ldm_us.data.words import MOST_CHARACTERS, MOST_PROMPTS, record_words, words_in
from ldm_us.files.checkpoint import read_metadata
from ldm_us.files.lineage import Lineage
from ldm_us.files.stored_tensor import DESCRIPTION_LIMIT

BREAST = "Ultrasound image of a {} breast"
THYROID = {("a benign thyroid", "benign"): 3, ("a benign thyroid, left", "benign"): 5, ("a cyst", "nodule"): 2}
BUSI = {(BREAST.format(label), label): 4 for label in ("benign", "malignant", "normal")}


def records(of_prompts):
    """{(prompt, class): images} -> so many records."""
    listed = ((prompt, label) for (prompt, label), images in of_prompts.items() for _ in range(images))
    return [Record(Path(f"{i}.png"), (), label, prompt, str(i)) for i, (prompt, label) in enumerate(listed)]


def lineage(*stages):
    """(stage, {(prompt, class): images}, further fields) of each; None for the prompts: of before the record."""
    made = Lineage(())
    for stage, prompts, *more in stages:
        fields = {"stage": stage, "data": ["somewhere"], "caption_dropout": 0.1} | (more[0] if more else {})
        words = {} if prompts is None else record_words(records(prompts), fields["caption_dropout"], made)
        made = made.extended(fields | words)
    return made


def words(*stages, more=()):
    return words_in("model.safetensors", lineage(*stages).metadata(), more)


def test_a_class_has_its_most_frequent_prompt_and_a_note_says_that_there_are_others():
    known = words(("unet", THYROID))
    assert known.classes == ("benign", "nodule")
    assert [known.prompt(label) for label in known.classes] == ["a benign thyroid, left", "a cyst"]
    (note,) = known.notes(None, known.classes)
    assert note.startswith(
        "more than one prompt was taught for benign. Taken is the most frequent of a class ('a benign"
    )
    assert known.notes(None, ["nodule"]) == []


def test_the_classes_of_the_breast_keep_their_order():
    assert words(("unet", dict(reversed(BUSI.items())))).classes == ("benign", "malignant", "normal")


def test_what_the_classes_show_is_kept_where_it_is_not_what_a_breast_has():
    heart = Organ("a heart, {label}", ("ED", "benign", "none"), without=("none",))
    listed = [Record(Path(f"{label}.png"), (), label, label, label, heart) for label in heart.classes]
    made = Lineage(()).extended({"stage": "unet", **record_words(listed, 0.1, Lineage(()))})
    assert made.entries[0]["words"]["shows"] == {"ED": True, "none": False}
    known = words_in("m", made.metadata())
    assert [known.shows(label) for label in ("ED", "benign", "none", "normal", "cyst")] == [
        *(True, True, False, False, None)
    ]
    assert "shows" not in record_words(records(BUSI), 0.1, Lineage(()))["words"]


def test_an_unknown_class_is_refused_with_those_of_the_model():
    with pytest.raises(
        ValueError, match=r"--class normal: unknown to model\.saf.*\(--class benign, nodule\).*--prompt"
    ):
        words(("unet", THYROID)).prompt("normal")


def test_a_prompt_that_no_image_had_gets_a_note_and_capitals_and_spaces_make_no_other_prompt():
    known = words(("unet", THYROID))
    (note,) = known.notes(BREAST.format("benign"), [])
    assert "never trained on this prompt. Nearest are: 'a benign thyroid'" in note
    for taught in ("a cyst", "A  Cyst ", ""):
        assert known.notes(taught, []) == []


def test_a_hundred_thousand_captions_are_all_known_and_the_record_stays_small():
    captions = {(f"caption {i}" + " of a lesion" * 20, UNKNOWN): 1 for i in range(100_000)} | THYROID
    made = lineage(("unet", captions))
    text = made.metadata()["lineage"]
    assert len(text) < 1_200_000 < DESCRIPTION_LIMIT
    kept = made.entries[0]["words"]["prompts"]
    assert len(kept) <= MOST_PROMPTS
    assert sum(len(prompt) for prompt, _, _ in kept) <= MOST_CHARACTERS
    known = words_in("m", {"lineage": text})
    assert known.classes == ("benign", "nodule"), "the classes come first, whatever else there is"
    assert known.notes("caption 99999" + " of a lesion" * 20, []) == []
    assert "never trained" in known.notes("caption 100000", [])[0]
    assert "99," in known.lines()[-1]


def test_a_stage_on_the_prompts_of_the_one_before_takes_no_room_for_their_digests():
    entries = lineage(("unet", THYROID), ("controlnet", THYROID)).entries
    assert [len(entry["words"]["new"]) > 0 for entry in entries] == [True, False]
    assert [entry["words"]["distinct"] for entry in entries] == [3, 3]


def test_where_every_caption_is_dropped_no_prompt_counts_as_trained():
    known = words(("unet", THYROID, {"caption_dropout": 1.0}))
    assert (known.classes, known.prompts) == ((), [])
    with pytest.raises(ValueError, match=r"--class benign: model\.safetensors has no classes\. Use --prompt\."):
        known.prompt("benign")
    assert "never trained on this prompt" in known.notes("a cyst", [])[0]


def test_captions_without_classes_are_prompts_and_no_class():
    known = words(("unet", {("a cyst", UNKNOWN): 2, ("a nodule", UNKNOWN): 3}))
    assert known.prompts == ["a nodule", "a cyst"]
    with pytest.raises(ValueError, match=r"has no classes\. Use --prompt, such as --prompt 'a nodule'"):
        known.check_classes("--balance")


def test_a_denoiser_that_was_trained_on_another_organ_has_no_class_of_the_one_before_and_never_its_prompt():
    known = words(("unet", BUSI), ("unet", THYROID))
    assert known.classes == ("benign", "nodule")
    assert known.prompt("benign") == "a benign thyroid, left"
    assert known.notes(BREAST.format("normal"), []) == [], "it has seen this once"
    assert words(("unet", None), ("unet", THYROID)).classes == ("benign", "nodule")


@pytest.mark.parametrize("last", [("controlnet", THYROID), ("unet", THYROID, {"lora": {"rank": 4}})])
def test_a_controlnet_and_a_lora_add_their_classes_to_those_of_the_denoiser(last):
    known = words(("unet", BUSI), last)
    added = words_in("m", lineage(("unet", BUSI)).metadata(), [lineage(last).entries[0]])
    assert known.taught == added.taught
    assert known.classes == ("benign", "malignant", "nodule", "normal")
    assert known.prompt("benign") == "a benign thyroid, left"
    assert known.prompt("normal") == BREAST.format("normal")


@pytest.mark.parametrize(("data", "notes"), [("Dataset_BUSI_with_GT", 0), ("phantoms", 0), ("neck", 1)])
def test_a_model_of_before_the_record_has_breast_classes_with_a_note_where_its_data_do_not_say_so(data, notes):
    known = words(("unet", None, {"data": [data]}))
    assert [known.prompt(label) for label in known.classes] == [prompt for prompt, _ in BUSI]
    assert len(known.notes(None, known.classes)) == notes
    assert known.notes("a cyst", []) == [], "nobody knows what it was trained on"


def test_the_bundled_model_has_its_classes_without_a_note():
    known = words_in("us128", read_metadata(BUNDLED))
    assert known.classes == ("benign", "malignant", "normal")
    assert known.notes(None, known.classes) == []


def test_a_base_of_before_the_record_that_saw_no_caption_leaves_the_record_complete():
    known = words(("unet", None, {"caption_dropout": 1.0}), ("unet", THYROID))
    assert "never trained" in known.notes("a liver", [])[0]


def test_imported_weights_have_no_classes_and_no_note_on_prompts():
    known = words_in("sd15", {"stage": "import"})
    with pytest.raises(ValueError, match=r"--class benign: sd15 has no classes\. Use --prompt\."):
        known.prompt("benign")
    assert known.notes("a liver", []) == []
    assert words_in("x", {}).classes == ("benign", "malignant", "normal"), "of one's own program, with a note:"
    assert "does not say which words" in words_in("x", {}).notes(None, ["benign"])[0]


@pytest.mark.parametrize(
    "damaged",
    [
        5,
        {},
        {"prompts": [["a", "b"]]},
        {"prompts": [[1, "b", 2]]},
        {"prompts": [["a", "b", "2"]]},
        {"prompts": [["a", "../b", 2]]},
        {"prompts": [["a", ".b", 2]]},
        {"prompts": [["a", "b\n", 2]]},
        {"prompts": [["a", None, 2]]},
        {"prompts": [], "new": "!"},
        {"prompts": [], "shows": {"a": "yes"}},
        {"prompts": [], "shows": ["a"]},
    ],
)
def test_a_damaged_record_and_a_class_that_is_no_name_of_a_folder_are_one_sentence(damaged):
    metadata = {"lineage": json.dumps([{"stage": "unet", "words": damaged}])}
    with pytest.raises(ValueError, match=r"m: the words in its lineage are damaged \(.*\)\. Copy the file again\."):
        words_in("m", metadata)


def test_info_lists_every_prompt_with_its_class_and_images():
    lines = words(("unet", THYROID | {("a text", UNKNOWN): 1})).lines()
    assert lines[0] == "classes, in the order of --balance: benign, nodule"
    counted = Counter(line.split()[0] for line in lines[1:])
    assert counted == {"benign": 2, "nodule": 1, "-": 1}
    assert any(line.split() == ["benign", "5", "images", "a", "benign", "thyroid,", "left"] for line in lines)
