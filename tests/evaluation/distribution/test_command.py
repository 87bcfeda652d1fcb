"""python -m ldm_us.evaluation distribution: what it prints, its floor, and how it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_us.data.organ import UNKNOWN
from ldm_us.data.records import Record
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.evaluation.__main__ import main
from ldm_us.evaluation.distribution.command import class_distances, halves, notes, same_classes
from ldm_us.evaluation.distribution.distances import NEEDED, distances
from ldm_us.evaluation.distribution.features import Features
from ldm_us.evaluation.judge.file import image_digests
from ldm_us.evaluation.sets.image_sets import read_set
from ldm_us.files.checkpoint import save_model
from ldm_us.runtime.entry import run_command

SIZE = 24
LABELS = {"benign": 8, "malignant": 6, "normal": 5}


def save_set(root: Path, seed: int, brightness: int = 0, labels: dict[str, int] = LABELS) -> Path:
    """Noise in the layout of BUSI, numbered so high that no near-duplicate list knows it."""
    rng = np.random.default_rng(seed)
    for label, count in labels.items():
        (root / label).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(brightness, brightness + 100, (SIZE, SIZE), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{label} ({9001 + i}).png")
            Image.new("L", (SIZE, SIZE), 255).save(root / label / f"{label} ({9001 + i})_mask.png")
    return root


@pytest.fixture(scope="module")
def sets(micro, tmp_path_factory):
    """Two sets of noise, of which the generated one is brighter, and a model."""
    root = tmp_path_factory.mktemp("sets")
    torch.manual_seed(0)
    save_model(LatentDiffusion(micro), root / "m.safetensors")
    return save_set(root / "real", 0), save_set(root / "generated", 1, brightness=100), root / "m.safetensors"


@pytest.fixture
def call(sets, capsys):
    """A function of further flags: (exit code, standard output, standard error)."""
    real, generated, weights = sets

    def run(*flags: object, real: Path = real, generated: Path = generated):
        fixed = ["distribution", "--real", real, "--generated", generated, "--features", "vae", "--weights", weights]
        code = run_command(lambda: main([str(value) for value in (*fixed, *flags)]))
        return (code, *capsys.readouterr())

    return run


def test_the_result_is_printed_and_written_and_says_what_it_was_made_of(call, tmp_path: Path) -> None:
    code, printed, _ = call("--out", tmp_path / "out", "--seed", 3)
    assert code == 0
    assert (tmp_path / "out" / "distribution.json").read_text() == printed
    result = json.loads(printed)
    assert (result["size"], result["seed"], result["features"]["kind"]) == (SIZE, 3, "vae")
    assert result["features"]["dimension"] == 64
    assert result["images"] == {which: {"all": 19} | LABELS for which in ("real", "generated")}
    assert result["halves"]["real"]["fid"] < result["halves"]["generated"]["fid"]  # the generated ones are brighter
    assert result["classes"]["normal"] == {
        "left_out": "--real, normal: 5 images, but coverage needs at least 6. Give more images."
    }
    assert "kid" in result["classes"]["benign"]
    assert result["ms_ssim_within_class"]["scales"] == 2
    assert result["ms_ssim_within_class"]["generated"]["benign"]["pairs"] == 4
    assert any("no more than the 64 dimensions" in note for note in result["notes"])
    assert call("--seed", 3)[1] == printed
    code, _, error = call("--out", tmp_path / "out")
    assert (code, "add --overwrite" in error) == (2, True)
    assert call("--out", tmp_path / "out", "--overwrite")[0] == 0


def test_what_makes_no_comparison_is_refused_in_one_sentence(call, sets, tmp_path: Path) -> None:
    real = sets[0]
    few = save_set(tmp_path / "few", 2, labels={"benign": 2, "malignant": 2, "normal": 1})
    two_classes = save_set(tmp_path / "two", 2, labels={"benign": 6, "malignant": 6})
    copy = shutil.copytree(real, tmp_path / "copy")
    file = tmp_path / "file"
    file.write_text("")
    for flags, folders, sentence in (
        ((), {"generated": few}, "--generated: 5 images, but coverage needs at least 6"),
        ((), {"real": few}, "--real: 5 images, but coverage"),
        ((), {"generated": two_classes}, "--generated: no image of class normal, but --real has some"),
        ((), {"real": two_classes}, "--real: no image of class normal, but --generated has some"),
        ((), {"generated": copy}, "pixel for pixel"),
        ((), {"generated": tmp_path / "missing"}, "does not exist"),
        (("--size", 8), {}, "MS-SSIM needs at least 11 pixels"),
        (("--size", 0), {}, "--size 0: use 1 or more"),
        (("--batch", 0), {}, "--batch 0: use 1 or more"),
        (("--seed", -1), {}, "--seed -1"),
        (("--network", "resnet50"), {}, "--network: belongs to a file of weights"),
        (("--out", file), {}, "is not a folder"),
    ):
        code, printed, error = call(*flags, **folders)
        assert (code, printed) == (2, "")
        assert sentence in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1


def test_without_the_extra_the_sentence_names_it(call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics", None)
    code, _, error = call()
    assert code == 2
    assert "Install the extra eval" in error


def vectors(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_halves_keep_families_together_and_compare_as_many_generated_images(
    sets, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = read_set([sets[0]])
    in_families = [Record(one.image, (), "benign", "", f"family {i // 2}") for i, one in enumerate(records[:18])]
    seen = []

    def watch(real, generated, seed):
        seen.append((real, generated))
        return distances(real, generated, seed)

    monkeypatch.setattr("ldm_us.evaluation.distribution.command.distances", watch)
    monkeypatch.setattr("ldm_us.evaluation.distribution.command.merge_families", lambda records: records)
    x, y = torch.arange(18).double()[:, None].expand(-1, 2).contiguous(), vectors(50, 0)[:, :2].contiguous()
    found = halves(in_families, x, y, 0)
    (first, second), (again, generated) = seen
    assert torch.equal(first, again)
    families = [set((rows[:, 0] // 2).tolist()) for rows in (first, second)]
    assert families[0] & families[1] == set()
    assert len(first) + len(second) == 18
    assert found["half"] == len(first)
    assert found["n"] == len(second) == len(generated) >= max(NEEDED.values())


def test_a_half_too_small_is_left_out_with_the_reason(sets) -> None:
    records = read_set([sets[0]])[:10]
    found = halves(records, vectors(10, 0), vectors(10, 1), 0)
    assert "but 6 each are needed" in found["left_out"]


def test_distances_of_a_class_are_those_of_its_images_alone(sets) -> None:
    records = read_set([sets[0]])
    x, y = vectors(19, 0), vectors(19, 1)
    rows = [i for i, record in enumerate(records) if record.label == "malignant"]
    assert class_distances(records, records, x, y, 0)["malignant"] == distances(x[rows], y[rows], 0, frechet=False)


def test_a_set_without_classes_is_compared_as_a_whole(sets) -> None:
    real = read_set([sets[0]])
    generated = [Record(record.image, (), UNKNOWN, "", record.group) for record in real]
    both = same_classes(real, generated)
    assert [{record.label for record in records} for records in both] == [{UNKNOWN}, {UNKNOWN}]


def test_notes_name_other_shares_of_classes_and_images_that_trained_the_features(sets) -> None:
    real = read_set([sets[0]])
    network = Features({"kind": "judge"}, SIZE, lambda x: x, frozenset(image_digests(real[:3])))
    said = notes(network, real, [record for record in real if record.label != "normal"], 3)
    assert len(said) == 5  # three classes of other shares, and
    assert said[2].startswith("normal is 26% of the real and 0% of the generated images")
    assert said[3].startswith("3 of the 19 real images trained the network")
    assert said[4].startswith("Features of a judge are blind to grain")
    assert notes(Features({"kind": "network"}, SIZE, lambda x: x), real, real, 3) == []
