"""Audit: every oddity of a dataset is found, named and counted, and the exit code says whether it can be used."""

from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from ldm_us.data.__main__ import main
from ldm_us.data.audit.findings import audit_folder, audit_groups
from ldm_us.data.audit.text import format_audit, format_groups, format_names
from ldm_us.runtime.entry import run_command


def image(root: Path, name: str, size: tuple[int, int] = (8, 6), mode: str = "L") -> Path:
    """Write a grey image; its class is the first word of its name."""
    path = root / name.split()[0] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, 80).convert(mode).save(path)
    return path


def mask(root: Path, name: str, size: tuple[int, int] = (8, 6), mode: str = "1", drawn: bool = True) -> Path:
    """Write a mask with one white pixel, or none."""
    path = image(root, name)
    picture = Image.new("L", size, 0)
    if drawn:
        picture.putpixel((1, 1), 255)
    picture.convert(mode).save(path)
    return path


def clean(root: Path) -> Path:
    """Write one clean image of each class with its mask."""
    for label in ("benign", "malignant", "normal"):
        image(root, f"{label} (1).png")
        mask(root, f"{label} (1)_mask.png", drawn=label != "normal")
    return root


def report(folder: Path) -> str:
    """Write the findings about one folder."""
    audit = audit_folder(folder)
    return format_audit(audit, audit_groups([audit], 0.1).of_folder[0])


def test_a_clean_folder_has_no_findings_and_exit_code_0(tmp_path, capsys):
    audit = audit_folder(clean(tmp_path))
    assert audit.usable
    assert main(["audit", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    groups = audit_groups([audit], 0.1)
    assert printed == f"{format_audit(audit, groups.of_folder[0])}\n{format_groups([audit], groups, 0.1)}\n"
    assert "3 images (1 benign, 1 malignant, 1 normal)" in printed
    assert "cannot be read: 0" in printed


def test_a_picture_that_does_not_become_grey_is_named_and_ends_nothing(tmp_path, capsys):
    path = image(clean(tmp_path), "benign (2).png")
    Image.new("LAB", (8, 6)).save(path, format="TIFF")
    assert main(["audit", str(tmp_path)]) == 1
    assert f"{path} has mode LAB" in capsys.readouterr().out


def test_masks_with_lesions_smaller_than_a_pixel_are_named(tmp_path):
    image(clean(tmp_path), "benign (2).png", (800, 1000))
    drawn = Image.new("L", (800, 1000))
    drawn.paste(255, (500, 404, 504, 408))
    drawn.save(tmp_path / "benign" / "benign (2)_mask.png")
    assert "smaller than a pixel at 128x128, each kept as one pixel: 1: benign (2).png" in report(tmp_path)


def test_sizes_and_modes_are_counted(tmp_path):
    image(tmp_path, "benign (1).png", (10, 40))
    image(tmp_path, "benign (2).png", (30, 20), "RGB")
    image(tmp_path, "benign (3).png", (30, 20), "RGB")
    mask(tmp_path, "benign (1)_mask.png", (10, 40), "1")
    mask(tmp_path, "benign (2)_mask.png", (30, 20), "RGBA")
    mask(tmp_path, "benign (3)_mask.png", (30, 20), "RGB")
    text = report(tmp_path)
    assert "image sizes (width x height): 10-30 x 20-40, most common 30x20 (2 images)" in text
    assert "image modes: RGB 2, L 1\n" in text
    assert "mask modes: 1 1, RGB 1, RGBA 1\n" in text


def test_images_with_two_and_three_masks_are_named_with_their_count(tmp_path):
    for number, count in ((1, 1), (2, 2), (3, 3)):
        image(tmp_path, f"benign ({number}).png")
        for nth in range(count):
            mask(tmp_path, f"benign ({number})_mask" + (f"_{nth}" if nth else "") + ".png")
    assert audit_folder(tmp_path).found["several_masks"] == ["benign (2).png (2)", "benign (3).png (3)"]


def test_a_lesion_without_a_mask_is_found_and_a_normal_image_without_one_is_not(tmp_path):
    for label in ("benign", "malignant", "normal"):
        image(tmp_path, f"{label} (1).png")
    audit = audit_folder(tmp_path)
    assert audit.usable
    assert "\nlesion images without a mask: 2: benign (1).png, malignant (1).png\n" in report(tmp_path)


def test_a_lesion_is_called_empty_only_when_all_its_masks_are(tmp_path):
    for number, drawn in enumerate([(False, False), (False, True), (True, False)], start=1):
        image(tmp_path, f"malignant ({number}).png")
        mask(tmp_path, f"malignant ({number})_mask.png", drawn=drawn[0])
        mask(tmp_path, f"malignant ({number})_mask_1.png", drawn=drawn[1])
    assert audit_folder(tmp_path).usable
    assert "\nlesion images whose masks are all empty: 1: malignant (1).png\n" in report(tmp_path)


def test_a_normal_image_with_a_drawn_mask_is_found(tmp_path):
    for number, drawn in ((1, True), (2, False)):
        image(tmp_path, f"normal ({number}).png")
        mask(tmp_path, f"normal ({number})_mask.png", mode="RGB", drawn=drawn)
    assert audit_folder(tmp_path).found["normal_with_lesion"] == ["normal (1).png"]


def test_a_mask_of_another_size_is_found_and_gives_exit_code_1(tmp_path):
    mask(clean(tmp_path), "benign (1)_mask_1.png", (6, 8))
    assert audit_folder(tmp_path).found["other_size"] == ["benign (1)_mask_1.png (6x8, image 8x6)"]
    assert main(["audit", str(tmp_path)]) == 1


def test_damaged_images_and_masks_are_found_and_give_exit_code_1(tmp_path, capsys):
    whole = image(clean(tmp_path), "benign (2).png", (90, 90)).read_bytes()
    (tmp_path / "benign" / "benign (2).png").write_bytes(whole[: len(whole) - 30])
    (tmp_path / "malignant" / "malignant (1)_mask.png").write_text("not a mask")
    audit = audit_folder(tmp_path)
    assert len(audit.unreadable) == 2
    assert main(["audit", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "cannot be read: 2" in printed
    assert "benign (2).png is damaged" in printed
    assert "malignant (1)_mask.png is not an image" in printed


def test_a_mask_of_zeros_and_ones_cannot_be_used(tmp_path):
    path = mask(clean(tmp_path), "benign (1)_mask.png", mode="L")
    Image.open(path).point(lambda v: v // 255).save(path)
    (sentence,) = audit_folder(tmp_path).unreadable
    assert "brightest pixel is 1" in sentence


def test_orphan_masks_and_stray_files_are_named_and_can_be_lived_with(tmp_path):
    mask(clean(tmp_path), "benign (5)_mask.png")
    (tmp_path / "normal" / "Thumbs.db").touch()
    assert audit_folder(tmp_path).usable
    text = report(tmp_path)
    assert "\nleft out, masks whose image is missing: 1 (benign (5)_mask.png)\n" in text
    assert "\nleft out, not pictures: 1 (Thumbs.db)\n" in text


def test_an_empty_class_folder_is_refused_as_train_py_refuses_it(tmp_path, capsys):
    clean(tmp_path)
    for path in (tmp_path / "normal").iterdir():
        path.unlink()
    assert run_command(partial(main, ["audit", str(tmp_path)])) == 2
    assert "no image in normal. Add files" in capsys.readouterr().err


def test_families_are_counted_when_two_members_are_present_and_conflicts_are_named(tmp_path):
    """benign (108) and (61) are one family; benign (42) and malignant (51) another; benign (139) is alone here."""
    for name in ("benign (108)", "benign (61)", "benign (42)", "malignant (51)", "benign (139)", "benign (9001)"):
        image(tmp_path, f"{name}.png")
    (found,) = audit_groups([audit_folder(tmp_path)], 0.1).of_folder
    assert [len(family) for family in found.families] == [2, 2]
    assert found.not_listed == ["benign (9001).png"]
    assert (found.listed, found.found_again) == (2, 0), "flat images: nothing to compare"
    text = report(tmp_path)
    assert "near-duplicate families: 2, holding 4 images (2 surplus)" in text
    assert "families with conflicting classes: 1: [benign (42).png, malignant (51).png]" in text
    assert "families of the shipped list: 2, found again by comparing: 0" in text
    assert "images not in the near-duplicate list: 1: benign (9001).png" in text


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0"), (2, "2: 0, 1"), (8, "8: 0, 1, 2, 3, 4, 5, 6, 7"), (10, "10: 0, 1, 2, 3, 4, 5, 6, 7 and 2 more")],
)
def test_long_lists_are_cut_with_a_count(n, text):
    assert format_names([str(i) for i in range(n)]) == text


@pytest.mark.parametrize("folder", ["none", "empty"])
def test_a_wrong_folder_is_one_sentence_on_stderr_and_exit_code_2(tmp_path, capsys, folder):
    (tmp_path / "empty").mkdir()
    assert run_command(partial(main, ["audit", str(tmp_path / folder)])) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {tmp_path / folder} ")
    assert captured.err.count("\n") == 1


def test_help_tells_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["audit", "--help"])
    assert stop.value.code == 0
    assert "exit codes: 0 all files can be used" in capsys.readouterr().out
