"""What sample.py samples: classes, prompts, mask files and folders."""

import pytest
from PIL import Image

from ldm_us.data.words import Words, words_in
from ldm_us.synthesis.subjects import check_mask, choose_subjects

BREAST = words_in("m", {})  # of a file of before there was a record
THYROID = Words("t", {"benign": {"a benign thyroid": 3}, "nodule": {"a nodule": 2}}, frozenset(), True)


@pytest.fixture
def busi(tmp_path):
    for label, number in (("benign", 2), ("benign", 10), ("malignant", 1)):
        folder = tmp_path / "busi" / label
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 90).save(folder / f"{label} ({number}).png")
        Image.new("1", (8, 8), 1).save(folder / f"{label} ({number})_mask.png")
    Image.new("1", (8, 8), 1).save(tmp_path / "busi" / "benign" / "benign (10)_mask_1.png")
    return tmp_path / "busi"


def test_nothing_asked_for_means_all_three_classes_with_the_prompts_of_the_paper():
    assert [subject.prompt for subject in choose_subjects([], None, None, BREAST)] == [
        "Ultrasound image of a benign breast",
        "Ultrasound image of a malignant breast",
        "Ultrasound image of a normal breast",
    ]


def test_an_unknown_class_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError,
        match=r"--class tumour: unknown to m\. Give one of its classes \(--class benign, malignant, normal\)",
    ):
        choose_subjects(["tumour"], None, None, BREAST)


def test_a_model_of_another_organ_is_sampled_with_its_own_prompts_and_never_called_breast(busi):
    named = choose_subjects([], None, None, THYROID)
    assert [(one.name, one.prompt) for one in named] == [("benign", "a benign thyroid"), ("nodule", "a nodule")]
    masked = choose_subjects([], None, busi / "benign", THYROID)
    assert {one.prompt for one in masked} == {"a benign thyroid"}


def test_a_mask_of_a_class_that_the_model_was_not_taught_is_refused_and_a_prompt_helps(busi):
    with pytest.raises(ValueError, match=r"malignant \(1\)_mask\.png, of class malignant: unknown to t.*--prompt"):
        choose_subjects([], None, busi / "malignant", THYROID)
    (subject,) = choose_subjects([], "a nodule", busi / "malignant", THYROID)
    assert (subject.prompt, subject.label) == ("a nodule", "nodule")


def test_a_mask_named_by_a_class_of_the_model_has_it_and_one_named_otherwise_tells_none(tmp_path):
    for name in ("nodule", "foo"):
        Image.new("1", (8, 8), 1).save(tmp_path / f"{name} (1)_mask.png")
    (subject,) = choose_subjects([], None, tmp_path / "nodule (1)_mask.png", THYROID)
    assert (subject.prompt, subject.label) == ("a nodule", "nodule")
    with pytest.raises(ValueError, match=r"foo \(1\)_mask\.png: its name tells no class"):
        choose_subjects([], None, tmp_path / "foo (1)_mask.png", THYROID)


def test_without_class_and_prompt_a_model_without_classes_is_refused():
    with pytest.raises(ValueError, match=r"without --class and --prompt: sd15 has no classes\. Use --prompt"):
        choose_subjects([], None, None, words_in("sd15", {"stage": "import"}))


def test_a_class_and_a_prompt_together_are_refused():
    with pytest.raises(ValueError, match="give one of them"):
        choose_subjects(["benign"], "a liver", None, BREAST)


def test_a_busi_mask_brings_its_class_its_other_masks_and_its_original(busi):
    (subject,) = choose_subjects([], None, busi / "benign" / "benign (10)_mask.png", BREAST)
    assert subject.name == "benign (10)"
    assert subject.prompt == "Ultrasound image of a benign breast"
    assert [path.name for path in subject.masks] == ["benign (10)_mask.png", "benign (10)_mask_1.png"]
    assert subject.original == busi / "benign" / "benign (10).png"


def test_a_class_folder_gives_one_subject_per_image_and_not_one_per_mask_file(busi):
    assert [subject.name for subject in choose_subjects([], None, busi / "benign", BREAST)] == [
        "benign (10)",
        "benign (2)",
    ]


def test_the_whole_dataset_gives_every_lesion_in_natural_order(busi):
    names = [subject.name for subject in choose_subjects([], None, busi, BREAST)]
    assert names == ["benign (2)", "benign (10)", "malignant (1)"]


def test_a_mask_whose_name_tells_no_class_needs_one(tmp_path):
    Image.new("1", (8, 8), 1).save(tmp_path / "drawn.png")
    with pytest.raises(ValueError, match=r"drawn\.png: its name tells no class. Give --class or --prompt"):
        choose_subjects([], None, tmp_path / "drawn.png", BREAST)
    (subject,) = choose_subjects(["malignant"], None, tmp_path / "drawn.png", BREAST)
    assert subject.prompt == "Ultrasound image of a malignant breast"


def test_an_asked_class_wins_over_the_one_in_the_file_name(busi):
    (subject,) = choose_subjects(["malignant"], None, busi / "benign" / "benign (2)_mask.png", BREAST)
    assert subject.prompt == "Ultrasound image of a malignant breast"


@pytest.mark.parametrize("name", ["missing.png", "empty"])
def test_a_missing_mask_and_an_empty_folder_are_refused_by_name(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=name):
        choose_subjects(["benign"], None, tmp_path / name, BREAST)


def test_several_classes_cannot_share_masks(busi):
    with pytest.raises(ValueError, match="one --class"):
        choose_subjects(["benign", "malignant"], None, busi, BREAST)


def test_other_files_that_begin_like_a_mask_are_not_taken_for_one(busi):
    (busi / "benign" / "benign (2)_mask.png.bak").write_bytes(b"old")
    Image.new("1", (8, 8), 1).save(busi / "benign" / "benign (2)_mask_old.png")
    (subject,) = choose_subjects([], None, busi / "benign" / "benign (2)_mask.png", BREAST)
    assert [path.name for path in subject.masks] == ["benign (2)_mask.png"]


def test_an_empty_prompt_is_a_prompt(busi):
    (subject,) = choose_subjects([], "", busi / "benign" / "benign (2)_mask.png", BREAST)
    assert subject.prompt == ""


def test_a_mask_for_the_class_normal_and_an_empty_one_for_a_lesion_are_refused():
    with pytest.raises(ValueError, match=r"m\.png: a lesion mask for the class normal"):
        check_mask("normal", False, True, "m.png")
    with pytest.raises(ValueError, match=r"m\.png: an empty mask for the class malignant"):
        check_mask("malignant", True, False, "m.png")
    check_mask("normal", False, False, "m.png")
    check_mask("benign", True, True, "m.png")
    check_mask("cyst", None, False, "m.png")
    check_mask("cyst", None, True, "m.png")
