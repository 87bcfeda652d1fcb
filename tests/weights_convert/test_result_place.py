"""weights_convert/result_place.py: no command writes over what it reads, or deletes what it did not make."""

import shutil

import pytest

from ldm_us.config import BUNDLED, PRESETS
from ldm_us.runtime.entry import run_command
from weights_convert.__main__ import main
from weights_convert.diffusers_folder import TOKENIZER_FILES, folder_texts
from weights_convert.export_command import FOLDER

BASE = BUNDLED.with_name("us128_base.safetensors")


def call(*words: object) -> int:
    return run_command(lambda: main([str(word) for word in words]))


@pytest.fixture
def model(tmp_path):
    shutil.copy(BASE, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    "words",
    [
        ("import", "MODEL", "--out", "MODEL", "--overwrite"),
        ("import", BASE, "--controlnet", "MODEL", "--out", "MODEL", "--overwrite"),
        ("export", "MODEL", "--format", "compvis", "--out", "MODEL", "--overwrite"),
        ("export", "MODEL", "--format", "lora", "--names", "kohya", "--out", "MODEL", "--overwrite"),
        ("import", "--lora", "MODEL", "--base", BASE, "--out", "MODEL", "--overwrite"),
        ("import", "--lora", BASE, "--base", "MODEL", "--out", "MODEL", "--overwrite"),
    ],
)
def test_a_command_refuses_to_write_over_what_it_reads(model, capsys, words):
    before = model.read_bytes()
    assert call(*(model if word == "MODEL" else word for word in words)) == 2
    assert "would overwrite" in capsys.readouterr().err
    assert model.read_bytes() == before


def test_an_export_does_not_replace_the_folder_that_holds_the_model(model, tmp_path, capsys):
    folder = tmp_path / "folder"
    (folder / "unet").mkdir(parents=True)
    kept = model.rename(folder / "unet" / "mine.safetensors")
    assert call("export", kept, "--format", "diffusers", "--out", folder, "--overwrite") == 2
    assert "would overwrite" in capsys.readouterr().err
    assert kept.is_file()


def test_an_export_replaces_nothing_but_an_export(model, tmp_path, capsys):
    folder = tmp_path / "folder"
    assert call("export", model, "--format", "diffusers", "--out", folder) == 0
    assert call("export", model, "--format", "diffusers", "--out", folder, "--overwrite") == 0
    (folder / "unet" / "notes.txt").write_text("kept")
    assert call("export", model, "--format", "diffusers", "--out", folder, "--overwrite") == 2
    assert "holds unet/notes.txt, which no export wrote" in capsys.readouterr().err
    assert (folder / "unet" / "notes.txt").read_text() == "kept"


def test_a_file_of_a_folder_that_is_imported_is_not_replaced_by_the_result(model, tmp_path, capsys):
    folder = tmp_path / "folder"
    assert call("export", model, "--format", "diffusers", "--out", folder) == 0
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    assert call("import", folder, "--out", weights, "--overwrite") == 2
    assert "would overwrite" in capsys.readouterr().err
    assert weights.read_bytes() == before
    assert call("import", folder, "--out", folder / "new.safetensors") == 0


def test_the_files_of_an_export_are_those_that_may_be_replaced():
    texts = folder_texts(PRESETS["tiny"], with_controlnet=True)
    assert {name for name in FOLDER if not name.endswith(".safetensors")} == set(texts)
    assert {f"tokenizer/{name}" for name in TOKENIZER_FILES} <= set(texts)
