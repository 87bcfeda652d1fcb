"""The rooms, as texts and numbers: what they draw, what they say of bad input, and what they leave behind."""

import base64
import html
import io
import json
import re
import zipfile
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from ldm_us.config import PICTURE
from ldm_us.data.masks.shape import mask_picture
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.display.data_urls import data_url, unpack
from ldm_us.files.checkpoint import save_model
from ldm_us.runtime.entry import run_command
from ldm_us.studio.rooms import Rooms
from ldm_us.synthesis.serving import session
from ldm_us.synthesis.serving.engine import Engine
from tests.synthesis.conftest import OLD_LINEAGE, trained

COMMON = ("benign", "", 2, 5, 2, False)  # as `asked` takes them
ELLIPSE = np.hypot(*(np.mgrid[:16, :16] - 8)) < 4


def sent(mask=ELLIPSE, image=None, **file):
    """What a canvas tells."""
    picture = mask_picture(np.asarray(mask, bool)).convert("RGB")
    return json.dumps({"mask": data_url(picture), "image": image, "file": file or None})


def opening(picture, kind="image", name="i.png"):
    return sent(kind=kind, name=name, data=data_url(picture))


def told(said):
    """The words of what was said."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", said)).split())


def finished(answers):
    """The last words, and the last pictures, of a room."""
    answers = list(answers)
    return told(answers[-1][0]), [pictures for _, pictures in answers if pictures is not None][-1]


def pixels(page, nth=0):
    url = re.findall(r'class="after" src="([^"]+)"', page)[nth]
    return np.asarray(Image.open(io.BytesIO(unpack(url))))


def test_make_shows_pictures_one_by_one_with_progress_and_their_commands(rooms):
    answers = list(rooms.make("tab", "", *COMMON))
    counts = [pictures.count("<figure") for _, pictures in answers if pictures is not None]
    assert counts == [0, 1, 2]
    assert "<progress" in answers[1][0]
    assert told(answers[1][0]).startswith("Picture 1 of 2, step 1 of 2")
    said, page = finished(answers)
    assert said.startswith("Done.")
    assert "python sample.py --class benign --n 1 --seed 6 --steps 2 --weights model.safetensors" in told(page)
    assert told(page).startswith("Synthetic, not for diagnosis.")
    file = rooms.sessions["tab"].pictures[1].made.path
    assert base64.b64encode(file.read_bytes()).decode() in page, "the page has the very bytes of the file"


def test_draw_follows_the_mask_and_shows_its_outline(rooms):
    _, page = finished(rooms.draw("tab", sent(), 1.0, *COMMON))
    assert page.count('class="outline"') == 2
    assert "--mask mask_1.png --n 1" in told(page)
    _, other = finished(rooms.draw("tab", sent(~ELLIPSE), 1.5, *COMMON))
    assert "--mask mask_2.png --control-scale 1.5" in told(other)
    assert (pixels(page) != pixels(other)).any()
    finished(rooms.draw("tab", sent(), 1.0, *COMMON))
    assert sorted(path.name for path in rooms.sessions["tab"].inputs.values()) == ["mask_1.png", "mask_2.png"]
    assert (rooms.sessions["tab"].pictures[0].made.mask[0].numpy() == ELLIPSE).all()


def test_change_draws_a_region_anew_and_leaves_the_rest(rooms):
    grey = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    said, answer = rooms.open("tab", opening(Image.fromarray(grey)))
    assert told(said) == "Opened."
    name = json.loads(answer)["image"]
    _, page = finished(rooms.change("tab", sent(image=name), "region", 0, 0, 100, 0.5, *COMMON))
    assert (pixels(page) == grey)[~ELLIPSE].all()
    assert (pixels(page) != grey)[ELLIPSE].any()
    assert 'class="before"' in page


def test_change_moves_a_lesion_and_changes_the_whole(rooms):
    finished(rooms.draw("tab", sent(), 1.0, *COMMON))
    said, answer = rooms.take("tab")
    assert told(said) == "This is the last picture."
    name = json.loads(answer)["image"]
    assert "mask" in json.loads(answer), "the mask that it followed"
    said, page = finished(rooms.change("tab", sent(image=name), "move", 20, 0, 100, 1.0, *COMMON))
    assert page.count("<figure") == 1, "an inversion draws no noise"
    assert "--invert --source-mask lesion_1.png --mask lesion_2.png --strength 1" in told(page)
    said, page = finished(rooms.change("tab", sent(image=name), "move", 0, 0, 150, 1.0, *COMMON))
    assert "--invert --mask lesion_3.png" in told(page), "to grow, the lesion as it was is left out"
    said, page = finished(rooms.change("tab", sent(image=name), "class", 0, 0, 100, 0.5, "malignant", *COMMON[1:]))
    assert page.count("<figure") == 2
    assert "--class malignant --init image_1.png --strength 0.5" in told(page)


def test_look_and_compare_are_of_the_last_picture_and_the_gallery_stays(rooms):
    finished(rooms.draw("tab", sent(), 1.0, *COMMON))
    said, page = finished(rooms.look("tab"))
    assert said == "Done."
    assert page.count("data-t=") == 2 * 2
    assert 'id="step-line" class="marked"' in page
    assert "least" in told(page)
    assert re.search(r"dpm_solver\.py, line \d+", told(page))
    said, page = finished(rooms.compare("tab"))
    assert re.findall(r"<b>([^<]+)</b>", page) == [
        *("guidance 1", "guidance 3", "guidance 7.5"),
        *("weight of the mask 0", "weight of the mask 1", "weight of the mask 2"),
    ]
    assert len(rooms.sessions["tab"].pictures) == 2


def test_the_canvas_is_told_area_and_pieces_and_where_a_movement_goes(rooms):
    said, answer = rooms.stroke(sent())
    assert told(said) == f"Lesion: {100 * ELLIPSE.mean():.1f} % of the picture, 1 piece. Save mask"
    assert json.loads(answer) == {"outline": ""}
    saved = re.search(r'download="mask.png" href="([^"]+)"', said)[1]
    assert (np.asarray(Image.open(io.BytesIO(unpack(saved)))) == ELLIPSE * 255).all()
    assert json.loads(rooms.stroke(sent(), "move", 20, 0, 100)[1])["outline"].startswith("data:image/png")
    assert json.loads(rooms.stroke(sent(), "region", 20, 0, 100)[1]) == {"outline": ""}


def test_an_opened_mask_comes_back_with_what_was_seen_of_it(rooms):
    drawn = Image.fromarray(np.kron(ELLIPSE, np.ones((3, 3))).astype(np.uint8) * 255)
    said, answer = rooms.open("tab", opening(drawn, "mask", "m.png"))
    assert told(said) == "m.png of 48x48 was resized to 16x16, by nearest pixels."
    assert (np.asarray(Image.open(io.BytesIO(unpack(json.loads(answer)["mask"])))) == ELLIPSE * 255).all()


def refused(answers):
    said, _ = list(answers)[-1]
    assert 'role="alert"' in said
    return told(said)


def test_bad_input_is_a_sentence_in_the_page_without_a_folder_of_the_server(rooms):
    empty, whole = sent(np.zeros((16, 16))), ("normal", *COMMON[1:])
    found = [
        refused(rooms.draw("tab", empty, 2.0, *COMMON)),
        refused(rooms.draw("tab", sent(), 2.0, *whole)),
        refused(rooms.draw("tab", sent(np.zeros((7, 7))), 2.0, *COMMON)),
        refused(rooms.draw("tab", sent(), 99, *COMMON)),
        refused(rooms.draw("tab", sent(), 2.0, "benign", "", 99, 0, 2, False)),
        refused(rooms.make("tab", "", "cyst", "", 1, 0, 2, False)),
        refused(rooms.change("tab", sent(), "region", 0, 0, 100, 0.5, *COMMON)),
        refused(rooms.change("tab", sent(image="../../etc/passwd"), "region", 0, 0, 100, 0.5, *COMMON)),
        refused(rooms.look("empty tab")),
        told(rooms.take("empty tab")[0]),
        told(rooms.dataset("empty tab")),
        told(rooms.open("tab", sent(kind="mask", name="m.png", data=data_url(b"no image")))[0]),
        told(rooms.estimate(0, 20)),
    ]
    begun = [
        *(
            "mask_1.png at 16x16 pixels: an empty mask for the class benign",
            "mask_2.png at 16x16 pixels: a lesion mask",
        ),
        *(
            "image size 7",
            "The weight of the mask: 99",
            "How many: 99",
            "--class cyst: unknown to model.safetensors",
        ),
        *("There is no image to change yet", "There is no image to change yet", "There is no picture yet"),
        *("There is no picture yet", "No picture here has a class", "m.png is not an image", "How many: 0"),
    ]
    assert [sentence[: len(start)] for sentence, start in zip(found, begun, strict=True)] == begun
    assert not any(str(rooms.root) in sentence or "/tmp" in sentence for sentence in found)


def test_a_region_that_is_empty_is_a_sentence(rooms):
    name = json.loads(rooms.open("tab", opening(Image.new("L", (16, 16), 90)))[1])["image"]
    answers = rooms.change("tab", sent(np.zeros((16, 16)), image=name), "region", 0, 0, 100, 0.5, *COMMON)
    assert "empty" in refused(answers)


def test_a_fault_of_the_program_is_told_without_its_words_and_the_next_request_is_drawn(rooms, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "drawn", lambda *_: 1 / 0)
        said = refused(rooms.make("tab", "", *COMMON))
    assert said.startswith("This failed by a fault of the program")
    assert "ZeroDivisionError" in capsys.readouterr().err, "the terminal has it whole"
    assert finished(rooms.make("tab", "", *COMMON))[0].startswith("Done.")


def test_stop_ends_a_request_and_keeps_what_is_done(rooms):
    request = rooms.make("tab", "", "benign", "", 9, 0, 30, False)
    for _, pictures in request:
        if pictures:
            assert "Stopped" in told(rooms.stop("tab"))
            break
    (last,) = list(request)[-1:]
    assert told(last[0]) == "Stopped. What is done stays."
    assert len(rooms.sessions["tab"].pictures) == 1


def test_a_request_after_a_stop_is_drawn_and_those_before_it_are_not(rooms):
    request = rooms.pressed("tab", 0, rooms.make("tab", "", "benign", "", 9, 0, 30, False))
    next(request)
    next(request)
    rooms.stop("tab", 1)
    queued = rooms.pressed("tab", 0, rooms.make("tab", "", *COMMON))
    after = rooms.pressed("tab", 1, rooms.make("tab", "", *COMMON))
    assert told(list(request)[-1][0]) == "Stopped. What is done stays."
    assert list(queued) == []
    rooms.stop("tab", 1)  # arrives late
    assert finished(after)[0].startswith("Done.")
    assert list(rooms.pressed("tab", -1, rooms.make("tab", "", *COMMON))) == [], "a second press while one is drawn"


def test_a_tab_that_closes_stops_what_it_waits_for_and_leaves_nothing(rooms):
    finished(rooms.make("other", "", *COMMON))
    request = rooms.make("tab", "", "benign", "", 9, 0, 900, False)
    next(request)
    next(request)
    rooms.close("tab")
    assert "Stopped" in told(list(request)[-1][0])
    assert set(rooms.sessions) == {"other"}
    assert [path.name for path in rooms.root.iterdir()] == [rooms.sessions["other"].folder.name]
    rooms.close("other")
    rooms.close("never seen")
    assert list(rooms.root.iterdir()) == []


def test_one_tab_knows_no_file_of_another(rooms):
    name = json.loads(rooms.open("tab", opening(Image.new("L", (16, 16), 90)))[1])["image"]
    answers = rooms.change("other", sent(image=name), "region", 0, 0, 100, 0.5, *COMMON)
    assert refused(answers).startswith("There is no image")


def test_the_dataset_of_a_tab_holds_pictures_masks_inputs_and_commands(rooms):
    finished(rooms.draw("tab", sent(), 1.0, *COMMON))
    finished(rooms.make("tab", "", "", "something", 1, 0, 2, False))
    said = rooms.dataset("tab")
    assert told(said).startswith("Download dataset.zip : 2 pictures in the layout of BUSI")
    assert "1 of a prompt without a class is left out" in told(said)
    content = unpack(re.search(r'href="([^"]+)"', said)[1])
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        commands = archive.read("commands.txt").decode().splitlines()
    assert {"dataset/benign/benign (1).png", "dataset/benign/benign (1)_mask.png", "inputs/mask_1.png"} <= names
    assert len(commands) == 3
    assert {path.name for path in rooms.sessions["tab"].folder.iterdir()} == {"inputs", "made"}, "nothing else stays"


def test_a_tab_keeps_the_newest_pictures_alone(rooms, monkeypatch):
    monkeypatch.setattr(session, "MOST_KEPT", 3)
    finished(rooms.make("tab", "", "benign", "", 5, 0, 1, False))
    assert [one.made.sample.seed for one in rooms.sessions["tab"].pictures] == [2, 3, 4]
    assert len(list((rooms.sessions["tab"].folder / "made").iterdir())) == 3


def test_the_time_is_told_once_it_was_measured(engine, tmp_path):
    fresh = Rooms(engine, tmp_path)
    before, engine.seconds = engine.seconds, None
    assert "known after the first picture" in fresh.estimate(4, 20)
    engine.seconds = 0.1
    assert told(fresh.estimate(4, 20)) in {"Time: about 8 s.", "Time: about 16 s."}
    engine.seconds = before


def test_a_model_without_a_controlnet_says_what_to_train(micro, tmp_path):
    torch.manual_seed(0)
    save_model(LatentDiffusion(micro), tmp_path / "plain.safetensors", OLD_LINEAGE)
    plain = Rooms(Engine(tmp_path / "plain.safetensors", "cpu"), tmp_path)
    assert plain.engine.labels == ()
    assert "`train.py controlnet`" in told(plain.unmasked())
    assert "no ControlNet" in refused(plain.draw("tab", sent(), 1.0, *COMMON))


def test_a_model_that_follows_pictures_says_that_sample_py_does_that(micro, tmp_path):
    config = replace(micro, control=replace(micro.control, hint=PICTURE))
    save_model(trained(LatentDiffusion(config)), tmp_path / "other.safetensors", OLD_LINEAGE)
    other = Rooms(Engine(tmp_path / "other.safetensors", "cpu"), tmp_path)
    assert other.engine.labels == ()
    assert "follows pictures, which are not drawn: `sample.py --mask FILE`" in told(other.unmasked())


@pytest.fixture(scope="module")
def two(two_weights, tmp_path_factory):
    """Rooms around a model of buckets whose ControlNet follows two structures."""
    return Rooms(Engine(two_weights, "cpu"), tmp_path_factory.mktemp("two"))


def of_sums(sums, image=None, **file):
    return json.dumps({"mask": data_url(Image.fromarray(sums)), "image": image, "file": file or None})


LOBE = np.zeros((24, 32), np.uint8)
LOBE[4:20, 4:28] = 1
NODULE = LOBE.copy()
NODULE[8:14, 10:16], NODULE[8:14, 20:26] = 2, 3


def as_on_the_command_line(rooms, tab, folder):
    """Draw the newest picture of a tab by its own command; -> its file, and that of the tab, which --verify takes."""
    kept = rooms.sessions[tab].pictures[-1]
    words = [str(word) for word in (*kept.command, *rooms.engine.own, "--out", folder, "--device", "cpu")]
    assert run_command(partial(sample.main, words)) == 0
    assert run_command(partial(sample.main, ["--verify", str(folder), *map(str, rooms.engine.own)])) == 0
    return (folder / kept.made.path.name).read_bytes(), kept.made.path.read_bytes()


def test_two_structures_are_drawn_saved_opened_followed_and_the_same_as_on_the_command_line(two, tmp_path):
    assert two.engine.labels == ("lobe", "nodule")
    said, _ = two.stroke(of_sums(NODULE))
    assert told(said).startswith("Lobe: 45.3 % of the picture, 1 piece. Nodule: 9.4 % of the picture, 2 pieces.")
    saved = unpack(re.search(r'download="mask.png" href="([^"]+)"', said)[1])
    assert set(np.unique(np.asarray(Image.open(io.BytesIO(saved))))) == {0, 1, 2, 3}
    _, answer = two.open("tab", of_sums(NODULE * 0, kind="mask", name="m.png", data=data_url(saved)))
    held = json.loads(answer)
    assert held["size"] == [32, 24]
    assert (np.asarray(Image.open(io.BytesIO(unpack(held["mask"])))) == NODULE).all()
    pages = [finished(two.draw("tab", of_sums(sums), 1.0, *COMMON))[1] for sums in (LOBE, NODULE)]
    assert (pixels(pages[0]) != pixels(pages[1])).any()
    again, first = as_on_the_command_line(two, "tab", tmp_path / "again")
    assert again == first
    assert (two.sessions["tab"].pictures[-1].made.mask[0].numpy() == NODULE).all()
    assert (np.asarray(Image.open(io.BytesIO(unpack(json.loads(two.take("tab")[1])["mask"])))) == NODULE).all()


def test_a_structure_that_moves_is_told_to_the_command_with_all_that_is_drawn(two):
    finished(two.draw("move", of_sums(NODULE), 1.0, *COMMON))
    name = json.loads(two.take("move")[1])["image"]
    _, page = finished(two.change("move", of_sums(NODULE, name), "move", 10, 0, 100, 1.0, *COMMON))
    assert "--source-mask lesion_1.png --mask lesion_2.png" in told(page)
    with Image.open(two.sessions["move"].folder / "inputs" / "lesion_2.png") as picture:
        assert set(np.unique(np.asarray(picture))) == {0, 1, 2, 3}
    _, page = finished(two.change("move", of_sums(NODULE, name), "region", 0, 0, 100, 1.0, *COMMON))
    assert "--inpaint region_1.png" in told(page)
    assert (pixels(page)[NODULE == 0] == np.asarray(picture_of(two, "move", name))[NODULE == 0]).all()


def picture_of(rooms, tab, name):
    with Image.open(rooms.sessions[tab].folder / "inputs" / name) as picture:
        return picture.copy()


@pytest.mark.parametrize(("width", "height", "told_size"), [(32, 24, ""), (24, 32, ""), (48, 16, "--size 48x16")])
def test_a_canvas_of_any_size_gives_pictures_of_it_as_the_command_line_does(two, tmp_path, width, height, told_size):
    _, answer = two.shaped(f"{width}x{height}")
    assert json.loads(answer) == {"size": [width, height]}
    sums = np.zeros((height, width), np.uint8)
    sums[4:12, 4:12] = 2
    _, page = finished(two.draw("size", of_sums(sums), 1.0, *COMMON))
    assert pixels(page).shape == (height, width)
    assert told_size in told(page)
    assert ("--size" in told(page)) == bool(told_size)
    again, first = as_on_the_command_line(two, "size", tmp_path / "again")
    assert again == first
    name = json.loads(two.take("size")[1])["image"]
    for way in ("region", "class"):
        _, page = finished(two.change("size", of_sums(sums, name), way, 0, 0, 100, 0.5, *COMMON))
        assert pixels(page).shape == (height, width)


def test_make_draws_a_size_and_what_is_no_size_is_a_sentence(two, rooms):
    assert two.engine.sizes[0] == "32x24", "what most training images had"
    assert "24x32" in two.engine.sizes
    _, page = finished(two.make("tab", "24x32", *COMMON))
    assert "--size 24x32" in told(page)
    assert pixels(page).shape == (32, 24)
    _, page = finished(rooms.make("tab", "24x16", *COMMON))
    assert pixels(page).shape == (16, 24), "of a model of squares, too"
    said = {
        "24": "",
        "no": "'no' is no size",
        "30x31": "multiple of",
        "960x960": "more than 4 times",
        "0x8": "at least 1",
    }
    for size, start in said.items():
        assert start in told(two.shaped(size)[0])
        assert start in told(two.estimate(1, 2, size))
        assert not start or start in refused(two.make("tab", size, *COMMON))


def test_an_opened_image_keeps_its_aspect_as_sample_py_does_and_a_mask_over_it_has_its_size(two):
    grey = np.random.default_rng(0).integers(0, 256, (80, 60), np.uint8)
    file = {"kind": "image", "name": "i.png", "data": data_url(Image.fromarray(grey))}
    said, answer = two.open("open", of_sums(LOBE, **file))
    held = json.loads(answer)
    assert held["size"] == [24, 32]
    assert told(said) == "i.png of 60x80 was resized to 24x32."
    drawn = np.zeros((32, 24), np.uint8)
    mask = {"kind": "mask", "name": "m.png", "data": data_url(Image.fromarray(LOBE))}
    assert json.loads(two.open("open", of_sums(drawn, held["image"], **mask))[1])["size"] == [24, 32]
    assert json.loads(two.open("open", of_sums(drawn, **mask))[1])["size"] == [32, 24], "without an image its own"


def test_canvas_and_pictures_have_the_size_that_most_training_images_had(micro, tmp_path):
    entry = {"stage": "controlnet", "data": ["phantoms"], "aspect": "bucket", "sizes": {"24x32": 1, "32x24": 5}}
    torch.manual_seed(0)
    path = tmp_path / "lying.safetensors"
    save_model(trained(LatentDiffusion(replace(micro, image_size=32))), path, {"lineage": json.dumps([entry])})
    (tmp_path / "root").mkdir()
    lying = Rooms(Engine(path, "cpu"), tmp_path / "root")
    assert lying.engine.size == (32, 24)
    ellipse = np.hypot(*(np.mgrid[:24, :32] - 12)) < 5
    for _, page in (finished(lying.make("tab", "", *COMMON)), finished(lying.draw("tab", sent(ellipse), 1.0, *COMMON))):
        assert pixels(page).shape[:2] == (24, 32)
    assert (lying.sessions["tab"].pictures[-1].made.mask[0].numpy() == ellipse).all()


@pytest.mark.parametrize("text", ["", "[]", '{"mask": 1}', "null", '{"file": {"kind": "mask"}}'])
def test_whatever_a_canvas_sends_ends_in_a_sentence(rooms, text):
    assert refused(rooms.draw("tab", text, 2.0, *COMMON))
    assert told(rooms.open("tab", text)[0])
    assert told(rooms.stroke(text)[0])
