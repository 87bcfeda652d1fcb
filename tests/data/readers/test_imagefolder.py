"""Folders with metadata: what the lines say becomes records, and every line that cannot be used is named."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ldm_us.data.organ import UNKNOWN
from ldm_us.data.readers.datasets import read_dataset, read_whole
from ldm_us.data.split import split_by_group


def image(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 90).save(root / name)
    return root


def jsonl(root: Path, *lines: object) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (root / "metadata.jsonl").write_text(text + "\n", encoding="utf-8")
    return root


def line(**changes: object) -> dict[str, object]:
    return {"file_name": "a.png", "text": "a cyst"} | changes


def test_jsonl_and_csv_of_the_same_facts_give_the_same_records(tmp_path):
    one, two = (image(tmp_path / name, "a.png", "x/b.png", "x/m.png") for name in ("one", "two"))
    facts = [("a.png", "a cyst, seen twice", "", "", "p1"), ("x/b.png", "a mass", "x/m.png", "malignant", "p1")]
    keys = ("file_name", "text", "mask", "class", "group")
    jsonl(one, *(dict(zip(keys, values, strict=True)) for values in facts))
    rows = "\r\n".join(",".join(f'"{value}"' for value in values) for values in facts)
    (two / "metadata.csv").write_text(f"\ufeff{','.join(keys)}\r\n{rows}\r\n", encoding="utf-8")  # as Excel saves it
    first, second = read_dataset(one)
    assert [(r.label, r.prompt) for r in (first, second)] == [(UNKNOWN, "a cyst, seen twice"), ("malignant", "a mass")]
    assert first.group == second.group
    assert second.masks == (one / "x" / "m.png",)
    relative = [[(r.image.name, len(r.masks), r.label, r.prompt, r.group) for r in read_dataset(f)] for f in (one, two)]
    assert relative[0] == relative[1]


def test_the_text_is_taken_as_it_is(tmp_path):
    text = "  B-mode, \u00e9pais: 50% \u2014 {label} "
    assert read_dataset(jsonl(image(tmp_path, "a.png"), line(text=text)))[0].prompt == text


def test_a_json_line_may_list_several_masks(tmp_path):
    jsonl(image(tmp_path, "a.png", "m.png", "n.png"), line(mask=["m.png", "n.png"]))
    assert [mask.name for mask in read_dataset(tmp_path)[0].masks] == ["m.png", "n.png"]


def test_without_group_every_image_is_its_own_and_no_group_has_its_name(tmp_path):
    jsonl(
        image(tmp_path, "a.png", "b.png", "c.png"),
        line(),
        line(file_name="b.png"),
        line(file_name="c.png", group="a.png"),
    )
    assert len({record.group for record in read_dataset(tmp_path)}) == 3


def test_numbers_may_name_groups(tmp_path):
    jsonl(image(tmp_path, "a.png", "b.png"), line(group=7), line(file_name="b.png", group="7"))
    assert len({record.group for record in read_dataset(tmp_path)}) == 1


def test_two_folders_with_the_same_names_do_not_share_groups(tmp_path):
    one, two = (jsonl(image(tmp_path / name / "train", "a.png"), line(group=1)) for name in ("one", "two"))
    Image.linear_gradient("L").save(two / "a.png")
    assert read_dataset(one)[0].group != read_dataset(two)[0].group


def test_another_caption_changes_no_group(tmp_path):
    jsonl(image(tmp_path, "a.png"), line(group=1))
    before = read_dataset(tmp_path)[0].group
    assert read_dataset(jsonl(tmp_path, line(group=1, text="a mass")))[0].group == before


def test_empty_lines_and_other_keys_are_left_out(tmp_path):
    jsonl(image(tmp_path, "a.png"), "", line(age=50, width=[1, 2]), "   ")
    assert len(read_dataset(tmp_path)) == 1


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["{"], r"metadata\.jsonl line 1 is not JSON \("),
        ([line(), "", "text"], r"metadata\.jsonl line 3 is not JSON \("),
        (["[1]"], "line 1 is not a JSON object"),
        ([{"text": "a"}], "line 1 has no file_name that is a text"),
        ([{"file_name": "a.png"}], "line 1 has no text that is a text"),
        ([line(text=" ")], r"line 1: 'a\.png' has no text\. Write its prompt"),
        ([line(file_name="gone.png")], r"line 1: 'gone\.png' is not a file in"),
        ([line(file_name="")], "line 1: '' is not a file in"),
        ([line(mask="gone.png")], r"line 1: 'gone\.png' is not a file in"),
        ([line(mask="../a.png")], r"line 1: '\.\./a\.png' is outside"),
        ([line(mask="x/../../a.png")], "is outside"),
        ([line(file_name="/etc/passwd")], "'/etc/passwd' is outside"),
        ([line(file_name="C:\\a.png")], "is outside"),
        ([line(mask=3)], "line 1: mask must be the name of a file"),
        ([line(mask=["a.png", 3])], "line 1: mask must be"),
        ([line(), line()], r"line 2: 'a\.png' is named by .*line 1 already"),
        ([line(), line(file_name="./a.png")], r"line 2: 'a\.png' is named by .*line 1 already"),
        ([line(**{"class": "a/b"})], r"line 1: the class is 'a/b', and a class names a folder too\."),
        ([line(**{"class": 1})], "line 1: the class is 1"),
        ([line(group=[1])], r"line 1: the group is \[1\]"),
        ([""], r"metadata\.jsonl is empty"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, lines, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        read_dataset(jsonl(image(tmp_path, "a.png"), *lines))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("file_name,note\na.png,x\n", r"metadata\.csv has no column text, only file_name, note"),
        ("file_name,text,text\na.png,x,y\n", "has more than one column text"),
        ("file_name,text\n", "has no row below the names"),
        ("", "is empty. Its first row must name the columns file_name, text"),
        ("file_name,text\na.png\n", r"line 2: 'a\.png' has no text"),
        ("file_name,text\na.png,a cyst, seen twice\n", "line 2 has more cells than the first row has names"),
        ("file_name,text\n,x\n", "line 2: '' is not a file"),
        ("file_name,text\na.png,x\n\na.png,y\n", r"line 4: 'a\.png' is named by .*line 2 already"),
        ("file_name,text\na.png,x\n" + "y" * 200_000 + ",z\n", "is not CSV"),
    ],
)
def test_a_csv_that_cannot_be_used_says_where(tmp_path, text, sentence):
    (image(tmp_path, "a.png") / "metadata.csv").write_text(text)
    with pytest.raises(ValueError, match=sentence) as error:
        read_dataset(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_an_unknown_encoding_is_refused_with_its_place(tmp_path, name):
    (image(tmp_path, "a.png") / name).write_bytes(b"file_name,text\na.png,\xe9pais\n")
    with pytest.raises(ValueError, match=rf"{name} is not UTF-8 text \(byte 21\)\. Save it with the encoding UTF-8"):
        read_dataset(tmp_path)


def test_both_kinds_of_metadata_are_refused(tmp_path):
    (jsonl(image(tmp_path, "a.png"), line()) / "metadata.csv").write_text("file_name,text\na.png,x\n")
    with pytest.raises(ValueError, match=r"holds metadata\.jsonl and metadata\.csv\. Keep the one that counts"):
        read_dataset(tmp_path)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=2))
LINES = st.dictionaries(st.sampled_from(["file_name", "text", "mask", "class", "group"]), JSON | st.just("a.png"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINES, min_size=1, max_size=3))
def test_any_json_gives_records_or_one_sentence_that_names_the_file(tmp_path, lines):
    jsonl(image(tmp_path, "a.png"), *lines)
    try:
        assert len(read_dataset(tmp_path)) == len(lines)
    except ValueError as error:
        assert str(error).startswith(f"{tmp_path}/metadata.jsonl")


@pytest.mark.parametrize(
    "header",
    [
        "file_name,text,mask,class,group",
        "Image,Caption,Mask,Class,Patient ID",
        "FILE_NAME,prompt,masks,LABEL,patient_id",
        "image,text,conditioning_image,label,case",
        "file_name,text,mask_file_name,label,Patient-Id",
        "fileName,text,maskFile,label,PatientID",
        "imageFile,text,maskFileName,label,patientId",
        "FileName,Text,Mask,Label,subject",
        "filename,text,mask,label,SubjectID",
        "file_name,text,mask,label,subject_id",
    ],
)
def test_the_common_names_of_columns_are_read_in_any_letters(tmp_path, header):
    rows = [f"{i}.png,a scan,{i}_m.png,Benign,{i // 2}" for i in range(4)]
    image(tmp_path, *(f"{i}{end}.png" for i in range(4) for end in ("", "_m")))
    (tmp_path / "metadata.csv").write_text("\n".join([header, *rows]))
    reading = read_whole(tmp_path)
    assert [(r.image.name, r.prompt, [m.name for m in r.masks], r.label) for r in reading.records] == [
        (f"{i}.png", "a scan", [f"{i}_m.png"], "benign") for i in range(4)
    ]
    assert [r.group.split(":")[1] for r in reading.records] == ["group 0", "group 0", "group 1", "group 1"]
    assert (reading.notes, reading.left_out) == ([], {})


def test_no_patient_stands_on_both_sides_of_the_split_whatever_the_column_is_called(tmp_path):
    """Of five patients with four images each, three did while patient_id was not known."""
    image(tmp_path, *(f"{i}.png" for i in range(20)))
    jsonl(tmp_path, *({"file_name": f"{i}.png", "text": "a scan", "patient_id": i // 4} for i in range(20)))
    sides = [{int(r.image.stem) // 4 for r in side} for side in split_by_group(read_dataset(tmp_path), 0.2, 0)]
    assert not sides[0] & sides[1]
    assert [len(side) for side in sides] == [4, 1]


def test_every_line_may_name_its_masks_in_its_own_way(tmp_path):
    image(tmp_path, "a.png", "b.png", "c.png", "m.png")
    jsonl(
        tmp_path, line(mask="m.png"), line(file_name="b.png", masks="m.png"), line(file_name="c.png", Masks=["m.png"])
    )
    assert [len(record.masks) for record in read_dataset(tmp_path)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("facts", "unread"),
    [
        ({"age": 50, "View": "left", "empty": None}, "View, age"),
        ({"patient_id": 1, "case": 2}, "case"),
        ({"label": 3}, "label"),
        ({"label": 0}, "label"),
        ({"group": "g", "patient": ""}, ""),
    ],
)
def test_columns_that_are_not_read_are_noted(tmp_path, facts, unread):
    notes = read_whole(jsonl(image(tmp_path, "a.png"), line(**facts))).notes
    assert notes == ([f"columns of metadata.jsonl that are not read: {unread}"] if unread else [])


def test_a_label_is_a_class_where_all_are_and_else_a_note_says_which_is_none(tmp_path):
    image(tmp_path, "a.png", "b.png", "c.png")
    others = line(file_name="b.png", label="Benign"), line(file_name="c.png", label=None)
    read = read_whole(jsonl(tmp_path, line(label="malignant"), *others))
    assert [record.label for record in read.records] == ["malignant", "benign", UNKNOWN]
    assert read.notes == []
    read = read_whole(jsonl(tmp_path, line(label="left/right"), *others))
    assert [record.label for record in read.records] == [UNKNOWN] * 3, "it may say anything"
    assert read.notes == [
        "label in metadata.jsonl is not read as the class: it says 'left/right' too",
        "columns of metadata.jsonl that are not read: label",
    ]
    for key in ("label", "class"):
        read = read_whole(jsonl(tmp_path, line(**{key: "Colloid  cyst"}), *others))
        assert [record.label for record in read.records] == ["colloid cyst", "benign", UNKNOWN]
        assert [record.shows for record in read.records] == [None] * 3, "nobody described them"


def test_a_description_names_the_classes_and_a_misspelled_one_is_found(tmp_path):
    image(tmp_path, "a.png", "b.png")
    described = {"template": "Ultrasound image of a {label} thyroid", "classes": {"Benign": ["2", "3"], "none": []}}
    (tmp_path / "dataset.json").write_text(json.dumps(described | {"without": ["none"]}))
    two = jsonl(tmp_path, {"file_name": "a.png", "label": 3}, line(file_name="b.png", label="NONE"))
    records = read_dataset(two)
    assert [(r.label, r.shows, r.prompt) for r in records] == [
        ("Benign", True, "Ultrasound image of a Benign thyroid"),
        ("none", False, "a cyst"),
    ]
    for key in ("label", "class"):
        with pytest.raises(ValueError, match=r"line 1: the class is 'bening', and there are benign.*Write 'benign'"):
            read_dataset(jsonl(tmp_path, line(**{key: "bening"})))


def test_classes_that_nobody_described_and_are_nearly_one_word_get_a_note(tmp_path):
    image(tmp_path, "a.png", "b.png")
    lines = [line(label="malignant nodule"), line(file_name="b.png", label="malignat nodule")]
    assert read_whole(jsonl(tmp_path, *lines)).notes == [
        "classes malignant nodule and malignat nodule are nearly one word: is that a misspelling?"
    ]
    lines = [line(label="nodule type 1"), line(file_name="b.png", label="nodule type 2")]
    assert read_whole(jsonl(tmp_path, *lines)).notes == []


@pytest.mark.parametrize("folder", ["file_name", "image"])
def test_the_columns_of_diffusers_datasets_are_read(tmp_path, folder):
    image(tmp_path, "a.png", "m.png")
    (record,) = read_dataset(jsonl(tmp_path, {folder: "a.png", "conditioning_image": "m.png", "caption": "a heart"}))
    assert (record.image.name, [mask.name for mask in record.masks], record.prompt) == ("a.png", ["m.png"], "a heart")


def test_masks_may_have_names_and_pixels_a_size(tmp_path):
    image(tmp_path, "a.png", "b.png", "m.png", "n.png")
    lines = line(mask={"wall": "m.png", "cyst": "n.png"}, spacing=[0.1, 0.2]), line(file_name="b.png", spacing="0.5")
    reading = read_whole(jsonl(tmp_path, *lines))
    first, second = reading.records
    assert (first.structures, [mask.name for mask in first.masks]) == (("wall", "cyst"), ["m.png", "n.png"])
    assert (first.spacing, second.spacing) == ((0.1, 0.2), (0.5, 0.5))
    assert reading.notes == [
        "a pixel is 0.1 mm down in a.png and 0.5 mm in b.png: grain and sizes in pixels do not compare"
    ]
    with pytest.raises(ValueError, match=r"line 1: the spacing is -1\. Write the mm"):
        read_dataset(jsonl(tmp_path, line(spacing=-1)))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[]", "is not a table"),
        ("{", "is not JSON"),
        ('{"tempalte": "x"}', "'tempalte' is not known. Use template"),
        ('{"template": "a {class} thyroid"}', "the template is"),
        ('{"classes": "benign"}', "classes is 'benign'. Write a list"),
        ('{"classes": ["a", "a"]}', "each once"),
        ('{"classes": ["../a"]}', "'../a' cannot be a class"),
        ('{"classes": ["normal"], "without": ["norml"]}', "Write 'normal', if that is meant"),
    ],
)
def test_a_description_that_makes_no_sense_is_one_sentence(tmp_path, text, sentence):
    jsonl(image(tmp_path, "a.png"), line())
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        read_dataset(tmp_path)
    assert "\n" not in str(error.value)


def test_numbers_as_pandas_writes_them_name_groups_and_nan_is_empty(tmp_path):
    image(tmp_path, "a.png", "b.png", "c.png", "d.png")
    nan = float("nan")
    lines = [line(patient_id=0.0), line(file_name="b.png", patient_id=0, mask=nan, label=nan)]
    jsonl(tmp_path, *lines, line(file_name="c.png", patient_id=nan), line(file_name="d.png", patient_id=nan))
    records = read_dataset(tmp_path)
    assert [record.group.split(":")[1] for record in records] == ["group 0", "group 0", "file c.png", "file d.png"]
    assert [(record.masks, record.label) for record in records] == [((), UNKNOWN)] * 4
    with pytest.raises(ValueError, match=r"line 1: the group is 0\.5"):
        read_dataset(jsonl(tmp_path, line(patient_id=0.5)))
