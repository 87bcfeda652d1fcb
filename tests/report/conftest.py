"""Fixtures of the report: runs whose logs hold every figure, and the report as a parsed page."""

import json
import shutil
from html.parser import HTMLParser

import pytest

from ldm_us.report.__main__ import main
from ldm_us.runtime.entry import run_command

STAGES = ("vae", "unet", "controlnet")
BANDS = {f"val_loss_{first}_{first + 249}": 0.5 - first / 2000 for first in (0, 250, 500, 750)}
VALIDATION = {
    "vae": {"val_psnr_db": 12.5, "val_l1": 0.4321},
    "unet": {"val_loss": 0.987} | BANDS,
    "controlnet": {"val_loss": 0.456, "control_gap": 0.0, "val_loss_true_mask": 0.45, "val_loss_shuffled_mask": 0.45}
    | {"val_loss_empty_mask": 0.46, "zero_conv_norm_00": 0.0, "zero_conv_norm_01": 0.0}
    | BANDS,
}
VOID = {"meta", "img"}


class Page(HTMLParser):
    """What a page holds; raises where tags do not nest."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.stack[-1] if self.stack else "", data))

    def text(self):
        return " ".join(" ".join(data for tag, data in self.texts if tag != "style").split())

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def write_log(folder, stage, steps):
    """A log of training lines, with a validation before and one after that is 10 % lower."""
    lines = [{"step": 0} | VALIDATION[stage]]
    lines += [
        {"step": i, "loss": 1 / i, "grad_norm": 0.5, "lr": 1e-3, "images_per_s": 9.5} for i in range(1, steps + 1)
    ]
    lines.append({"step": steps} | {name: 0.9 * value + 0.001 for name, value in VALIDATION[stage].items()})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def runs(chain, tmp_path):
    """Copies of a run of each stage, with logs that hold every figure: {stage: folder}."""
    folders = {stage: shutil.copytree(chain[stage].out, tmp_path / "runs" / stage) for stage in STAGES}
    for stage, folder in folders.items():
        write_log(folder, stage, steps=2)
    return folders


@pytest.fixture
def report(tmp_path, capsys):
    """A function of runs and flags: write a report, require exit code 0, return the parsed page."""

    def call(*arguments):
        out = tmp_path / "new" / "page.html"
        words = [str(word) for word in (*arguments, "--out", out, "--overwrite")]
        assert run_command(lambda: main(words)) == 0, capsys.readouterr().err
        assert not list(out.parent.glob("*.tmp"))
        return Page(out.read_text(encoding="ascii"))

    return call


@pytest.fixture
def refusal(capsys):
    """A function of arguments: require exit code 2 and one line; return it."""

    def call(*arguments):
        capsys.readouterr()
        assert run_command(lambda: main([str(argument) for argument in arguments])) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return call
