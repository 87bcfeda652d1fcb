"""Files of scanners: grey levels and millimetres come out of them, and no name, number or private element."""

import json

import numpy as np
import pytest

from ldm_us.data.medical import read_header
from ldm_us.data.opening import open_image, open_mask
from ldm_us.data.readers.datasets import read_dataset, read_whole
from ldm_us.data.records import load_mask

NAME = "Mustermann^Erika"
PIXELS = np.arange(48, dtype=np.uint8).reshape(6, 8)


def dicom(path, pixels=PIXELS, kind="MONOCHROME2", patient="P-17", **elements):
    """A file of one frame, written as a scanner does: with names and a private element."""
    pydicom = pytest.importorskip("pydicom", reason="the extra medical is not installed")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.6.1", pydicom.uid.generate_uid()
    data.PatientName, data.PatientID = NAME, patient
    data.private_block(0x0011, "Somebody", create=True).add_new(0x01, "LO", NAME)
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = (3 if pixels.ndim == 3 else 1), kind
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def test_grey_levels_are_taken_as_they_are_and_swapped_where_the_file_says_so(tmp_path):
    assert (np.asarray(open_image(dicom(tmp_path / "a.dcm"))) == PIXELS).all()
    assert (np.asarray(open_image(dicom(tmp_path / "b.dcm", kind="MONOCHROME1"))) == 255 - PIXELS).all()
    grey = np.repeat(PIXELS[..., None], 3, axis=2)
    assert (np.asarray(open_image(dicom(tmp_path / "c.dcm", grey, "RGB"))) == PIXELS).all()


@pytest.mark.parametrize(
    ("elements", "sentence"),
    [
        ({"NumberOfFrames": 3, "pixels": np.stack([PIXELS] * 3)}, "holds 3 frames, not one picture"),
        ({"pixels": np.eye(3, dtype=np.uint8)[None].repeat(2, 0) * 255, "kind": "RGB"}, "is in true colours"),
        ({"BitsStored": 12, "BitsAllocated": 16, "HighBit": 11}, "has 12 bits a pixel"),
        ({"kind": "PALETTE COLOR"}, "has colours of the kind PALETTE COLOR"),
    ],
)
def test_a_file_without_one_grey_picture_is_one_sentence(tmp_path, elements, sentence):
    path = dicom(tmp_path / "a.dcm", **elements)
    with pytest.raises(ValueError, match=sentence) as error:
        open_image(path)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_dicom_is_one_sentence(tmp_path):
    pytest.importorskip("pydicom", reason="the extra medical is not installed")
    (tmp_path / "a.dcm").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"a\.dcm is not a DICOM file \(.*Copy it again"):
        open_image(tmp_path / "a.dcm")


def test_the_size_of_a_pixel_is_that_of_the_file_or_of_its_regions_where_these_agree(tmp_path):
    path = dicom(tmp_path / "a.dcm", PixelSpacing=[0.1, 0.2])
    pydicom = pytest.importorskip("pydicom", reason="the extra medical is not installed")

    def region(delta, unit=3):
        one = pydicom.Dataset()
        one.PhysicalDeltaX, one.PhysicalDeltaY = delta, delta / 2
        one.PhysicalUnitsXDirection = one.PhysicalUnitsYDirection = unit
        one.RegionSpatialFormat = 1
        return one

    assert read_header(path).spacing == (0.1, 0.2)
    for regions, spacing in (
        ([region(0.02)], (0.1, 0.2)),
        ([region(0.02), region(0.04)], None),
        ([region(0.02), region(9, unit=4)], (0.1, 0.2)),
        ([], None),
    ):
        assert read_header(dicom(tmp_path / "b.dcm", SequenceOfUltrasoundRegions=regions)).spacing == spacing


def test_patients_are_groups_with_a_number_and_nothing_else_of_a_file_is_told(tmp_path):
    for i, patient in enumerate(("P-17", "P-4", "P-17")):
        dicom(tmp_path / f"{i}.dcm", PIXELS + i, patient=patient, PixelSpacing=[0.1, 0.1], BurnedInAnnotation="YES")
    reading = read_whole(tmp_path)
    assert [record.group.partition(":")[2] for record in reading.records] == ["patient 1", "patient 2", "patient 1"]
    assert [record.spacing for record in reading.records] == [(0.1, 0.1)] * 3
    assert "3 DICOM files say that text is burned into the picture: look whether it is a name" in reading.notes
    told = repr(reading) + repr([open_image(record.image).info for record in reading.records])
    assert not [word for word in (NAME, "P-17", "P-4", "Somebody") if word in told]


def test_metadata_may_name_files_of_a_scanner(tmp_path):
    dicom(tmp_path / "a.dcm", PixelSpacing=[0.3, 0.3])
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.dcm", "text": "a heart"}))
    (record,) = read_dataset(tmp_path)
    assert (record.prompt, record.spacing) == ("a heart", (0.3, 0.3))


def camus(root, suffix):
    """Two frames of one patient, and a sequence."""
    sitk = pytest.importorskip("SimpleITK", reason="the extra medical is not installed")
    labels = np.zeros((1, 6, 8), np.uint8)
    labels[0, 1], labels[0, 3], labels[0, 5] = 1, 2, 3
    for phase in ("ED", "ES"):
        for name, array in ((phase, PIXELS[None]), (f"{phase}_gt", labels)):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((0.3, 0.15, 1.0))
            path = root / "patient0001" / f"patient0001_2CH_{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(image, str(path))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 6, 8), np.uint8)), str(path).replace("ES_gt", "half_sequence"))
    return root


@pytest.mark.parametrize("suffix", [".nii.gz", ".mhd"])
def test_camus_has_three_structures_in_each_frame_and_the_class_says_view_and_phase(tmp_path, suffix):
    reading = read_whole(camus(tmp_path, suffix))
    assert reading.layout == "CAMUS"
    first, second = reading.records
    assert (first.label, second.label) == ("2CH ED", "2CH ES")
    assert (first.prompt, first.group) == ("Ultrasound image of a heart, 2CH ED, from CAMUS", "camus:patient0001")
    assert first.spacing == pytest.approx((0.15, 0.3))
    assert (np.asarray(open_image(first.image)) == PIXELS).all()
    assert first.structures == ("left ventricle", "myocardium", "left atrium")
    rows = [int(np.asarray(open_mask(mask)).any(axis=1).nonzero()[0][0]) for mask in first.masks]
    assert rows == [1, 3, 5]
    assert load_mask(first.masks, 8).sum() > 0
    assert any("sequences are not read" in note for note in reading.notes)
    assert len({first.masks[0].digest(), second.masks[1].digest()}) == 2


def test_a_volume_of_frames_and_levels_above_255_are_one_sentence(tmp_path):
    sitk = pytest.importorskip("SimpleITK", reason="the extra medical is not installed")
    for array, sentence in ((np.zeros((3, 6, 8), np.uint8), "holds a volume"), (PIXELS * np.uint16(99), "has levels")):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "a.nii"))
        with pytest.raises(ValueError, match=sentence):
            open_image(tmp_path / "a.nii")
    (tmp_path / "a.nii").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a\.nii cannot be read as a volume"):
        open_image(tmp_path / "a.nii")
