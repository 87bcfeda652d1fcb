"""Files of scanners: DICOM, and volumes of one slice (MetaImage, NIfTI). Pixels, spacing and whose they are.

Only the pixels leave such a file, with the millimetres of one: no name, date, number or private element is copied. The
libraries are those of the extra `medical`.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm_us.runtime.checks import check_extra

DICOM = (".dcm", ".dicom", ".ima")
VOLUMES = (".mhd", ".mha", ".nii", ".nii.gz", ".raw", ".zraw")  # the pixels of an .mhd lie in a .raw beside it
COLOURED = 8  # grey levels between the channels of a pixel, above which it has a colour
CENTIMETRES = 3  # of PhysicalUnits in a region of an ultrasound image
TWO_DIMENSIONAL = 1  # of RegionSpatialFormat
Spacing = tuple[float, float]  # mm from one pixel to the next: down, across


@dataclass(frozen=True)
class Header:
    """What is known of a file without its pixels."""

    spacing: Spacing | None = None
    patient: str = ""  # to be compared within a dataset, and never to be written anywhere
    burned_in: bool = False  # the file says that its pixels hold annotations, which may be names


def is_medical(path: Path) -> bool:
    """Say whether a file is one of a scanner, by its name."""
    return path.name.lower().endswith((*DICOM, *VOLUMES))


def pixels_of(path: Path) -> Path:
    """The file that holds the pixels: of an .mhd that beside it, so that a digest of it is one of the image."""
    beside = [path.with_suffix(end) for end in (".raw", ".zraw")] if path.suffix.lower() == ".mhd" else []
    return next((one for one in beside if one.is_file()), path)


def open_medical(path: Path) -> Image.Image:
    """The one picture of such a file, 8-bit grey. Raise ValueError, in a sentence, for what has no grey levels."""
    if path.name.lower().endswith(DICOM):
        return open_dicom(path)
    array = np.squeeze(volume(path, pixels=True))
    if array.ndim != 2:
        raise ValueError(f"{path} holds a volume or frames of {array.shape}, not one picture. Save each as a file.")
    if array.min() < 0 or array.max() > 255 or (array != np.rint(array)).any():
        raise ValueError(
            f"{path} has levels from {array.min():g} to {array.max():g}, and which are black and white is not known. "
            "Save whole numbers from 0 to 255."
        )
    return Image.fromarray(array.astype(np.uint8))


def read_header(path: Path) -> Header:
    """What a file of a scanner says beside its pixels; nothing of any other file."""
    if not is_medical(path):
        return Header()
    if not path.name.lower().endswith(DICOM):
        across, down = volume(path, pixels=False)[:2]
        return Header((float(down), float(across)))
    data = read_dicom(path, pixels=False)
    burned_in = str(data.get("BurnedInAnnotation", "")).upper() == "YES"
    return Header(spacing_of(data), str(data.get("PatientID", "") or data.get("PatientName", "")), burned_in)


def volume(path: Path, pixels: bool) -> Any:
    """The levels (slices, down, across) of a MetaImage or NIfTI file, or its spacing (across, down, ...) alone."""
    check_extra("medical", "SimpleITK")
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    header = path.with_suffix(".mhd") if path.suffix.lower() in (".raw", ".zraw") else path
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(header))
    try:
        if pixels:
            return SimpleITK.GetArrayFromImage(reader.Execute())
        reader.ReadImageInformation()
        return reader.GetSpacing()
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1]
        raise ValueError(f"{header} cannot be read as a volume ({last}). Copy it again from its source.") from error


def read_dicom(path: Path, pixels: bool) -> Any:
    """The data set of a DICOM file."""
    check_extra("medical", "pydicom")
    import pydicom

    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except Exception as error:  # whatever pydicom stumbles over in a damaged file
        raise ValueError(f"{path} is not a DICOM file ({error}). Copy it again from its source.") from error


def open_dicom(path: Path) -> Image.Image:
    """The one frame of a DICOM file, grey; black and white are swapped where MONOCHROME1 says so."""
    data = read_dicom(path, pixels=True)
    frames, kind = int(data.get("NumberOfFrames", 1) or 1), str(data.get("PhotometricInterpretation", ""))
    if frames > 1:
        raise ValueError(f"{path} holds {frames} frames, not one picture. Save the frames that count, each as a file.")
    if "PixelData" not in data:
        raise ValueError(f"{path} is DICOM without pixels. Leave it out.")
    if int(data.BitsStored) > 8 or int(data.get("PixelRepresentation", 0)):
        raise ValueError(f"{path} has {data.BitsStored} bits a pixel, and its window is a choice. Save it with 8 bits.")
    if not kind.startswith(("MONOCHROME", "RGB", "YBR")):
        raise ValueError(f"{path} has colours of the kind {kind or 'unknown'}. Save it as grey or RGB.")
    from pydicom.pixels import pixel_array

    try:
        array = np.asarray(pixel_array(data))  # YBR becomes RGB
    except Exception as error:  # of the plugins that decode compressed pixels
        raise ValueError(f"{path}: its pixels cannot be decoded ({error}). Save it without compression.") from error
    if array.ndim == 3:
        if np.ptp(array.astype(np.int16), axis=2).max() > COLOURED:
            raise ValueError(f"{path} is in true colours, such as Doppler. Leave it out, or save its grey part.")
        return Image.fromarray(array).convert("L")
    levels = array.astype(np.uint8)
    return Image.fromarray(2 ** int(data.BitsStored) - 1 - levels if kind == "MONOCHROME1" else levels)


def spacing_of(data: Any) -> Spacing | None:
    """Millimetres of a pixel: PixelSpacing, else the one that all two-dimensional regions in centimetres have."""
    with contextlib.suppress(TypeError, ValueError, AttributeError):
        if data.get("PixelSpacing"):
            down, across = map(float, data.PixelSpacing)
            return (down, across) if min(down, across) > 0 else None
        regions = [
            (10 * abs(float(one.PhysicalDeltaY)), 10 * abs(float(one.PhysicalDeltaX)))
            for one in data.get("SequenceOfUltrasoundRegions", [])
            if one.get("RegionSpatialFormat", TWO_DIMENSIONAL) == TWO_DIMENSIONAL
            and one.get("PhysicalUnitsXDirection") == one.get("PhysicalUnitsYDirection") == CENTIMETRES
        ]
        if len(set(regions)) == 1 and min(regions[0]) > 0:
            return regions[0]
    return None
