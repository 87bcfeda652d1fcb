"""train.py under torchrun: two processes on the CPU compute what one computes, resume, and never hang."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ldm_us.runtime.processes import ALONE
from tests.conftest import read_run

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
STEPS = 20
MINUTE = 60


@pytest.fixture(scope="module")
def command(arguments, chain):
    """A function of stage, --out and flags: train.py's command line, from weights: no preset is needed."""

    def build(stage, out, *flags):
        weights = chain["unet"].path
        fixed = ("--steps", STEPS, "--save-every", 10, "--ema", 0.9, "--caption-dropout", 0.5, "--lr", 1e-4)
        return ["train.py", *arguments(stage, out, *fixed, *flags, weights=weights)]

    return build


@pytest.fixture(scope="module")
def two_processes(command):
    """A function: run train.py by torchrun in two processes; require exit code 0, return what was written."""

    def call(stage, out, *flags):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        argv = [*TORCHRUN, *command(stage, out, *flags)]
        done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-6000:]
        assert done.stdout.count("training images") == 1, "one process speaks"
        return read_run(out)

    return call


@pytest.fixture(scope="module")
def straight(two_processes, tmp_path_factory):
    """Twenty steps in two processes at once."""
    out = tmp_path_factory.mktemp("straight") / "run"
    return two_processes("unet", out, "--batch", 1, "--accumulate", 2, "--validate-every", 10, "--sample-every", 20)


def difference(a, b, part):
    """Norm of the difference of the weights of a part, relative to their norm."""
    names = [name for name in a.weights if name.startswith(f"{part}.")]
    apart = torch.cat([(a.weights[name] - b.weights[name]).flatten() for name in names])
    return float(apart.norm() / torch.cat([a.weights[name].flatten() for name in names]).norm())


def losses(result):
    return [line["loss"] for line in result.log if "loss" in line]


def same_bits(a, b):
    return a.weights.keys() == b.weights.keys() and all(torch.equal(a.weights[n], b.weights[n]) for n in a.weights)


def test_two_processes_give_the_result_of_one_at_the_same_global_batch(straight, run, chain, tmp_path):
    flags = ("--steps", STEPS, "--save-every", 10, "--ema", 0.9, "--caption-dropout", 0.5, "--lr", 1e-4, "--batch", 4)
    flags = (*flags, "--validate-every", 10)
    one = run("unet", tmp_path / "one", *flags, weights=chain["unet"].path)
    assert difference(one, straight, "unet") < 1e-5
    assert losses(straight) == pytest.approx(losses(one), rel=1e-5)
    figures, expected = ([line["val_loss"] for line in result.log if "val_loss" in line] for result in (straight, one))
    assert figures == pytest.approx(expected, rel=1e-5)


SHORT = ("--steps", 6, "--save-every", 3)  # sharding so small a model is slow


@pytest.mark.parametrize("stage", ["unet", "controlnet"])
def test_sharded_weights_train_as_whole_ones_do_and_resume_at_the_same_bits(two_processes, run, chain, tmp_path, stage):
    flags = (*SHORT, "--ema", 0.9, "--caption-dropout", 0.5, "--lr", 1e-4, "--batch", 2)
    one = run(stage, tmp_path / "one", *flags, "--validate-every", 3, weights=chain["unet"].path)
    shown = ("--validate-every", 3, "--sample-every", 6)
    sharded = two_processes(stage, tmp_path / "sharded", *SHORT, "--batch", 1, "--shard", *shown)
    assert difference(one, sharded, stage) < 1e-5
    assert losses(sharded) == pytest.approx(losses(one), rel=1e-5)
    figures = [[line for line in result.log if "val_loss" in line] for result in (sharded, one)]
    assert len(figures[0]) == 3
    for line, expected in zip(*figures, strict=True):  # the norms of the zero convolutions too
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert (tmp_path / "sharded" / "samples" / "step_00000006.png").is_file()
    if stage == "unet":
        for steps in (3, 6):
            flags = (*SHORT, "--batch", 1, "--shard", "--steps", steps)
            resumed = two_processes(stage, tmp_path / "stopped", *flags)
        assert same_bits(resumed, sharded)


def test_a_resumed_run_of_two_processes_ends_at_the_same_bits(two_processes, straight, tmp_path):
    for steps in (10, STEPS):
        flags = ("--batch", 1, "--accumulate", 2, "--steps", steps)
        resumed = two_processes("unet", tmp_path / "stopped", *flags)
    assert same_bits(resumed, straight)


def test_a_run_goes_on_with_another_number_of_processes(two_processes, straight, run, chain, tmp_path):
    two_processes("unet", tmp_path / "run", "--batch", 2, "--steps", 10, "--shard")
    flags = ("--steps", STEPS, "--save-every", 10, "--ema", 0.9, "--caption-dropout", 0.5, "--lr", 1e-4, "--batch", 4)
    resumed = run("unet", tmp_path / "run", *flags, weights=chain["unet"].path)
    assert difference(straight, resumed, "unet") < 1e-5


def test_a_dead_worker_ends_the_run_within_a_minute_and_says_so(command, tmp_path):
    argv = [*TORCHRUN, *command("unet", tmp_path / "run", "--steps", 10**6)]
    running = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    log = tmp_path / "run" / "log.jsonl"
    while not (log.is_file() and log.read_text().count("\n") > 3):
        assert running.poll() is None
        time.sleep(0.1)
    (worker, _) = workers_of(running.pid)
    os.kill(worker, signal.SIGKILL)
    _, errors = running.communicate(timeout=MINUTE)
    assert running.returncode != 0
    assert "Signal 9 (SIGKILL)" in errors


def workers_of(pid):
    """The two train.py processes that torchrun started."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=True).stdout.split()
    return [int(child) for child in found if "train.py" in Path(f"/proc/{child}/cmdline").read_text()]


def test_processes_that_read_other_data_say_so_and_none_hangs(command, own_busi, tmp_path):
    next(own_busi.glob("benign/*_mask.png")).unlink()
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    running = []
    for rank in range(2):
        argv = [sys.executable, *command("unet", tmp_path / "run", "--held-out", 0)]
        argv[argv.index("--data") + 1] = str(own_busi) if rank else argv[argv.index("--data") + 1]
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        running.append(
            subprocess.Popen(argv, cwd=ROOT, env=os.environ | environment | ranks, stderr=subprocess.PIPE, text=True)
        )
    for process in running:
        _, errors = process.communicate(timeout=MINUTE)
        assert process.returncode == 2
        assert "error: process 1 of 2 has another configuration than process 0" in errors
    assert not (tmp_path / "run" / "config.json").exists()


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def test_alone_nothing_is_exchanged():
    ALONE.barrier()
    ALONE.check_same("anything", object())
    assert ALONE.mean({"loss": 2.0}) == {"loss": 2.0}
    assert ALONE.main


@pytest.mark.parametrize(
    ("flags", "named"),
    [(("--shard",), "start several with torchrun"), (("--workers", -1), "--workers -1")],
)
def test_options_for_several_processes_are_checked(refused, tmp_path, flags, named):
    assert named in refused("unet", tmp_path / "run", *flags)


def test_prepared_batches_are_those_of_the_loop_itself(run, chain, tmp_path):
    alone = run("controlnet", tmp_path / "alone", "--steps", 4, weights=chain["unet"].path)
    ahead = run("controlnet", tmp_path / "ahead", "--steps", 4, "--workers", 2, weights=chain["unet"].path)
    assert same_bits(alone, ahead)
