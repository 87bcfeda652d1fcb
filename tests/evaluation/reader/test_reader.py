"""ldm_us/evaluation/reader: a blinded sheet for experts, and figures with known answers from what they return."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import norm
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from ldm_us.data.records import Record
from ldm_us.evaluation.__main__ import main
from ldm_us.evaluation.auc import auc
from ldm_us.evaluation.reader.deck import Card, Key, chain_of_sides, make_key, prepare, read_key, write_key
from ldm_us.evaluation.reader.score import Answers, auc_interval, mean_kappa, read_answers, score
from ldm_us.evaluation.reader.sheet import sheet
from ldm_us.evaluation.sets.image_sets import read_set
from ldm_us.runtime.entry import run_command

SIZE = 16


def save_set(folder: Path, counts: dict[str, int], seed: int, size: int = SIZE) -> list[Record]:
    """A set in the layout of BUSI: noise with a text field that tells where it is from."""
    rng = np.random.default_rng(seed)
    for label, count in counts.items():
        (folder / label).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (size, size), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{label} ({i + 1}).png")
            Image.new("L", (size, size), 255).save(folder / label / f"{label} ({i + 1})_mask.png")
    return read_set([folder])


COUNTS = {"benign": 9, "malignant": 6}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Where the two sets lie."""
    return tmp_path_factory.mktemp("sets")


@pytest.fixture(scope="module")
def sets(root):
    """Real and generated images of two classes."""
    return save_set(root / "real", COUNTS, 0), save_set(root / "generated", COUNTS, 1)


def made_up_key(real: list[bool]) -> Key:
    return Key("s", (SIZE,), tuple(Card(f"{i}.png", "", r, ("benign", "malignant")[i % 2]) for i, r in enumerate(real)))


def test_half_of_the_images_are_real_and_each_class_is_shown_as_often_of_both_kinds(sets):
    key = make_key(*sets, n=20, sides=(SIZE,), seed=3)
    kinds = [(card.real, card.label) for card in key.cards]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        (True, "benign"): 5, (True, "malignant"): 5, (False, "benign"): 5, (False, "malignant"): 5
    }  # fmt: skip
    assert len({card.sha256 for card in key.cards}) == 20
    assert kinds != sorted(kinds)
    assert make_key(*sets, n=20, sides=(SIZE,), seed=3) == key
    assert make_key(*sets, n=20, sides=(SIZE,), seed=4).cards != key.cards


def test_of_a_group_one_image_is_shown(sets):
    real, generated = sets
    family = [
        Record(r.image, r.masks, r.label, r.prompt, "one family" if i < 4 else r.group) for i, r in enumerate(real)
    ]
    members = {str(record.image) for record in family[:4]}
    for seed in range(5):
        key = make_key(family, generated, n=20, sides=(SIZE,), seed=seed)
        assert sum(card.file in members for card in key.cards) <= 1


def test_a_generated_image_of_a_family_with_a_real_one_is_left_out_and_counted(sets, tmp_path):
    """Near-duplicates by their pixels, not by their file: noise of a grey level is added."""
    real, generated = sets[0], save_set(tmp_path / "generated", COUNTS, 1)
    rng = np.random.default_rng(2)
    for source, target in zip(real[:3], generated[:3], strict=True):
        pixels = np.array(Image.open(source.image)).astype(int) + rng.integers(-1, 2, (SIZE, SIZE))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(target.image)
    for seed in range(3):
        key = make_key(real, generated, n=20, sides=(SIZE,), seed=seed)
        assert key.families_shared == 3
        assert not {str(record.image) for record in generated[:3]} & {card.file for card in key.cards}


def test_the_study_is_another_at_another_size_or_with_another_question(sets):
    keys = [make_key(*sets, 20, sides, 0, ask) for sides in ((16,), (16, 8)) for ask in (False, True)]
    assert len({key.study for key in keys}) == 4


def test_nothing_is_enlarged_and_both_kinds_go_through_one_chain_of_sizes(sets, tmp_path):
    large = save_set(tmp_path / "large", COUNTS, 0, size=40)
    assert chain_of_sides(large, sets[1], None) == chain_of_sides(large, sets[1], 16) == (16,)
    assert chain_of_sides(large, sets[1], 8) == chain_of_sides(sets[1], large, 8) == (16, 8)
    with pytest.raises(ValueError, match=r"--size 20: --generated has an image of 16 pixels a side"):
        chain_of_sides(large, sets[1], 20)
    picture = Image.open(large[0].image)
    for side in (16, 8):
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    shown = prepare(large[0].image, (16, 8))
    assert np.allclose(shown[0].numpy(), np.array(picture) / 255, atol=1e-6)
    key = make_key(large, sets[1], 20, (16, 8), 0)
    assert "resized whole to 16x16, then to 8x8" in key.prepared


def test_the_sheet_asks_for_the_name_first_and_keeps_the_answers_of_a_reader_under_it(sets):
    page = sheet(make_key(*sets, n=20, sides=(SIZE,), seed=0))
    assert "`reader-study-${study}-${reader}`" in page
    assert page.index('id="start"') < page.index('<div id="study" hidden>') < page.index('class="card"')
    assert "link.click(); forget();" in page


def test_the_sheet_shows_every_image_and_tells_nothing_of_its_kind_class_or_file(sets, root):
    key = make_key(*sets, n=20, sides=(SIZE,), seed=0)
    page = sheet(key)
    assert page.count("data:image/png") == 20
    assert page.count("&#9744;") == 20 * 4, "ratings to tick on paper"
    outside = re.sub(r"data:image/png;base64,[^\"]+", "", page)
    cards = re.findall(r'<div class="card">.*</div>', outside)
    assert len(set(cards)) == 1  # what surrounds an image is the same for all
    assert not any(word in outside for word in (str(root), "benign", "malignant", "seed", "http"))
    assert sheet(replace(key, ask_class=True)).count('data-question="label"') == 3


def test_a_perfect_reader_one_who_guesses_and_one_who_is_always_wrong_score_so():
    real = [True, False] * 20
    key = made_up_key(real)
    ratings = {
        "perfect": [4 if r else 1 for r in real],
        "guess": [4, 4, 1, 1] * 10,
        "wrong": [2 if r else 3 for r in real],
    }
    figures = score(key, [Answers(name, np.array(values), None) for name, values in ratings.items()])
    by_name = {reader["reader"]: reader for reader in figures["readers"]}
    assert [by_name[name]["accuracy"]["share"] for name in ratings] == [1.0, 0.5, 0.0]
    assert [by_name[name]["auc"]["value"] for name in ratings] == [1.0, 0.5, 0.0]
    assert by_name["perfect"]["generated_found"]["share"] == by_name["perfect"]["real_taken_for_real"]["share"] == 1.0
    assert by_name["perfect"]["p_guessing"] == pytest.approx(2 * 0.5**40, abs=1e-4)
    assert by_name["guess"]["p_guessing"] == 1.0
    assert by_name["perfect"]["auc"]["low"] < 1.0 == by_name["perfect"]["auc"]["high"]
    assert by_name["guess"]["auc"]["low"] < 0.4 < 0.6 < by_name["guess"]["auc"]["high"]
    assert figures["together"]["accuracy"]["value"] == 0.5
    assert {name: (row["value"], row["answers"]) for name, row in figures["by_class"].items()} == {
        "benign": (0.5, 60), "malignant": (0.5, 60)
    }  # fmt: skip


def test_the_auc_of_ratings_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    real, ratings = rng.random((5, 30)) < 0.5, rng.integers(1, 5, (5, 30))
    expected = [roc_auc_score(*row) for row in zip(real, ratings, strict=True)]
    found = [float(auc(row[own], row[~own])) for own, row in zip(real, ratings, strict=True)]
    assert found == pytest.approx(expected)


def test_the_interval_of_all_readers_holds_the_true_accuracy_about_95_times_in_100():
    """Images differ in how hard they are, and three readers share that: answers are no 120 independent ones."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        ease = rng.choice([0.35, 0.95], 40)  # of each image; the mean over images is the true accuracy, 0.65
        real = np.arange(40) % 2 == 0
        readers = []
        for name in "abc":
            right = rng.random(40) < ease
            readers.append(Answers(name, np.where(right == real, 4, 1), None))
        figures = score(made_up_key(real.tolist()), readers)["together"]["accuracy"]
        covered += figures["low"] <= 0.65 <= figures["high"]
    assert covered >= 190


def test_readers_without_a_mistake_and_readers_who_agree_on_all_have_intervals_with_a_width():
    real = np.arange(40) % 2 == 0
    perfect = [Answers(name, np.where(real, 4, 1), None) for name in "ab"]
    figures = score(made_up_key(real.tolist()), perfect)
    together, classes = figures["together"], figures["by_class"]
    for row in (*together.values(), *classes.values(), figures["readers"][0]["auc"]):
        assert row["value"] == row["high"] == 1
        assert 0.7 < row["low"] < 0.95
    wrong = score(made_up_key((~real).tolist()), perfect)["together"]
    assert wrong["auc"]["low"] == 0 < wrong["auc"]["high"] == pytest.approx(1 - together["auc"]["low"])


@pytest.mark.parametrize("apart", [0.0, 0.8, 2.0, 3.0])
def test_the_interval_of_an_auc_holds_the_true_one_in_all_but_some_5_of_100_studies(apart):
    """Four ratings cut from normal scores; the true area is a sum over the probabilities of the ratings."""
    rng, n, trials = np.random.default_rng(0), 30, 400
    cuts = np.array([-0.5, 0.5, 1.5]) * max(apart, 1) / 2
    chances = [np.diff(norm.cdf([-np.inf, *cuts, np.inf], loc)) for loc in (apart, 0.0)]
    true = sum(
        p * q * (1.0 if i > j else 0.5 if i == j else 0.0)
        for i, p in enumerate(chances[0])
        for j, q in enumerate(chances[1])
    )
    real = np.arange(2 * n) < n
    covered = 0
    for _ in range(trials):
        ratings = np.concatenate([rng.choice(4, n, p=one) + 1 for one in chances])
        found = auc_interval(float(auc(ratings[real], ratings[~real])), n, n)
        covered += found["low"] <= true <= found["high"]
    assert covered >= 0.93 * trials


def test_the_bounds_of_an_auc_solve_newcombes_equation():
    """Method 5, with the standard error of Hanley and McNeil written out."""
    found, m, n = auc_interval(0.9, 25, 40), 25, 40
    for a in (found["low"], found["high"]):
        q = (m + n) / 2
        variance = a * (1 - a) / (m * n) * (1 + (q - 1) * (1 - a) / (2 - a) + (q - 1) * a / (1 + a))
        assert abs(a - 0.9) == pytest.approx(1.96 * variance**0.5, abs=3e-3)


def test_the_interval_of_kappa_holds_the_true_one_in_about_95_of_100_studies():
    """Two readers who each name the kind of an image right with 0.85: chance agreement is a half."""
    rng, covered = np.random.default_rng(0), 0
    true = (0.85**2 + 0.15**2 - 0.5) / 0.5
    for _ in range(300):
        kinds = np.arange(60) % 2 == 0
        said = np.stack([np.where(rng.random(60) < 0.85, kinds, ~kinds) for _ in range(2)])
        found = mean_kappa(said)
        covered += found["low"] <= true <= found["high"]
    assert covered >= 0.92 * 300


def test_agreement_is_the_mean_kappa_of_all_pairs_of_readers():
    key = made_up_key([True, False] * 10)
    rng = np.random.default_rng(1)
    readers = [Answers(name, rng.integers(1, 5, 20), None) for name in "abc"]
    said = [answers.ratings >= 3 for answers in readers]
    expected = np.mean([cohen_kappa_score(said[a], said[b]) for a, b in ((0, 1), (0, 2), (1, 2))])
    assert score(key, readers)["together"]["kappa"]["value"] == pytest.approx(expected, abs=1e-3)
    assert score(key, readers[:1])["together"]["kappa"] is None


def test_images_that_mislead_are_listed_by_how_much():
    key = made_up_key([False, True, False, True] * 5)
    ratings = np.array([4, 1, 3, 4] * 5)
    figures = score(key, [Answers("a", ratings, None)])
    assert [entry["mean_rating"] for entry in figures["taken for real"]] == [4.0] * 5
    assert {entry["file"] for entry in figures["taken for generated"]} == {f"{i}.png" for i in (1, 5, 9, 13, 17)}


def test_the_named_class_is_scored_apart_for_real_and_generated_images():
    key = made_up_key([True, True, False, False] * 5)
    labels = tuple(card.label if card.real else "benign" for card in key.cards)
    (reader,) = score(key, [Answers("a", np.array([4, 4, 1, 1] * 5), labels)])["readers"]
    assert (reader["class_right_real"]["share"], reader["class_right_generated"]["share"]) == (1.0, 0.5)


def call(*words: object) -> int:
    return run_command(lambda: main([str(word) for word in words]))


def test_a_study_is_made_answered_and_scored_from_the_command_line(sets, root, tmp_path, capsys):
    folders = ("--real", root / "real", "--generated", root / "generated")
    assert call("reader", "make", *folders, "--n", 20, "--out", tmp_path / "study") == 0
    key = read_key(tmp_path / "study" / "key.json")
    said = capsys.readouterr().out
    assert f"study {key.study}: 20 images. Every image, real or generated, was made grey" in said
    assert "burned into real images" in said
    assert call("reader", "make", *folders, "--n", 20, "--out", tmp_path / "again") == 0
    assert read_key(tmp_path / "again" / "key.json").seed != key.seed  # drawn anew
    assert str(key.seed) not in (tmp_path / "study" / "sheet.html").read_text()
    capsys.readouterr()
    given = {"study": key.study, "reader": "r1", "answers": [{"rating": "4" if c.real else "1"} for c in key.cards]}
    (tmp_path / "a.json").write_text(json.dumps(given))
    assert call("reader", "score", tmp_path / "a.json", "--key", tmp_path / "study" / "key.json") == 0
    assert json.loads(capsys.readouterr().out)["readers"][0]["accuracy"]["share"] == 1.0
    assert call("reader", "make", *folders, "--n", 20, "--out", tmp_path / "study") == 2
    assert "has sheet.html already. Choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"study": "another"}, "answers of study another, but the key is of s"),
        ({"answers": [{"rating": 4}]}, "1 answers for 20 images"),
        *(({"answers": [{"rating": r}] * 20}, "a rating that is not 1, 2, 3 or 4") for r in (7, 2.9, True, 1e999, [])),
        ({"answers": [{"rating": 1, "label": "cat"}] * 20}, "names a class other than"),
        ({"answers": "none"}, "not the answers of a reader"),
    ],
)
def test_answers_that_do_not_fit_are_one_sentence(tmp_path, change, sentence):
    given = {"study": "s", "reader": "r", "answers": [{"rating": 4}] * 20}
    (tmp_path / "a.json").write_text(json.dumps(given | change))
    with pytest.raises(ValueError, match=re.escape(sentence)):
        read_answers(tmp_path / "a.json", made_up_key([True, False] * 10))


def test_a_picture_in_place_of_answers_is_one_sentence_without_its_bytes(tmp_path):
    Image.new("L", (64, 64), 200).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="no text at all") as error:
        read_answers(tmp_path / "a.png", made_up_key([True, False] * 10))
    assert len(str(error.value)) < len(str(tmp_path)) + 100


def test_a_study_that_cannot_be_made_or_scored_is_one_sentence(sets, tmp_path):
    real, generated = sets
    with pytest.raises(ValueError, match=r"--n 21: half of the images are real"):
        make_key(real, generated, 21, (SIZE,), 0)
    with pytest.raises(ValueError, match=r"--real: 15 images, but a reader study of 40 images .* needs at least 20"):
        make_key(real, generated, 40, (SIZE,), 0)
    only_benign = [record for record in generated if record.label == "benign"]
    with pytest.raises(ValueError, match=r"--generated: 9 images"):
        make_key(real, only_benign, 20, (SIZE,), 0)
    unlike = [replace(record, label="normal") for record in generated]
    with pytest.raises(ValueError, match=r"--n 20: both sets together give only 0 benign, 0 malignant, 0 normal"):
        make_key(real, unlike, 20, (SIZE,), 0)
    same = Answers("a", np.array([1] * 20), None)
    with pytest.raises(ValueError, match="two files are of the reader 'a'"):
        score(made_up_key([True, False] * 10), [same, same])
    (tmp_path / "key.json").write_text("{}")
    with pytest.raises(ValueError, match="not a key of a reader study"):
        read_key(tmp_path / "key.json")
    write_key(made_up_key([True, False]), tmp_path / "key.json")
    assert read_key(tmp_path / "key.json") == made_up_key([True, False])


@pytest.mark.parametrize("cards", [[], [("real", "no"), ("real", False)], [("file", 5), ("real", False)], None, [[]]])
def test_a_key_without_cards_of_both_kinds_is_one_sentence(tmp_path, cards):
    card = {"file": "a.png", "sha256": "0", "real": True, "label": "benign"}
    changed = [card | dict([entry]) if entry else entry for entry in cards] if cards else cards
    values = {"study": "s", "sides": [SIZE], "cards": changed}
    (tmp_path / "key.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="not a key of a reader study"):
        read_key(tmp_path / "key.json")
