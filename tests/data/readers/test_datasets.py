"""Readers of every layout: what lies in a folder says which it is, and all of them give the same kind of record."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_us.data.organ import BREAST
from ldm_us.data.readers.busi import read_busi
from ldm_us.data.readers.datasets import KNOWN, find_dataset, read_dataset, read_whole
from ldm_us.data.records import load_pair

BLACK, RED, GREEN, WHITE = (0, 0, 0), (255, 0, 0), (0, 255, 0), (255, 255, 255)


def save(path: Path, *colours: tuple[int, int, int], mode: str = "RGB") -> Path:
    """Write an image of 8x8 pixels with one pixel of each colour on black."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (8, 8))
    for i, colour in enumerate(colours):
        picture.putpixel((i, 3), colour)
    picture.convert(mode).save(path)
    return path


def busbra(root: Path) -> Path:
    rows = [("bus_0001-l", 1, "malignant"), ("bus_0001-r", 1, "malignant"), ("bus_0017-s", 17, "benign")]
    for name, _, _ in rows:
        save(root / "Images" / f"{name}.png", mode="L")
        save(root / "Masks" / f"{name.replace('bus', 'mask')}.png", WHITE, mode="1")
    lines = [f'{name},{case},"a, b",{pathology},4' for name, case, pathology in rows]
    (root / "bus_data.csv").write_text("\n".join(["ID,Case,Histology,Pathology,BIRADS", *lines]) + "\n")
    return root


def dataset_b(root: Path) -> Path:
    for name in ("000001", "000002"):
        save(root / "original" / f"{name}.png", mode="L")
        save(root / "GT" / f"{name}.png", WHITE, mode="L")
    (root / "DatasetB.csv").write_text("Image,Type,Diagnosis\n1,Benign,CYST\n000002,Malignant,IDC\n")
    return root


def dataset_b_sorted(root: Path) -> Path:
    for label, name in (("benign", "000001"), ("malignant", "000002")):
        save(root / label / f"{name}.png", mode="L")
        save(root / "GT" / f"{name}.png", WHITE, mode="L")
    return root


def breast(root: Path) -> Path:
    for name in ("case001", "case002", "case003"):
        save(root / f"{name}.png")
    for name in ("case001_tumor", "case001_other1", "case003_tumor"):
        save(root / f"{name}.png", WHITE, mode="1")
    (root / "clinical data.csv").write_text(
        "CaseID;Image_filename;Mask_tumor_filename;Mask_other_filename;Classification\n"
        "1;case001.png;case001_tumor.png;case001_other1.png;benign\n"
        "2;case002.png;;;normal\n"
        "3;case003.png;case003_tumor.png;;malignant\n"
    )
    return root


def bus_uclm(root: Path) -> Path:
    masks = {"ALWI_000": (), "ALWI_001": (GREEN,), "ANAT_000": (RED,), "ANAT_001": (GREEN, RED)}
    for name, colours in masks.items():
        save(root / "images" / f"{name}.png")
        save(root / "masks" / f"{name}.png", *colours)
    return root


def busi(root: Path) -> Path:
    for label in BREAST.classes:
        save(root / label / f"{label} (9001).png")
        save(root / label / f"{label} (9001)_mask.png", *((WHITE,) if label != "normal" else ()), mode="1")
    return root


def imagefolder(root: Path) -> Path:
    save(root / "a.png")
    (root / "metadata.csv").write_text("file_name,text,class\na.png,a cyst,benign\n")
    return root


def ddti(root: Path) -> Path:
    """One case of two images, of which one has an outline, and one without a score."""
    for name in ("7_1", "7_2", "12_1"):
        save(root / f"{name}.jpg", mode="L")
    points = json.dumps([{"points": [{"x": x, "y": y} for x, y in ((1, 1), (4, 1), (4, 3), (1, 3))]}])
    mark = f"<mark><image>1</image><svg>{points}</svg></mark>"
    (root / "7.xml").write_text(f"<case><number>7</number><age>49</age><tirads>4a</tirads>{mark}</case>")
    (root / "12.xml").write_text("<case><number>12</number><tirads></tirads></case>")
    return root


def tn3k(root: Path) -> Path:
    for part in ("trainval", "test"):
        save(root / f"{part}-image" / "0000.jpg", mode="L")
        save(root / f"{part}-mask" / "0000.png", WHITE, mode="L")
    return root


def coco(root: Path) -> Path:
    """As CVAT writes it: outlines of two structures in one image, a box in another, nothing in the third."""
    for name in ("a", "b", "c"):
        save(root / "images" / "default" / f"{name}.png", mode="L")
    images = [
        {"id": i, "width": 8, "height": 8, "file_name": f"default/{name}.png"} for i, name in enumerate("abc", start=1)
    ]
    square, corner = [2, 1, 6, 1, 6, 4, 2, 4], [0, 5, 3, 5, 3, 8, 0, 8]
    shapes = [
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [square]},
        {"id": 2, "image_id": 1, "category_id": 2, "segmentation": [corner]},
        {"id": 3, "image_id": 2, "category_id": 2, "segmentation": [], "bbox": [0, 0, 2, 2]},
    ]
    categories = [{"id": 1, "name": "Cyst"}, {"id": 2, "name": "nodule"}]
    (root / "annotations").mkdir(parents=True)
    table = {"images": images, "annotations": shapes, "categories": categories}
    (root / "annotations" / "instances_default.json").write_text(json.dumps(table))
    return root


def captions(root: Path) -> Path:
    """As kohya has them."""
    for name in ("a", "b"):
        save(root / f"{name}.png")
        (root / f"{name}.txt").write_text(f"a scan of {name}\n")
    save(root / "a_mask.png", WHITE, mode="L")
    return root


def described(root: Path) -> Path:
    """Class folders of any names."""
    save(root / "benign" / "x1.png")
    save(root / "benign" / "x1_mask.png", WHITE, mode="L")
    save(root / "healthy" / "y.png")
    about = {"template": "Ultrasound image of a {label} thyroid", "classes": ["benign", "healthy"]}
    (root / "dataset.json").write_text(json.dumps(about | {"without": ["healthy"]}))
    return root


MAKERS = {
    "BUSI": busi,
    "BUS-BRA": busbra,
    "dataset B": dataset_b,
    "BrEaST": breast,
    "BUS-UCLM": bus_uclm,
    "imagefolder": imagefolder,
    "DDTI": ddti,
    "TN3K": tn3k,
    "COCO": coco,
    "captions": captions,
    "described": described,
}
OTHER_ORGANS = [ddti, tn3k, coco, captions, described]
WITH_TEMPLATE = [busi, busbra, dataset_b, dataset_b_sorted, breast, bus_uclm]
every_layout = pytest.mark.parametrize(("layout", "make"), MAKERS.items(), ids=MAKERS.keys())


@every_layout
def test_every_layout_is_recognised_as_itself_and_in_the_folder_that_holds_it(tmp_path, layout, make):
    root = make(tmp_path / "outer" / "inner")
    assert find_dataset(root) == find_dataset(tmp_path / "outer") == (root, [layout])
    assert read_whole(root).layout == layout
    assert read_dataset(root) == read_dataset(tmp_path / "outer")
    assert layout in KNOWN or layout == "imagefolder"


@pytest.mark.parametrize("make", [*WITH_TEMPLATE, imagefolder])
def test_every_record_loads_and_its_mask_has_a_lesion_where_its_class_has_one(tmp_path, make):
    records = read_dataset(make(tmp_path))
    assert records
    for record in records:
        assert record.label in BREAST.classes
        _, hint = load_pair(record, 8)
        if record.masks:
            assert bool(hint.any()) == (record.label != "normal")


def test_no_two_datasets_share_a_group(tmp_path):
    groups = [record.group for name, make in MAKERS.items() for record in read_dataset(make(tmp_path / name))]
    prefixes = {group.split(":")[0].split(" ")[0] for group in groups}
    assert prefixes == {
        "busi",
        "bus-bra",
        "dataset-b",
        "breast",
        "bus-uclm",
        "imagefolder",
        "ddti",
        "tn3k",
        "coco",
        "images",
    }


def test_prompts_start_as_the_papers_say_the_class_once_and_tell_the_datasets_apart(tmp_path):
    prompts = {}
    for make in (busi, busbra, dataset_b, breast, bus_uclm):
        for record in read_dataset(make(tmp_path / make.__name__)):
            assert record.prompt.startswith(f"Ultrasound image of a {record.label} breast")
            assert [label for label in BREAST.classes if label in record.prompt] == [record.label]
            prompts.setdefault(record.prompt.replace(record.label, "CLASS").lower(), set()).add(make)
    assert len(prompts) == 5
    assert all(len(made_by) == 1 for made_by in prompts.values())


def test_the_records_do_not_depend_on_where_the_folder_lies(tmp_path):
    for name, make in MAKERS.items():
        here = read_dataset(make(tmp_path / "here" / name))
        there = read_dataset(shutil.copytree(tmp_path / "here" / name, tmp_path / "there" / f"renamed {name}"))
        facts = [[(r.image.name, r.label, r.prompt, r.group) for r in records] for records in (here, there)]
        assert facts[0] == facts[1]


def test_a_busi_folder_reads_as_before(tmp_path):
    assert read_dataset(busi(tmp_path)) == read_busi(tmp_path)


def test_images_of_one_case_of_bus_bra_are_a_group(tmp_path):
    left, right, single = read_dataset(busbra(tmp_path))
    assert left.group == right.group == "bus-bra:1"
    assert single.group == "bus-bra:17"
    assert (left.label, single.label) == ("malignant", "benign")
    assert right.masks == (tmp_path / "Masks" / "mask_0001-r.png",)


@pytest.mark.parametrize("make", [dataset_b, dataset_b_sorted])
def test_both_layouts_of_dataset_b_give_the_same_classes_masks_and_groups(tmp_path, make):
    first, second = read_dataset(make(tmp_path))
    assert (first.label, first.group) == ("benign", "dataset-b:000001")
    assert (second.label, second.group) == ("malignant", "dataset-b:000002")
    assert first.masks == (tmp_path / "GT" / "000001.png",)


def test_dataset_b_sorted_without_masks_has_none(tmp_path):
    shutil.rmtree(dataset_b_sorted(tmp_path) / "GT")
    assert [record.masks for record in read_dataset(tmp_path)] == [(), ()]


def test_the_lesion_of_breast_is_the_tumour_that_the_class_is_about(tmp_path):
    records = read_dataset(breast(tmp_path))
    assert [record.label for record in records] == ["benign", "normal", "malignant"]
    assert [[mask.name for mask in record.masks] for record in records] == [
        ["case001_tumor.png"],
        [],
        ["case003_tumor.png"],
    ]
    assert [record.group for record in records] == ["breast:1", "breast:2", "breast:3"]


def test_the_class_of_bus_uclm_is_the_colour_and_any_colour_is_lesion(tmp_path):
    """Both colours: malignant, as a report would name the image, with both lesions in the mask."""
    records = read_dataset(bus_uclm(tmp_path))
    assert [record.label for record in records] == ["normal", "benign", "malignant", "malignant"]
    assert [int(load_pair(record, 8)[1].sum()) for record in records] == [0, 1, 1, 2]
    assert Counter(record.group for record in records) == {"bus-uclm:ALWI": 2, "bus-uclm:ANAT": 2}


def test_metadata_decide_over_every_other_layout(tmp_path):
    imagefolder(busi(tmp_path))
    assert find_dataset(tmp_path)[1] == ["imagefolder"]


def test_a_folder_of_several_datasets_is_refused_and_each_is_named(tmp_path):
    busi(tmp_path / "one")
    busbra(tmp_path / "two")
    with pytest.raises(ValueError, match=r"several datasets: one \(BUSI\), two \(BUS-BRA\)\. Give each"):
        read_dataset(tmp_path)


def test_an_unknown_folder_is_one_sentence_that_says_what_is_known_and_what_was_found(tmp_path):
    with pytest.raises(ValueError, match=r"images with metadata\.jsonl or metadata\.csv: it holds nothing"):
        read_dataset(tmp_path)
    save(tmp_path / "photo.png")
    (tmp_path / "notes").mkdir()
    with pytest.raises(ValueError, match=r"is not BUSI .*it holds notes/, photo\.png\. Give") as error:
        read_dataset(tmp_path)
    assert all(name in str(error.value) for name in MAKERS if name != "imagefolder")
    assert "\n" not in str(error.value)


def test_a_missing_folder_and_a_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="none does not exist"):
        read_dataset(tmp_path / "none")
    with pytest.raises(ValueError, match="is a file, not a folder"):
        read_dataset(save(tmp_path / "a.png"))


def delete(name):
    return lambda root: (root / name).unlink()


def write(name, text):
    return lambda root: (root / name).write_text(text)


@pytest.mark.parametrize(
    ("make", "damage", "sentence"),
    [
        (busbra, delete("bus_data.csv"), r"holds no bus_data\.csv"),
        (busbra, delete("Images/bus_0017-s.png"), r"bus_data\.csv line 4: 'Images/bus_0017-s\.png' is not a file"),
        (busbra, delete("Masks/mask_0001-r.png"), r"line 3: 'Masks/mask_0001-r\.png' is not a file"),
        (busbra, write("bus_data.csv", "ID,Case\nbus_0001-l,1\n"), "has no column Pathology, only ID, Case"),
        (busbra, write("bus_data.csv", "ID,Case,Pathology\nbus_0001-l,1,cyst\n"), r"line 2: the class is 'cyst'"),
        (busbra, write("bus_data.csv", "ID,Case,Pathology\nbus_0001-l,,benign\n"), "line 2: 'bus_0001-l' has no Case"),
        (dataset_b, delete("DatasetB.csv"), "holds no table with the classes"),
        (dataset_b, delete("GT/000002.png"), r"GT/000002\.png is missing, the mask of"),
        (dataset_b, delete("original/000002.png"), r"DatasetB\.csv line 3: '000002\.png' is not a file"),
        (dataset_b, write("DatasetB.csv", "Image,Type\n1,Benign\n000001,Benign\n"), "named by .*line 2 already"),
        (dataset_b, write("more.csv", ""), r"several tables \(DatasetB\.csv, more\.csv\)"),
        (breast, delete("clinical data.csv"), "holds no table with the classes"),
        (breast, delete("case001_tumor.png"), r"line 2: 'case001_tumor\.png' is not a file"),
        (bus_uclm, delete("masks/ALWI_001.png"), r"ALWI_001\.png is missing, and with it the class of"),
        (bus_uclm, lambda root: save(root / "masks/ALWI_001.png", WHITE), "neither red nor green"),
    ],
)
def test_what_is_missing_or_wrong_is_one_sentence_with_its_place(tmp_path, make, damage, sentence):
    damage(make(tmp_path))
    with pytest.raises(ValueError, match=sentence) as error:
        read_dataset(tmp_path)
    assert "\n" not in str(error.value)


def test_the_same_number_in_both_classes_of_dataset_b_is_refused(tmp_path):
    save(dataset_b_sorted(tmp_path) / "malignant" / "000001.png")
    with pytest.raises(ValueError, match=r"malignant/000001\.png: '000001\.png' is named by .*benign/000001\.png"):
        read_dataset(tmp_path)


def test_a_case_of_breast_that_is_twice_in_the_table_is_refused(tmp_path):
    table = breast(tmp_path) / "clinical data.csv"
    table.write_text(table.read_text() + "1;case001.png;;;benign\n")
    with pytest.raises(ValueError, match=r"line 5: 'case001\.png' is named by .*line 2 already"):
        read_dataset(tmp_path)


def test_a_pixel_that_is_dim_in_every_channel_is_refused_when_loaded(tmp_path):
    save(bus_uclm(tmp_path) / "masks" / "ALWI_000.png", (90, 0, 0))
    with pytest.raises(ValueError, match="brightest pixel is 90"):
        load_pair(read_dataset(tmp_path)[0], 8)


def test_reading_opens_no_image_but_the_masks_that_hold_the_class(tmp_path):
    for make in (busi, busbra, dataset_b, breast):
        root = make(tmp_path / make.__name__)
        for path in root.rglob("*.png"):
            path.write_bytes(b"")
        assert len(read_dataset(root)) >= 2


def test_a_coloured_mask_counts_wherever_one_channel_is_bright(tmp_path):
    """The luma of pure red is 76 and of pure blue 29, below the threshold of 127; that of pure green is 150."""
    root = busi(tmp_path)
    path = root / "benign" / "benign (9001)_mask.png"
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0, :4] = RED, GREEN, (0, 0, 255), (127, 127, 127)
    Image.fromarray(pixels).save(path)
    assert load_pair(read_dataset(root)[0], 8)[1][0, 0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
