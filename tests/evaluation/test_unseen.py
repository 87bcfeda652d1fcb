"""--unseen: all images of a folder are measured on, unless a stage or the judge was certainly trained on them."""

import json
import shutil
from functools import partial

import pytest
from PIL import Image

from ldm_us.config import BUNDLED
from ldm_us.data.digests import image_digests
from ldm_us.data.phantom.files import Plan, write_phantoms
from ldm_us.data.readers.busi import read_busi
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.evaluation.__main__ import main
from ldm_us.evaluation.judge.file import Training
from ldm_us.evaluation.judge.file import image_digests as digests_for_judge
from ldm_us.evaluation.sets.evaluated_images import check_unseen_by_judge, held_out_records, unseen_records
from ldm_us.files.checkpoint import read_metadata, save_model
from ldm_us.files.lineage import Lineage, read_lineage
from ldm_us.runtime.entry import run_command
from ldm_us.training.dataset import data_hash, split_data
from tests.evaluation.judge.test_judged import write_images

SHARE = 0.25  # held out by the model of these tests


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Images that the model was trained on, and images of another seed."""
    root = tmp_path_factory.mktemp("images")
    return {name: write_images(root / name, seed) for seed, name in enumerate(("known", "new"))}


@pytest.fixture
def save(micro, tmp_path):
    """A function of the stages: a model file with that lineage."""

    def write(*stages):
        path = tmp_path / "model.safetensors"
        model = LatentDiffusion(micro)
        model.add_controlnet()
        save_model(model, path, Lineage(stages).metadata())
        return path

    return write


@pytest.fixture
def weights(save, folders):
    """A model whose second stage alone was trained on `known`."""
    trained_on, _ = split_data([folders["known"]], SHARE)
    elsewhere = {"stage": "vae", "held_out": 0.1, "data_sha256": "0" * 64}
    return save(elsewhere, {"stage": "unet", "held_out": SHARE, "data_sha256": data_hash(trained_on)})


def test_unseen_measures_on_all_images_of_the_folder(weights, folders, capsys):
    assert main(["reconstruction", "--weights", str(weights), "--data", str(folders["new"]), "--unseen"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 18
    assert unseen_records(weights, [folders["new"]]) == sorted(read_busi(folders["new"]))


@pytest.mark.parametrize("command", ["reconstruction", "masks"])
def test_a_model_whose_training_could_hold_nothing_out_is_a_sentence(save, tmp_path, capsys, command):
    """One patient has all images."""
    root = write_images(tmp_path / "one", 5)
    lines = [
        {"file_name": r.image.relative_to(root).as_posix(), "text": "x", "class": r.label, "patient": 1}
        | {"mask": [mask.relative_to(root).as_posix() for mask in r.masks]}
        for r in read_busi(root)
    ]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    train, held_out = split_data([root], SHARE)
    assert held_out == []
    path = save({"stage": "vae", "held_out": SHARE, "data_sha256": data_hash(train)})
    assert run_command(partial(main, [command, "--weights", str(path), "--data", str(root)])) == 2
    assert "its training held no image out: 18 images in 1 groups" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["reconstruction", "masks"])
def test_unseen_refuses_the_folder_that_the_model_was_trained_on(weights, folders, capsys, command):
    argv = [command, "--weights", str(weights), "--data", str(folders["known"]), "--unseen"]
    assert run_command(partial(main, argv)) == 2
    assert "so its images are not --unseen" in capsys.readouterr().err


def test_unseen_refuses_a_training_folder_among_others_and_its_training_images_under_other_names(
    weights, folders, tmp_path
):
    with pytest.raises(ValueError, match=r"was trained on .*known"):
        unseen_records(weights, [folders["new"], folders["known"]])
    for record in split_data([folders["known"]], SHARE)[0]:
        folder = tmp_path / "copy" / record.label
        folder.mkdir(parents=True, exist_ok=True)
        number = 100 + len(list(folder.iterdir()))
        shutil.copy(record.image, folder / f"{record.label} ({number}).png")
        shutil.copy(record.masks[0], folder / f"{record.label} ({number})_mask.png")
    with pytest.raises(ValueError, match=r"was trained on .*copy"):
        unseen_records(weights, [tmp_path / "copy"])


def test_unseen_refuses_folders_that_were_trained_on_together(save, folders):
    both = [folders["known"], folders["new"]]
    weights = save({"held_out": 0, "data_sha256": data_hash(split_data(both, 0)[0])})
    with pytest.raises(ValueError, match="so its images are not --unseen"):
        unseen_records(weights, both[::-1])
    assert len(unseen_records(weights, both[:1])) == 18, "a part of the training images: the lineage cannot tell"


def test_a_model_that_was_not_trained_here_can_be_measured_on_any_images(save, folders):
    assert len(unseen_records(save(), [folders["known"]])) == 18


def test_a_model_of_several_datasets_is_measured_on_what_its_last_stage_held_out(save, folders):
    """Successive fine-tuning: the stages before have their own data and shares."""
    train, held_out = split_data([folders["known"]], SHARE)
    elsewhere = {"stage": "vae", "held_out": 0.02, "data": ["phantoms"], "data_sha256": "0" * 64}
    here = {"stage": "unet", "held_out": SHARE, "data": ["known"], "data_sha256": data_hash(train)}
    assert held_out_records(save(elsewhere, here), [folders["known"]]) == held_out
    with pytest.raises(ValueError, match="was trained on other images than --data gives now"):
        held_out_records(save(here, elsewhere), [folders["known"]])
    mixed = elsewhere | {"data": ["known", "phantoms"]}
    with pytest.raises(ValueError, match="its stage vae was trained on another split of the same data"):
        held_out_records(save(mixed, here), [folders["known"]])


@pytest.fixture
def with_digests(save, folders):
    """A model whose first stage kept digests of all images of `known`, and its second of a split of a folder."""

    def write(folder, share):
        lineage = Lineage(()).extended(
            {"stage": "vae", "data": ["known"]}, set(image_digests(read_busi(folders["known"])))
        )
        train, _ = split_data([folder], share)
        entry = {"stage": "unet", "held_out": share, "data": [folder.name], "data_sha256": data_hash(train)}
        return save(*lineage.extended(entry, set(image_digests(train))).entries)

    return write


def test_an_image_that_a_stage_was_trained_on_is_known_in_any_folder_under_any_name_and_in_another_file(
    with_digests, folders, tmp_path
):
    weights = with_digests(folders["new"], SHARE)
    one = read_busi(folders["known"])[0]
    copies = tmp_path / "renamed"
    shutil.copytree(folders["new"], copies)
    for path in (one.image, *one.masks):
        Image.open(path).save(copies / one.label / path.name.replace("(", "(7"), compress_level=0)
    count = len(split_data([folders["new"]], SHARE)[0]) + 1
    with pytest.raises(ValueError, match=f": {count} of these 19 are not --unseen"):
        unseen_records(weights, [copies])
    shutil.copytree(folders["known"] / one.label, tmp_path / "part" / one.label)
    with pytest.raises(ValueError, match="its stage vae was trained on images of --data"):
        unseen_records(weights, [tmp_path / "part"])


def test_what_a_stage_was_trained_on_is_not_held_out_whatever_its_folder_was_called(with_digests, folders, tmp_path):
    """The outer and the inner folder of one dataset, and a copy under another name."""
    outer = tmp_path / "outer"
    shutil.copytree(folders["known"], outer / "inner")
    for folder in (outer, outer / "inner"):
        held_out = split_data([folder], SHARE)[1]
        said = rf"its stage vae was trained on {len(held_out)} of the {len(held_out)} images that its last stage held"
        with pytest.raises(ValueError, match=said):
            held_out_records(with_digests(folder, SHARE), [folder])


def test_another_folder_of_the_same_name_is_no_reason_to_refuse(with_digests, folders, tmp_path):
    shutil.copytree(folders["new"], tmp_path / "elsewhere" / "known")
    weights = with_digests(tmp_path / "elsewhere" / "known", SHARE)
    held_out = held_out_records(weights, [tmp_path / "elsewhere" / "known"])
    assert held_out == split_data([tmp_path / "elsewhere" / "known"], SHARE)[1]


def test_the_bundled_models_know_the_phantoms_of_their_seed_and_no_others(save, tmp_path):
    """Their files keep no digests, and their folder has the name that every folder of phantoms has."""
    bundled = read_lineage(read_metadata(BUNDLED)).entries
    for seed in (1, 3):
        folder = tmp_path / str(seed) / "phantoms"
        write_phantoms(Plan(n=9, size=32, seed=seed), folder)
        train, held_out = split_data([folder], SHARE)
        entry = {"stage": "unet", "held_out": SHARE, "data": ["phantoms"], "data_sha256": data_hash(train)}
        weights = save(*Lineage(bundled).extended(entry, set(image_digests(train))).entries)
        if seed == 1:
            with pytest.raises(ValueError, match=f"was trained on {len(held_out)} of the {len(held_out)} images"):
                held_out_records(weights, [folder])
            with pytest.raises(ValueError, match="9 of these 9 are not --unseen"):
                unseen_records(BUNDLED, [folder])
        else:
            assert held_out_records(weights, [folder]) == held_out
            assert len(unseen_records(BUNDLED, [folder])) == 9


def test_an_older_stage_is_judged_by_the_hash_of_its_images_too_and_the_sentence_says_so(save, folders, tmp_path):
    train, _ = split_data([folders["known"]], SHARE)
    all_of_it = {"stage": "vae", "held_out": 0.0, "data": ["other"]}
    all_of_it["data_sha256"] = data_hash(split_data([folders["known"]], 0.0)[0])
    here = {"stage": "unet", "held_out": SHARE, "data": ["known"], "data_sha256": data_hash(train)}
    with pytest.raises(ValueError, match="it kept no digests of them, and their hash is the same"):
        held_out_records(save(all_of_it, here), [folders["known"]])


def test_images_that_the_judge_was_trained_on_are_refused_and_others_are_not(folders, tmp_path):
    known, new = (read_busi(folders[name]) for name in ("known", "new"))
    training = Training(1, 1, 0, 0.1, ["known"], data_hash(known), digests_for_judge(known), {})
    check_unseen_by_judge(tmp_path / "judge", training, new)
    with pytest.raises(ValueError, match="was trained on 2 of the 20 images to measure on"):
        check_unseen_by_judge(tmp_path / "judge", training, [*known[:2], *new])
