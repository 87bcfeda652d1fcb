"""Stand-ins answer a reader study as its sheet would save it, from what they learn of other images."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ldm_us.evaluation.__main__ import main
from ldm_us.evaluation.reader import stand_in
from ldm_us.evaluation.reader.deck import make_key, read_key
from ldm_us.evaluation.reader.stand_in import axial_grain, card_file, outside, rated, shown, stand_in_answers
from ldm_us.evaluation.sets.image_sets import read_set
from ldm_us.runtime.entry import run_command

SIZE = 40


def save_set(folder, count, grain):
    """Noise whose grain is so many pixels high; every second image is bright at depth."""
    rng = np.random.default_rng(grain)
    (folder / "benign").mkdir(parents=True)
    for i in range(count):
        noise = rng.integers(60, 200, (-(-SIZE // grain), SIZE), dtype=np.uint8).repeat(grain, axis=0)[:SIZE]
        noise[-5:] += 50 * np.uint8(i % 2)
        Image.fromarray(noise).save(folder / f"benign/benign ({i + 1}).png")
    return read_set([folder])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def sets(root):
    return save_set(root / "real", 36, 1), save_set(root / "generated", 36, 4)


@pytest.fixture(scope="module")
def key(sets):
    return make_key(*sets, n=20, sides=(SIZE,), seed=0)


def test_a_stand_in_tells_what_differs_says_that_it_is_no_human_and_guesses_where_nothing_does(sets, key):
    answers = stand_in_answers(key, *sets, seed=0, steps=30)
    assert all("no human" in reader for reader in answers)
    right = {
        reader: np.mean([(rating >= 3) == card.real for rating, card in zip(ratings, key.cards, strict=True)])
        for reader, ratings in answers.items()
    }
    assert right["a rule, no human: the axial grain"] == 1
    assert right["a network, no human: the two-sample test's"] >= 0.9
    assert right["a rule, no human: the darkness at depth"] < 0.8
    assert answers == stand_in_answers(key, *sets, seed=0, steps=30)


def test_ratings_are_the_quarters_between_the_medians_and_nothing_known_is_a_guess():
    values = np.array([-9, 0.2, 0.3, 0.6, 0.8, 9, np.nan])
    assert rated(values, np.array([1.0, 1, 1]), np.array([0.0, 0, np.nan])) == [1, 1, 2, 3, 4, 4, 2]
    assert rated(values, np.array([0.0]), np.array([1.0])) == [4, 4, 3, 2, 1, 1, 2]
    assert set(rated(values, np.array([1.0]), np.array([1.0]))) == {2}


def test_no_image_of_the_study_is_learnt_from_nor_one_of_its_family(sets, key):
    real, _ = sets
    files = {card.file for card in key.cards}
    assert not {str(record.image) for record in outside(key, real, "--real")} & files
    assert len(outside(key, real, "--real")) == 26
    card = next(card for card in key.cards if card.real)
    sibling = next(record for record in real if str(record.image) not in files)
    with_family = [replace(r, group="one") if str(r.image) in (card.file, str(sibling.image)) else r for r in real]
    assert len(outside(key, with_family, "--real")) == 25
    with pytest.raises(ValueError, match=r"--real: 6 images are neither in the study nor of a family"):
        outside(key, [r for r in real if str(r.image) not in files][:6], "--real")


def test_a_sheet_of_small_images_is_rated_by_rules_alone(sets):
    small = make_key(*sets, n=20, sides=(16,), seed=0)
    assert list(stand_in_answers(small, *sets, seed=0)) == [f"a rule, no human: {name}" for name in stand_in.RULES]
    assert axial_grain(shown(card_file(small.cards[0]), small)) > 0


def test_from_the_sheet_to_figures_with_intervals_on_the_command_line(root, sets, key, monkeypatch, capsys):
    monkeypatch.setattr("ldm_us.evaluation.reader.command.STEPS", 2)
    chosen = ["--real", str(root / "real"), "--generated", str(root / "generated")]
    study, out = root / "sheet", root / "answers"
    assert main(["reader", "make", *chosen, "--n", "20", "--seed", "0", "--out", str(study)]) == 0
    asked = ["reader", "stand-in", "--key", str(study / "key.json"), *chosen, "--out", str(out)]
    assert main(asked) == 0
    names = ["stand_in_1.json", "stand_in_2.json", "stand_in_3.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    capsys.readouterr()
    assert main(["reader", "score", *(str(out / name) for name in names), "--key", str(study / "key.json")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["readers"][0]["auc"]["value"] == 1
    assert all("no human" in reader["reader"] for reader in result["readers"])
    assert run_command(lambda: main(asked)) == 2
    assert "stand_in_1.json already" in capsys.readouterr().err
    path = card_file(read_key(study / "key.json").cards[0])
    before = path.read_bytes()
    Image.new("L", (SIZE, SIZE)).save(path)
    assert run_command(lambda: main([*asked, "--overwrite"])) == 2
    assert f"{path}: missing, or another file than when the study was made" in capsys.readouterr().err
    path.write_bytes(before)
