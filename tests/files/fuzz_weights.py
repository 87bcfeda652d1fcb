"""Damaged and lying files of weights against the code that opens them: `python -m tests.files.fuzz_weights --n 2000`.

Each file is valid, of one of the formats, and then changed (weights_mutations.py). It is opened in a process of its
own, as the commands open it. That must succeed or end in a ValueError of one line, within --seconds and --megabytes,
and leave no file behind. What does neither is kept and listed with its seed, and the exit code is 1.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import save_file

from ldm_us.config import PRESETS, ControlConfig, ModelConfig, TextConfig, UNetConfig, VAEConfig
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.evaluation.judge.file import Training, load_judge, save_judge
from ldm_us.evaluation.judge.network import JudgeConfig, fresh_judge
from ldm_us.files.checkpoint import load_model, save_model
from ldm_us.files.lora_file import apply_lora, save_lora
from ldm_us.networks.lora import LoRAConfig, add_lora
from ldm_us.runtime.entry import run_command
from ldm_us.synthesis.info import describe_model
from ldm_us.training.run import load_newest_state, save_state
from tests.files.weights_mutations import mutate
from weights_convert.__main__ import main as weights_convert
from weights_convert.convert import target_shapes
from weights_convert.expansion import rules_for
from weights_convert.rules import Layout

MICRO = ModelConfig(
    name="fuzzed",
    image_size=8,
    vae=VAEConfig(width=4, multipliers=(1, 2), res_blocks=1, groups=2),
    text=TextConfig(vocabulary=8, length=4, width=4, heads=2, layers=1, mlp_width=4),
    unet=UNetConfig(
        width=4, multipliers=(1, 2), attention=(True, False), res_blocks=1, heads=2, context_width=4, groups=2
    ),
    control=ControlConfig(hint_channels=(2, 4)),
)
PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text": "cond_stage_model.transformer.text_model.",
}
KEPT = Path(tempfile.gettempdir()) / "fuzz_weights"  # files that showed a defect, unless told
WAIT = 10  # times the seconds of computing that a file may take on the clock, for what only waits
CHUNK = 250  # files between two lines of progress
LONGEST = 2000  # characters of an error
STATE = Path("run/state/step_00000001.pt")


@dataclasses.dataclass(frozen=True)
class Case:
    """A folder of valid files, the one of them that is changed, and the code that opens it."""

    name: str
    folder: Path
    file: Path  # in the folder
    run: str  # how it is opened: a name of open_as


def tensors_in(naming, parts, prefixes, model):
    """The weights of a model in the names of another layout."""
    state, shapes = model.state_dict(), target_shapes(MICRO)
    made = {}
    for part in parts:
        for rule in rules_for(MICRO, Layout(part, naming, prefixes.get(part, "")), shapes):
            made[rule.source] = torch.cat([state[target] for target in rule.targets])
    return made


def write_cases(root):
    """One small valid file of every kind."""
    PRESETS[MICRO.name] = MICRO
    torch.manual_seed(0)
    model = LatentDiffusion(MICRO)
    compvis = tensors_in("compvis", ("unet", "vae"), PREFIXES, model) | tensors_in(
        "transformers", ("text",), PREFIXES, model
    )
    cases = []

    def add(name, file, run):
        cases.append(Case(name, root / name, Path(file), run))
        (root / name / file).parent.mkdir(parents=True, exist_ok=True)
        return root / name / file

    save_file(compvis, add("compvis safetensors", "x.safetensors", "import"), {"format": "pt"})
    torch.save({"state_dict": compvis, "epoch": 3, "lr": 1e-5}, add("compvis zip", "x.ckpt", "import"))
    old = add("compvis old pickle", "x.ckpt", "import")
    torch.save({"state_dict": compvis}, old, _use_new_zipfile_serialization=False)
    unet = tensors_in("diffusers", ("unet",), {}, model)
    for name, file in (
        ("diffusers safetensors", "unet/diffusion_pytorch_model.safetensors"),
        ("diffusers bin", "vae/diffusion_pytorch_model.bin"),
    ):
        folder = add(name, file, "import folder").parent.parent
        for part in ("unet", "vae", "text_encoder"):
            (folder / part).mkdir(exist_ok=True)
        save_file(unet, folder / "unet" / "diffusion_pytorch_model.safetensors")
        torch.save(tensors_in("diffusers", ("vae",), {}, model), folder / "vae" / "diffusion_pytorch_model.bin")
        save_file(
            tensors_in("transformers", ("text",), {"text": "text_model."}, model),
            folder / "text_encoder" / "model.safetensors",
        )
    for run in ("model", "import"):
        save_model(model, add(f"ours, {run}", "x.safetensors", run), {"lineage": json.dumps([{"stage": "unet"}])})
    save_model(model, add("LoRA", "base.safetensors", "lora"))
    cases[-1] = dataclasses.replace(cases[-1], file=Path("x.safetensors"))
    adapted, config = LatentDiffusion(MICRO), LoRAConfig(rank=1, alpha=1.0)
    add_lora(adapted, config, torch.Generator())
    save_lora(root / "LoRA" / "x.safetensors", adapted, config, "random")
    judge = fresh_judge(JudgeConfig(size=4, widths=(8, 8)), seed=0)
    save_judge(judge, add("judge", "x.safetensors", "judge"), Training(1, 1, 0, 0.5, ["x"], "0", ["0"], {"a": 0.5}))
    add("training state", STATE, "state")
    optimizer = torch.optim.AdamW(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    save_state(root / "training state" / "run", 1, {"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()})
    return cases


def open_as(run, folder, file):
    """Open a changed file as a command does; -> "opened", or "refused: " and the sentence. All else is a defect."""
    folder = Path(folder)
    path, out = folder / file, folder / "out" / "out.safetensors"
    if run.startswith("import"):
        arguments = ["import", str(folder if run == "import folder" else path), "--out", str(out)]
        arguments += [] if run == "import" and "config" in path.name else ["--preset", MICRO.name]
        printed, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
            code = run_command(lambda: weights_convert(arguments))
        if code == 0:
            load_model(out)
            return "opened"
        text = errors.getvalue()
        assert (code, text[:7], text.count("\n"), text[-1:]) == (2, "error: ", 1, "\n"), f"exit code {code}, {text!r}"
        assert not list(out.parent.iterdir()), "a file was left behind"
        return f"refused: {text[7:-1]}"
    try:
        if run == "model":
            load_model(path)
            describe_model(path)
        elif run == "lora":
            apply_lora(load_model(folder / "base.safetensors"), path)
        elif run == "judge":
            load_judge(path)
        else:
            load_newest_state(folder / "run")
    except ValueError as error:
        return f"refused: {error}"
    return "opened"


class Opener:
    """A fork of this process that opens files until it dies."""

    def __init__(self):
        to_child, self.jobs = os.pipe()
        self.answers, from_child = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            os.close(self.jobs)  # so that the jobs end when the parent does
            os.close(self.answers)
            try:
                self.serve(os.fdopen(to_child, "rb"), from_child)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(to_child)
        os.close(from_child)

    def serve(self, jobs, answers):
        for line in jobs:
            try:
                said = open_as(*json.loads(line))
            except BaseException as error:
                said = f"traceback: {type(error).__name__}: {error}"
            os.write(answers, json.dumps(str(said)[:10_000]).encode() + b"\n")

    def open(self, run, folder, file, seconds, megabytes):
        """-> (outcome, sentence); whoever gets "timeout", "memory" or "signal" needs a new Opener."""
        before, began, end = resident(self.process), cpu_time(self.process), time.monotonic() + WAIT * seconds
        os.write(self.jobs, json.dumps([run, str(folder), str(file)]).encode() + b"\n")
        said = b""
        while not said.endswith(b"\n"):
            if select.select([self.answers], [], [], 0.005)[0]:
                more = os.read(self.answers, 1 << 20)
                said += more
                if not more:
                    return "signal", self.cause_of_death()
            elif cpu_time(self.process) - began > seconds or time.monotonic() > end:
                return "timeout", f"more than {seconds} s"
            elif resident(self.process) - before > megabytes:
                return "memory", f"more than {megabytes} MB"
        outcome, _, sentence = json.loads(said).partition(": ")
        if outcome == "refused" and (not sentence.isprintable() or len(sentence) > LONGEST or not sentence):
            outcome = "not one line"
        return outcome, sentence

    def cause_of_death(self):
        """Of the process, which stays a zombie until close(), so that its number is not used again."""
        ended = os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOWAIT)
        died = ended.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
        return f"the process died of {signal.Signals(ended.si_status).name}" if died else "the process ended by itself"

    def close(self):
        """End the process."""
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.jobs)
        os.close(self.answers)


def cpu_time(process):
    """Seconds that a process has computed: a busy machine must not look like a slow reader."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")  # utime and stime: proc(5)
    except (OSError, IndexError):
        return 0.0


def resident(process):
    """Megabytes in memory."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20
    except (OSError, IndexError):
        return 0


def fuzz(count, seed, seconds=10.0, megabytes=600, first=0, keep=None):
    """Open `count` changed files. -> {(case, outcome): how many}, and a line for each defect."""
    counts, defects = Counter(), []
    with tempfile.TemporaryDirectory() as name:
        cases = write_cases(Path(name) / "valid")
        opener = Opener()
        for case in cases:  # the valid file itself opens
            outcome = opener.open(case.run, fresh_copy(case, Path(name)), case.file, seconds, megabytes)
            assert outcome[0] == "opened", (case.name, outcome)
        for number in range(first, first + count):
            chance = random.Random(f"{seed}/{number}")
            case = chance.choice(cases)
            folder = fresh_copy(case, Path(name))
            done, content = mutate((folder / case.file).read_bytes(), chance)
            (folder / case.file).write_bytes(content)
            outcome, sentence = opener.open(case.run, folder, case.file, seconds, megabytes)
            counts[case.name, outcome] += 1
            if outcome in ("opened", "refused"):
                continue
            if outcome in ("timeout", "memory", "signal"):
                opener.close()
                opener = Opener()
            defects.append(f"--seed {seed} --first {number} --n 1: {case.name}, {done}: {outcome}: {sentence[:300]}")
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{seed}_{number}{case.file.suffix}").write_bytes(content)
        opener.close()
    return counts, defects


def fresh_copy(case, root):
    """The files of a case in a folder of their own, with an empty folder for results."""
    folder = root / "work"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(case.folder, folder)
    (folder / "out").mkdir()
    return folder


def main():
    """Parse, run, print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.files.fuzz_weights", description=__doc__)
    parser.add_argument("--n", type=int, default=2000, help="how many files (2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the changes (0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first file, to repeat one (0)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of computing a file may take (10)")
    parser.add_argument(
        "--megabytes", type=int, default=600, help="a file may take beyond what an idle process has (600)"
    )
    parser.add_argument("--keep", type=Path, default=KEPT, help="folder for files that show a defect")
    options = parser.parse_args()
    counts, defects, end = Counter(), [], options.first + options.n
    for first in range(options.first, end, CHUNK):
        count = min(CHUNK, end - first)
        more, found = fuzz(count, options.seed, options.seconds, options.megabytes, first, options.keep)
        counts, defects = counts + more, defects + found
        print(f"{counts.total():,} of {options.n:,} files, {len(defects)} defects", *found, sep="\n", flush=True)
    outcomes = sorted({outcome for _, outcome in counts})
    print(f"{'':24}" + "".join(f"{outcome:>14}" for outcome in outcomes))
    for name in [*sorted({name for name, _ in counts}), "all"]:
        numbers = [
            sum(n for (case, o), n in counts.items() if o == outcome and name in (case, "all")) for outcome in outcomes
        ]
        print(f"{name:24}" + "".join(f"{number:14,}" for number in numbers))
    return 1 if defects else 0


if __name__ == "__main__":
    sys.exit(main())
