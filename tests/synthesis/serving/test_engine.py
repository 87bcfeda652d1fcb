"""The engine: its files are those of sample.py, bit for bit; requests wait in order, stop within a step, fail alone."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from ldm_us.config import BUNDLED
from ldm_us.runtime.entry import run_command
from ldm_us.synthesis.serving.commands import Asked, asked, number, whole
from ldm_us.synthesis.serving.engine import Engine, Progress, StoppedError
from ldm_us.synthesis.serving.inside import equation_of, look, variants
from ldm_us.synthesis.serving.single import Made, write_busi


@pytest.fixture(scope="module")
def engine(weights):
    return Engine(weights, "cpu")


@pytest.fixture
def mask(tmp_path):
    drawn = np.zeros((16, 16), np.uint8)
    drawn[4:11, 5:13] = 255
    path = tmp_path / "mask_1.png"
    Image.fromarray(drawn).save(path)
    return path


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image_1.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)).save(path)
    return path


def commands(*more, n=1, steps=2, **about):
    return [command for _, command in Asked("benign", n=n, steps=steps, **about).commands(*more)]


def drawn(engine, command, out, stop=None):
    *progress, made = engine.draw(command, out, stop or threading.Event())
    return progress, made


def by_sample_py(command, engine, out):
    """The one picture that sample.py writes for a command."""
    words = [str(word) for word in (*command, *engine.own, "--out", out)]
    assert run_command(partial(sample.main, words)) == 0
    (path,) = out.glob("0000_*.png")
    return path


def edits(mask, image):
    """A command of every room, by name."""
    return {
        "class": (),
        "mask": ("--mask", mask),
        "scaled mask": ("--mask", mask, "--control-scale", "1.5"),
        "region": ("--init", image, "--inpaint", mask),
        "moved": ("--init", image, "--invert", "--source-mask", mask, "--mask", mask, "--strength", "1"),
        "changed": ("--init", image, "--strength", "0.5"),
    }


@pytest.mark.parametrize("kind", ["class", "mask", "scaled mask", "region", "moved", "changed"])
def test_a_picture_is_the_file_of_its_command_byte_for_byte_and_is_verified(engine, mask, image, tmp_path, kind):
    (command,) = commands(*edits(mask, image)[kind], seed=7)
    progress, made = drawn(engine, command, tmp_path / "made")
    again = by_sample_py(command, engine, tmp_path / "again")
    assert made.path.name == again.name
    assert made.path.read_bytes() == again.read_bytes()
    assert [one.call for one in progress] == list(range(1, progress[0].total + 1)), "a call of the denoiser each"
    files = ["--init", image] if "--init" in command else []
    files += ["--inpaint", mask] if kind == "region" else []
    files += ["--source-mask", mask] if kind == "moved" else []
    words = ["--verify", made.path, "--weights", engine.own[1], *files]
    assert run_command(partial(sample.main, [str(word) for word in words])) == 0


def test_pixels_outside_a_region_are_those_of_the_image(engine, mask, image, tmp_path):
    _, made = drawn(engine, commands("--init", image, "--inpaint", mask)[0], tmp_path / "made")
    before, after, inside = (np.asarray(Image.open(path)) for path in (image, made.path, mask))
    assert (before == after)[inside == 0].all()
    assert (before != after)[inside > 0].any()


def test_a_command_is_shown_as_it_is_typed_without_the_folders_of_the_server(engine, mask):
    (command,) = commands("--mask", mask)
    asked = "python sample.py --class benign --mask mask_1.png --n 1 --seed 0 --steps 2"
    assert engine.shown(command) == f"{asked} --weights model.safetensors --device cpu"
    assert Engine(BUNDLED).shown(command) == asked


@pytest.mark.parametrize("prompt", ["--n 5", "a 'quoted' \"text\"; rm -rf", "Ultrasound, 5 % = x"])
def test_no_prompt_is_taken_for_an_option(engine, tmp_path, prompt):
    ((_, command),) = Asked(prompt=prompt, n=1, steps=1).commands()
    assert engine.options_of(command).prompt == prompt
    _, made = drawn(engine, command, tmp_path / "made")
    assert made.fields["prompt"] == prompt


def test_a_stop_ends_a_picture_before_its_next_call_and_writes_nothing(engine, tmp_path):
    stop, seen = threading.Event(), []

    def watch():
        for progress in engine.draw(commands(steps=50)[0], tmp_path / "made", stop):
            seen.append(progress)
            stop.set()

    with pytest.raises(StoppedError):
        watch()
    assert len(seen) < 5
    assert not (tmp_path / "made").exists()
    drawn(engine, commands()[0], tmp_path / "next")


def test_leaving_a_request_frees_the_model_for_the_next(engine, tmp_path):
    request = engine.draw(commands(steps=900)[0], tmp_path / "left", threading.Event())
    next(request)
    request.close()
    drawn(engine, commands()[0], tmp_path / "next")
    assert not (tmp_path / "left").exists()


def test_a_request_that_is_stopped_while_it_waits_is_never_begun(engine, tmp_path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        list(engine.draw(commands()[0], tmp_path / "made", stop))


def test_twenty_requests_at_once_end_in_order_each_with_its_own_bits(engine, tmp_path):
    ended, alone = [], drawn(engine, commands(seed=0)[0], tmp_path / "alone")[1].path.read_bytes()
    begun = [engine.draw(command, tmp_path / str(i), threading.Event()) for i, command in enumerate(commands(n=20))]

    def finish(i):
        *_, made = begun[i]
        return made

    with ThreadPoolExecutor(20) as pool:
        for i in range(20):
            future = pool.submit(finish, i)
            future.add_done_callback(lambda future: ended.append(future.result().sample.seed))
            while engine.pool._work_queue.qsize() + len(ended) < i:  # the requests come one after the other
                threading.Event().wait(0.001)
    assert sorted(ended) == list(range(20))
    assert len({(tmp_path / str(i) / f"0000_benign_seed{i}.png").read_bytes() for i in range(20)}) == 20
    assert (tmp_path / "0" / "0000_benign_seed0.png").read_bytes() == alone


def test_an_error_in_one_request_is_its_own_and_the_next_one_is_drawn(engine, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("ldm_us.synthesis.serving.single.grey_picture", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            list(engine.draw(commands()[0], tmp_path / "broken", threading.Event()))
    drawn(engine, commands()[0], tmp_path / "next")


def test_what_sample_py_refuses_is_refused_in_its_sentence(engine, mask, tmp_path):
    empty = tmp_path / "empty.png"
    Image.new("L", (16, 16)).save(empty)
    for more, said in (
        (("--mask", empty), "an empty mask for the class benign"),
        (("--no-such", "x"), "does not read"),
    ):
        with pytest.raises(ValueError, match=said):
            list(engine.draw(commands(*more)[0], tmp_path / "made", threading.Event()))


def test_time_is_measured_and_counts_guidance_twice(engine, tmp_path):
    drawn(engine, commands()[0], tmp_path / "made")
    assert engine.seconds > 0
    assert engine.cost(commands("--guidance", "1")[0]) * 2 == engine.cost(commands("--guidance", "3")[0]) == 4
    progress, _ = drawn(engine, commands()[0], tmp_path / "again")
    left = [one.seconds for one in progress]
    assert left == sorted(left, reverse=True)
    assert all(isinstance(one, Progress) for one in progress)


def test_a_look_inside_shows_every_step_and_changes_no_bit(engine, mask, tmp_path):
    (command,) = commands("--mask", mask, steps=3)
    before = drawn(engine, command, tmp_path / "before")[1]
    seen = look(engine, command)
    assert [t for t, _, _ in seen.frames] == sorted((t for t, _, _ in seen.frames), reverse=True)
    assert len(seen.frames) == 3
    assert [word for word, _ in seen.words][-1] == "breast"
    assert len(seen.levels) == len(seen.residuals[0][1]) > 1
    assert not look(engine, commands()[0]).levels, "no mask, no control"
    assert drawn(engine, command, tmp_path / "after")[1].path.read_bytes() == before.path.read_bytes()


def test_an_edit_has_no_way_from_noise_to_look_into(engine, image):
    with pytest.raises(ValueError, match="edit"):
        look(engine, commands("--init", image, "--strength", "0.5")[0])


@pytest.mark.parametrize(("sampler", "tag"), [("dpm", "DPMSolver"), ("ddim", "DDIM Eq. 12"), ("ddpm", "DDPM Eq.")])
def test_the_equation_of_a_step_is_the_line_that_has_its_tag(sampler, tag):
    file, line, lines = equation_of(sampler)
    assert tag in dict(lines)[line]
    assert file.startswith("ldm_us/diffusion/")


def test_variants_differ_in_one_weight_and_draw_with_it(engine, mask):
    (command,) = commands("--mask", mask)
    found = variants(command)
    assert [name for name, _ in found][::3] == ["guidance 1", "weight of the mask 0"]
    assert [engine.options_of(one).recipe.sampling.guidance for _, one in found[:3]] == [1.0, 3.0, 7.5]
    assert len(variants(commands()[0])) == 3, "without a mask there is no weight of it"


def test_pictures_of_several_commands_become_a_dataset_that_is_verified(engine, mask, tmp_path):
    made = [drawn(engine, command, tmp_path / str(i))[1] for i, command in enumerate(commands("--mask", mask, n=2))]
    made += [drawn(engine, command, tmp_path / str(name))[1] for name, command in enumerate(commands(n=2, seed=9), 2)]
    ((_, prompt),) = Asked(prompt="something", n=1, steps=1).commands()
    made += [drawn(engine, prompt, tmp_path / "prompt")[1]]
    left = write_busi(made, tmp_path / "dataset")
    assert [one.fields["prompt"] for one in left] == ["something"]
    names = sorted(path.name for path in (tmp_path / "dataset" / "benign").iterdir())
    assert names == [
        *("benign (1).png", "benign (1)_mask.png", "benign (2).png", "benign (2)_mask.png"),
        *("benign (3).png", "benign (4).png"),
    ]
    assert (tmp_path / "dataset/benign/benign (1).png").read_bytes() == made[0].path.read_bytes()
    words = ["--verify", tmp_path / "dataset", "--weights", engine.own[1]]
    assert run_command(partial(sample.main, [str(word) for word in words])) == 0
    with pytest.raises(ValueError, match="class"):
        write_busi(left, tmp_path / "none")
    assert isinstance(made[0], Made)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("benign", "", 0, 0, 20, False), "How many: 0"),
        (("benign", "", 17, 0, 20, False), "How many: 17"),
        (("benign", "", 4, -1, 20, False), "The seed: -1"),
        (("benign", "", 4, 0.5, 20, False), "The seed: 0.5"),
        (("benign", "", 4, 0, float("nan"), False), "Steps: nan"),
        (("benign", "", 4, 0, float("inf"), False), "Steps: inf"),
        (("benign", "", "4", 0, 20, False), "How many: 4"),
        (("", "  ", 4, 0, 20, False), "no text"),
        ((None, None, 4, 0, 20, False), "no text"),
    ],
)
def test_whatever_a_page_sends_is_checked(values, said):
    with pytest.raises(ValueError, match=said):
        asked(*values)


def test_numbers_have_limits():
    assert (whole("N", 3.0, 1, 4), number("X", 1, 0, 2)) == (3, 1.0)
    for value in (None, [], "1", True and float("nan"), 9):
        with pytest.raises(ValueError, match="X: "):
            number("X", value, 0, 2)
