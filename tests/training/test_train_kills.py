"""train.py and signals: after SIGKILL at any time, the same command ends where an uninterrupted run ends, bit for bit.

Ctrl-C and SIGTERM cost not even the step.
Children are forked from this process, which has torch in memory already: twenty interpreters would take a minute.
"""

import builtins
import io
import json
import os
import random
import re
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import train
from ldm_us.runtime.entry import run_command
from ldm_us.training import progress
from ldm_us.training.run import list_states, load_newest_state

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills need fork"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="autograd cannot be forked once it has threads for a GPU"),
]
STAGES = ("vae", "unet", "controlnet")
START = {"vae": None, "unet": "vae", "controlnet": "unet"}
RHYTHM = ("--steps", 5, "--save-every", 2, "--validate-every", 2, "--sample-every", 3, "--log-every", 1)
FLAGS = (*RHYTHM, "--warmup", 3, "--ema", 0.9, "--held-out", 0.3)
SPEED = {"images_per_s", "data_share"}
KILLS = 3  # of each stage, at random moments; more, certainly within a write, below


@pytest.fixture(autouse=True, scope="module")
def small_pictures():
    """Small pictures and validations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "STEPS", 1)
        patch.setattr(progress, "COLUMNS", 1)
        patch.setattr(progress, "IMAGES", 2)
        yield


@pytest.fixture(scope="module")
def command(arguments, chain):
    """A function of stage and folder: the command line that is run, killed and run again."""

    def build(stage, out):
        weights = None if START[stage] is None else chain[START[stage]].path
        return arguments(stage, out, *FLAGS, weights=weights)

    return build


@pytest.fixture(scope="module")
def straight(command, tmp_path_factory):
    """A function of a stage: the folder of an uninterrupted run, and the seconds it took."""
    runs = {}

    def call(stage):
        if stage not in runs:
            out, started = tmp_path_factory.mktemp("straight") / stage, time.perf_counter()
            assert wait(start(command(stage, out))) == 0
            runs[stage] = out, time.perf_counter() - started
        return runs[stage]

    return call


def forked(main, argv, prepare=lambda: None):
    """Fork a child that prepares itself and then runs the main of a command; return its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        sys.stdout = sys.stderr = io.StringIO()
        prepare()
        code = run_command(lambda: main(argv))
    finally:
        os._exit(code)


start = partial(forked, train.main)


def wait(child):
    """The exit code of a child, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def log_of(out):
    """The whole lines of a log, without the speed."""
    rows = (out / "log.jsonl").read_text().splitlines(keepends=True)
    lines = [json.loads(row) for row in rows if row.endswith("\n")]
    return [{name: value for name, value in line.items() if name not in SPEED} for line in lines]


def assert_same_end(out, expected):
    """Every tensor and every picture, bit for bit, and every line of the log but for its speed."""
    names = [sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) for folder in (out, expected)]
    assert names[0] == names[1]
    for name in names[0]:
        if name.endswith(".pt"):  # as a file it also tells which strings are one object
            states = (torch.load(folder / name, weights_only=True) for folder in (out, expected))
            assert flat(next(states)) == flat(next(states)), name
        elif name not in ("log.jsonl", "curves.png") and (out / name).is_file():
            assert (out / name).read_bytes() == (expected / name).read_bytes(), name
    assert log_of(out) == log_of(expected)


def flat(value):
    """A state with its tensors as bytes, so that two can be compared."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    if isinstance(value, dict):
        return {name: flat(part) for name, part in value.items()}
    return [flat(part) for part in value] if isinstance(value, list | tuple) else value


def step_of(out):
    """The step that a killed run goes on from."""
    state = load_newest_state(out)
    return 0 if state is None else state["step"]


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_random_moments_a_run_ends_as_if_never_killed(command, straight, tmp_path, stage):
    (expected, seconds), moments = straight(stage), random.Random(stage)
    kills, run = 0, 0
    while kills < KILLS:
        out, step, code = tmp_path / str(run), 0, None
        while code != 0:
            child = start(command(stage, out))
            if kills < KILLS:
                time.sleep(moments.uniform(0, seconds))
                os.kill(child, signal.SIGKILL)
            code = wait(child)
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
            assert step_of(out) >= step, "no saved state is ever lost"
            step = step_of(out)
            if step > 0:
                logs = ([line for line in log_of(folder) if line["step"] <= step] for folder in (out, expected))
                assert next(logs) == next(logs), "nor a line of the log before it"
        assert_same_end(out, expected)
        run += 1


class DyingFile(io.FileIO):
    """A file in the middle of whose writing the process is killed."""

    limit = 0  # bytes of the file that are still written

    def write(self, data):
        data = data.encode() if isinstance(data, str) else memoryview(data).cast("B")
        room = self.limit - self.tell()
        if len(data) <= room:
            return super().write(data)
        super().write(data[:room])
        os.kill(os.getpid(), signal.SIGKILL)


def dies_writing(part, nth, limit):
    """A function that makes this process die within the nth writing of files with `part` in their name."""

    def prepare():
        real_open, opened = builtins.open, []

        def dying_open(path, mode="r", *args, **kwargs):
            if not isinstance(path, str | Path) or part not in Path(path).name or mode[0] not in "wa":
                return real_open(path, mode, *args, **kwargs)
            opened.append(path)
            if len(opened) < nth:
                return real_open(path, mode, *args, **kwargs)
            file = DyingFile(path, mode[0])
            file.limit = limit + (os.path.getsize(path) if mode[0] == "a" else 0)
            return file

        builtins.open = dying_open

    return prepare


@pytest.mark.parametrize(
    ("name", "nth", "goes_on_from"),
    [
        ("config.json", 1, 0),
        ("log.jsonl", 1, 0),  # the validation of step 0
        ("log.jsonl", 2, 0),  # the first step
        ("log.jsonl", 6, 2),  # validation after step 4
        ("samples/step_00000000.png", 1, 0),
        ("state/step_00000002.pt", 1, 0),
        ("state/step_00000004.pt", 1, 2),
        ("state/step_00000005.pt", 1, 4),
        ("curves.png", 1, 2),
        ("curves.png", 3, 5),  # the last one
        ("samples/step_00000003.png", 1, 2),
        ("model.safetensors", 1, 5),
    ],
)
def test_killed_within_a_write_a_run_ends_as_if_never_killed(command, straight, tmp_path, name, nth, goes_on_from):
    (expected, _), out = straight("unet"), tmp_path / "run"
    half = 20 if name == "log.jsonl" else (expected / name).stat().st_size // 2 if (expected / name).exists() else 500
    child = start(command("unet", out), dies_writing(Path(name).name, nth, half))
    assert wait(child) == -signal.SIGKILL
    if name == "log.jsonl":
        assert not (out / name).read_bytes().endswith(b"\n"), "a torn line"
    else:
        (torn,) = out.rglob("*.tmp")
        assert (torn.parent, torn.stat().st_size) == ((out / name).parent, half)
    assert step_of(out) == goes_on_from
    assert wait(start(command("unet", out))) == 0
    assert_same_end(out, expected)


def test_killed_before_the_oldest_state_is_deleted_a_run_deletes_it_when_it_resumes(command, straight, tmp_path):
    (expected, _), out = straight("unet"), tmp_path / "run"

    def prepare():
        Path.unlink = lambda path: os.kill(os.getpid(), signal.SIGKILL)

    assert wait(start(command("unet", out), prepare)) == -signal.SIGKILL
    assert [path.name.lstrip("step_0") for path in list_states(out)] == ["2.pt", "4.pt", "5.pt"]
    assert wait(start(command("unet", out))) == 0
    assert_same_end(out, expected)


def signalled(said, place, *numbers, whole_group=False):
    """A function that lets a child write what it says into a file and send itself signals at a call of train.`place`.

    Where that is check_finite, at its third step.
    """

    def prepare():
        os.setpgrp()
        sys.stderr = open(said, "w", buffering=1)  # noqa: SIM115
        called = getattr(train, place)

        def send(*arguments):
            if place != "check_finite" or arguments[1] == "step 3":
                for number in numbers:
                    os.killpg(0, number) if whole_group else os.kill(os.getpid(), number)
            return called(*arguments)

        setattr(train, place, send)

    return prepare


@pytest.mark.parametrize(
    ("number", "flags"),
    [(signal.SIGINT, ()), (signal.SIGTERM, ()), (signal.SIGTERM, ("--workers", "1"))],
    ids=["ctrl_c", "term", "term_of_the_workers_too"],
)
def test_a_signal_ends_a_run_after_a_whole_step_that_is_saved_and_the_same_command_goes_on(
    command, straight, tmp_path, number, flags
):
    (expected, _), out, said = straight("unet"), tmp_path / "run", tmp_path / "said"
    sent = signalled(said, "check_finite", number, whole_group=bool(flags))
    assert wait(start([*command("unet", out), *flags], sent)) == 128 + number
    last = said.read_text().splitlines()[-1]
    assert re.fullmatch(rf"stopped: {out} is saved at step [34]\. The same command again goes on from there\.", last)
    assert step_of(out) == int(last.split("step ")[1][0])
    assert not (out / "model.safetensors").exists()
    assert wait(start(command("unet", out))) == 0
    assert_same_end(out, expected)


@pytest.mark.parametrize(
    ("place", "numbers", "word", "step"),
    [
        ("check_finite", (signal.SIGTERM, signal.SIGINT), "interrupted. The same command again goes on from there.", 2),
        ("load_training_set", (signal.SIGTERM,), "terminated", 0),
        ("load_training_set", (signal.SIGINT,), "interrupted", 0),
    ],
)
def test_a_second_signal_and_one_before_training_end_at_once_with_one_line(
    command, tmp_path, place, numbers, word, step
):
    out, said = tmp_path / "run", tmp_path / "said"
    assert wait(start(command("unet", out), signalled(said, place, *numbers))) == 128 + numbers[-1]
    lines = [line for line in said.read_text().replace("\r", "\n").splitlines() if line and "step/s" not in line]
    assert lines == [word]
    assert step_of(out) == step
    assert not list(tmp_path.rglob("*.tmp"))
