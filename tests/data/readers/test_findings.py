"""--captions findings: what the tables of BUS-BRA and BrEaST say is said, and nothing else."""

import pytest

from ldm_us.data.readers.datasets import read_folders, records_of
from ldm_us.data.readers.findings import captioned, words_of
from tests.data.readers.test_datasets import breast, busbra

COLUMNS = "CaseID;Image_filename;Mask_tumor_filename;Classification;Shape;Margin;Echogenicity;Posterior_features;Halo"


def prompts(root):
    found, notes = captioned(read_folders([root]), "findings")
    return {record.image.stem: record.prompt for record in records_of(found)}, notes


def test_busbra_says_category_histology_and_device_and_no_side(tmp_path):
    root = busbra(tmp_path)
    header = "ID,Case,Histology,Pathology,BIRADS,Device,Side"
    rows = [
        "bus_0001-l,1,invasive ductal carcinoma,malignant,4,GE Logiq 7 @10-14MHz,left",
        "bus_0001-r,1,,malignant,5,,right",
        "bus_0017-s,17,cyst,benign,2,Toshiba Aplio 300 @12-14 MHz,single",
    ]
    (root / "bus_data.csv").write_text("\n".join([header, *rows]))
    found, notes = prompts(root)
    start = "Ultrasound image of a malignant breast, from BUS-BRA"
    assert found["bus_0001-l"] == f"{start}, BI-RADS category 4, invasive ductal carcinoma, GE Logiq 7"
    assert found["bus_0001-r"] == f"{start}, BI-RADS category 5"
    assert found["bus_0017-s"].endswith("BI-RADS category 2, cyst, Toshiba Aplio 300")
    assert notes == [f"{root}: 3 of 3 captions say findings."]


def test_breast_says_the_descriptors_of_the_lexicon(tmp_path):
    root = breast(tmp_path)
    rows = [
        "1;case001.png;case001_tumor.png;benign;oval;circumscribed;hypoechoic;enhancement;no",
        "2;case002.png;;normal;not applicable;not applicable;not applicable;not applicable;not applicable",
        "3;case003.png;case003_tumor.png;malignant;irregular;not circumscribed - angular&indistinct;complex;no;yes",
    ]
    (root / "clinical data.csv").write_text("\n".join([COLUMNS, *rows]))
    found, notes = prompts(root)
    assert found["case001"].endswith(
        "Breast-Lesions-USG, oval shape, circumscribed margin, hypoechoic, posterior enhancement, no halo"
    )
    assert found["case002"] == "Ultrasound image of a normal breast, from Breast-Lesions-USG"
    assert found["case003"].endswith(
        "irregular shape, not circumscribed, angular and indistinct margin, complex, no posterior features, halo"
    )
    assert notes == [f"{root}: 2 of 3 captions say findings."]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"Orientation": "not parallel", "Echo pattern": "anechoic"}, ["not parallel orientation", "anechoic"]),
        ({"Calcifications": "no", "Skin_thickening": "no"}, ["no calcifications", "no skin thickening"]),
        ({"Calcifications": "in a mass", "Skin_thickening": "yes"}, ["calcifications in a mass", "skin thickening"]),
        ({"BIRADS": "4a", "Age": "57", "Side": "left", "Shape": "indefinable"}, ["BI-RADS category 4a"]),
        ({"Device": "@10MHz", "Histology": "NaN"}, []),
    ],
)
def test_each_cell_becomes_words_or_none(cells, words):
    assert words_of(cells) == words


def test_without_the_option_nothing_changes_and_without_a_table_it_is_refused(tmp_path, busi):
    readings = read_folders([busi])
    assert captioned(readings, None) == (readings, [])
    with pytest.raises(ValueError, match="--captions findings: no table of --data has any"):
        captioned(readings, "findings")
    mixed, notes = captioned(read_folders([busi, busbra(tmp_path / "busbra")]), "findings")
    assert mixed[0].records == readings[0].records
    assert len(notes) == 2
