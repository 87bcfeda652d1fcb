"""train.py under torchrun: two processes on the CPU compute what one computes, resume, and never hang.

Where torchrun itself proves nothing, both processes are forked from this one, which has torch in memory already.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp
from torch import nn

import train
from ldm_us.networks.unet import UNet
from ldm_us.runtime.entry import run_command
from ldm_us.runtime.processes import World, joined
from ldm_us.training import progress
from ldm_us.training.distributed import distribute, gathered_state, gathered_weights, scatter_state
from ldm_us.training.optimizers import EMA, make_optimizer
from tests.conftest import MICRO, read_run

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
STEPS = 20
MINUTE = 60


@pytest.fixture(autouse=True, scope="module")
def small_pictures():
    """A sharded network gathers its weights anew for every step of every picture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "STEPS", 1)
        patch.setattr(progress, "COLUMNS", 1)
        yield


def in_two_processes(action, folder):
    """Fork two processes that torchrun might have started, and call action() in each; -> exit codes and outputs."""
    children, outputs = [], [folder / f"output_{rank}.txt" for rank in range(2)]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    for rank, output in enumerate(outputs):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.environ |= address | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                sys.stdout = sys.stderr = open(output, "w")  # noqa: SIM115
                code = run_command(lambda: int(action() or 0))
            except SystemExit as end:
                code = end.code
            finally:
                sys.stdout.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return codes, [output.read_text() for output in outputs]


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.fixture(scope="module")
def command(arguments, chain):
    """A function of stage, --out and flags: train.py's command line, from weights: no preset is needed."""

    def build(stage, out, *flags):
        weights = chain["unet"].path
        fixed = ("--steps", STEPS, "--save-every", 10, "--ema", 0.9, "--caption-dropout", 0.5, "--lr", 1e-4)
        return arguments(stage, out, *fixed, *flags, weights=weights)

    return build


@pytest.fixture(scope="module")
def two_processes(command):
    """A function: run train.py in two processes; require exit code 0, return what was written."""

    def call(stage, out, *flags):
        out.parent.mkdir(exist_ok=True)
        codes, outputs = in_two_processes(lambda: train.main(command(stage, out, *flags)), out.parent)
        assert codes == [0, 0], outputs
        assert "".join(outputs).count("training images") == 1, "one process speaks"
        return read_run(out)

    return call


@pytest.fixture(scope="module")
def straight(command, tmp_path_factory):
    """Twenty steps in two processes at once, started by torchrun."""
    out = tmp_path_factory.mktemp("straight") / "run"
    flags = ("--batch", 2, "--accumulate", 2, "--validate-every", 10, "--sample-every", 20)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    argv = [*TORCHRUN, "train.py", *command("unet", out, *flags)]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.count("training images") == 1, "one process speaks"
    return read_run(out)


def difference(a, b, part):
    """Norm of the difference of the weights of a part, relative to their norm."""
    names = [name for name in a.weights if name.startswith(f"{part}.")]
    apart = torch.cat([(a.weights[name] - b.weights[name]).flatten() for name in names])
    return float(apart.norm() / torch.cat([a.weights[name].flatten() for name in names]).norm())


def losses(result):
    return [line["loss"] for line in result.log if "loss" in line]


def same_bits(a, b):
    return a.weights.keys() == b.weights.keys() and all(torch.equal(a.weights[n], b.weights[n]) for n in a.weights)


def test_each_gradient_is_held_once_in_what_is_sent_to_the_other_processes(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        layers = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 1))
        loss = distribute(layers, torch.nn.ModuleDict(), World(0, 2), shard=False)
        loss(torch.ones(2, 8)).sum().backward()
    finally:
        dist.destroy_process_group()
    assert len({p.grad.untyped_storage().data_ptr() for p in layers.parameters()}) == 1


def test_two_processes_give_the_result_of_one_at_the_same_global_batch(straight, run, chain, tmp_path):
    flags = ("--steps", STEPS, "--save-every", 10, "--ema", 0.9, "--caption-dropout", 0.5, "--lr", 1e-4, "--batch", 4)
    flags = (*flags, "--validate-every", 10)
    one = run("unet", tmp_path / "one", *flags, weights=chain["unet"].path)
    assert difference(one, straight, "unet") < 1e-5
    assert losses(straight) == pytest.approx(losses(one), rel=1e-5)
    figures, expected = ([line["val_loss"] for line in result.log if "val_loss" in line] for result in (straight, one))
    assert figures == pytest.approx(expected, rel=1e-5)


SHORT = ("--steps", 4, "--save-every", 2)  # sharding so small a model is slow


@pytest.mark.parametrize("stage", ["unet", "controlnet"])
def test_sharded_weights_train_as_whole_ones_do_and_resume_at_the_same_bits(two_processes, run, chain, tmp_path, stage):
    flags = (*SHORT, "--ema", 0.9, "--caption-dropout", 0.5, "--lr", 1e-4, "--batch", 2)
    one = run(stage, tmp_path / "one", *flags, "--validate-every", 2, weights=chain["unet"].path)
    shown = ("--validate-every", 2, "--sample-every", 4)
    sharded = two_processes(stage, tmp_path / "sharded", *SHORT, "--batch", 2, "--shard", *shown)
    assert difference(one, sharded, stage) < 1e-5
    assert losses(sharded) == pytest.approx(losses(one), rel=1e-5)
    figures = [[line for line in result.log if "val_loss" in line] for result in (sharded, one)]
    assert len(figures[0]) == 3
    for line, expected in zip(*figures, strict=True):  # the norms of the zero convolutions too
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert (tmp_path / "sharded" / "samples" / "step_00000004.png").is_file()
    if stage == "unet":
        for steps in (2, 4):
            flags = (*SHORT, "--batch", 2, "--shard", "--steps", steps)
            resumed = two_processes(stage, tmp_path / "stopped", *flags)
        assert same_bits(resumed, sharded)


def test_a_first_stage_with_an_adversary_is_that_of_one_process(two_processes, run, chain, tmp_path):
    terms = ("--size", 24, "--adversarial", 0.5, "--perceptual", 0.1, "--noise-levels", 2, "--steps", 6)
    fixed = ("--ema", 0.9, "--caption-dropout", 0.5, "--lr", 1e-4)
    one = run("vae", tmp_path / "one", *fixed, *terms, "--batch", 4, weights=chain["unet"].path)
    two = two_processes("vae", tmp_path / "two" / "run", *terms, "--batch", 2, "--accumulate", 2)
    assert difference(one, two, "vae") < 1e-5
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    for name in ("adversarial", "lambda", "discriminator"):
        assert [line[name] for line in two.log] == pytest.approx([line[name] for line in one.log], rel=1e-3, abs=1e-5)


def test_a_resumed_run_of_two_processes_ends_at_the_same_bits(two_processes, straight, tmp_path):
    for steps in (10, STEPS):
        flags = ("--batch", 2, "--accumulate", 2, "--steps", steps)
        resumed = two_processes("unet", tmp_path / "stopped", *flags)
    assert same_bits(resumed, straight)


def test_a_run_goes_on_with_another_number_of_processes(two_processes, straight, run, chain, tmp_path):
    two_processes("unet", tmp_path / "run", "--batch", 4, "--steps", 10, "--shard")
    flags = ("--steps", STEPS, "--save-every", 10, "--ema", 0.9, "--caption-dropout", 0.5, "--lr", 1e-4, "--batch", 4)
    resumed = run("unet", tmp_path / "run", *flags, weights=chain["unet"].path)
    assert difference(straight, resumed, "unet") < 1e-5


def test_the_very_same_command_goes_on_alone_after_a_signal_to_one_of_two_processes(command, tmp_path):
    """The other learns of it, and both end after the same step."""

    def stopped():
        check = train.check_finite

        def send(out, where, values):
            if where == "step 3" and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGTERM)
            check(out, where, values)

        train.check_finite = send
        return train.main(command("unet", tmp_path / "run", *flags))

    flags = ("--steps", 6, "--batch", 4)
    codes, outputs = in_two_processes(stopped, tmp_path)
    assert codes == [143, 143]
    assert "".join(outputs).count("run is saved at step 4. The same command again goes on from there.") == 1
    for name in ("run", "straight"):
        assert train.main(command("unet", tmp_path / name, *flags)) == 0
    assert difference(read_run(tmp_path / "straight"), read_run(tmp_path / "run"), "unet") < 1e-5


def test_a_run_of_an_older_version_on_several_processes_is_told_its_batch(command, tmp_path):
    """--batch was that of each process."""

    def again(batch):
        return lambda: train.main(command("unet", tmp_path / "run", "--batch", batch, "--steps", 1))

    assert in_two_processes(again(4), tmp_path)[0] == [0, 0]
    codes, outputs = in_two_processes(again(2), tmp_path)
    assert codes == [2, 2]
    assert "images_per_step was 4, is 2; --batch is that of all 2 processes together now: give --batch 4" in outputs[0]
    codes, outputs = in_two_processes(again(3), tmp_path)
    assert codes == [2, 2]
    assert "--batch 3: 2 processes share it. Use a multiple of 2." in outputs[1]


def test_a_dead_worker_ends_the_run_within_a_minute_and_says_so(command, tmp_path):
    argv = [*TORCHRUN, "train.py", *command("unet", tmp_path / "run", "--steps", 10**6)]
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

    def other_data():
        argv = command("unet", tmp_path / "run", "--held-out", 0)
        if os.environ["RANK"] == "1":
            argv[argv.index("--data") + 1] = str(own_busi)
        return train.main(argv)

    codes, outputs = in_two_processes(other_data, tmp_path)
    assert codes == [2, 2]
    assert all("error: process 1 of 2 has another configuration than process 0" in output for output in outputs)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_folder_that_cannot_be_the_runs_ends_both_processes_and_one_says_why(command, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    codes, outputs = in_two_processes(lambda: train.main(command("unet", tmp_path / "run")), tmp_path)
    assert codes == [2, 2]
    assert "".join(outputs).count("is not empty and holds no run") == 1


class Sum(nn.Module):
    """A loss of one network: all its outputs, added up."""

    def __init__(self, networks):
        super().__init__()
        self.networks = networks

    def forward(self, inputs):
        return self.networks["unet"](*inputs).square().sum()


def sharded_network(world):
    """A split UNet after two steps, its optimiser and its average."""
    torch.manual_seed(0)
    networks = nn.ModuleDict({"unet": UNet(MICRO.unet)})
    networks["unet"].middle.requires_grad_(False)
    loss = distribute(Sum(networks), networks, world, shard=True)
    parameters = {name: p for name, p in networks.named_parameters() if p.requires_grad}
    optimizer, ema = make_optimizer("adamw", parameters.values(), 1e-3, 1e-2), EMA(parameters, 0.9)
    for _ in range(2):
        loss((torch.ones(1, 4, 8, 8), torch.tensor([3]), torch.ones(1, 77, 8))).backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
    return networks, optimizer, ema


def moments_of(optimizer):
    """This process's share of every moment."""
    return [state[key].to_local().clone() for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]


def test_only_process_0_ever_holds_a_whole_copy_of_what_is_split(micro, tmp_path):
    """Its state and its result; the other has shares alone, and gets them back where a state is put in place."""

    def check():
        with joined() as world:
            networks, optimizer, ema = sharded_network(world)
            state, weights = gathered_state(networks, optimizer, ema), gathered_weights(networks)
            if not world.main:
                assert state == {}
                assert weights == {}
            else:
                assert state["trained"].keys() == ema.parameters.keys()
                shapes = {name: value.shape for name, value in networks.named_parameters()}
                assert {name: value.shape for name, value in weights.items()} == shapes
                torch.save(state, tmp_path / "state.pt")
            world.barrier()
            held = [p.to_local().numel() for p in networks.parameters()]
            assert sum(held) < 0.6 * sum(p.numel() for p in networks.parameters())

            state = torch.load(tmp_path / "state.pt", weights_only=True)
            before = [value.to_local().clone() for value in (*networks.parameters(), *ema.average.values())]
            moments = moments_of(optimizer)
            with torch.no_grad():
                for value in (*ema.parameters.values(), *ema.average.values()):
                    value.zero_()
            optimizer.state.clear()
            ema.updates = 0
            scatter_state(networks, optimizer, ema, state, world)
            after = [value.to_local() for value in (*networks.parameters(), *ema.average.values())]
            assert all(map(torch.equal, before, after))
            assert all(map(torch.equal, moments, moments_of(optimizer)))
            assert ema.updates == 2

    codes, outputs = in_two_processes(check, tmp_path)
    assert codes == [0, 0], outputs


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
