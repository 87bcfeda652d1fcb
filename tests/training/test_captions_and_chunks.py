"""--long-prompts and --captions in training: what the networks see, what the model says, and that runs resume."""

import shutil

import pytest
import torch

from ldm_us.data.words import words_of
from ldm_us.evaluation.sets.evaluated_images import lineage_split
from ldm_us.files.checkpoint import load_model, read_metadata
from ldm_us.files.lineage import read_lineage
from ldm_us.training.stages import Stage


@pytest.fixture
def busbra(busi, tmp_path):
    """The noise images as BUS-BRA."""
    root = tmp_path / "BUSBRA"
    rows = ["ID,Case,Histology,Pathology,BIRADS,Device"]
    for label in ("benign", "malignant"):
        for path in sorted(busi.glob(f"{label}/*).png")):
            number = len(rows)
            mask = path.with_stem(f"{path.stem}_mask")
            for folder, kind, source in (("Images", "bus", path), ("Masks", "mask", mask)):
                (root / folder).mkdir(parents=True, exist_ok=True)
                shutil.copy(source, root / folder / f"{kind}_{number:04d}-s.png")
            rows.append(f"bus_{number:04d}-s,{number},cyst,{label},{2 + number % 3},GE Logiq 7 @10-14MHz")
    (root / "bus_data.csv").write_text("\n".join(rows))
    return root


def test_a_stage_learns_findings_and_is_measured_with_them(run, busbra, tmp_path):
    result = run("unet", tmp_path / "run", "--captions", "findings", data=busbra)
    (*_, entry) = read_lineage(read_metadata(result.path)).entries
    assert entry["captions"] == "findings"
    assert any("BI-RADS category 3, cyst, GE Logiq 7" in prompt for prompt in words_of(result.path).prompts)
    train, held_out = lineage_split(result.path, [busbra])
    assert all("BI-RADS category" in record.prompt for record in train + held_out)


@pytest.mark.parametrize("flags", [(), ("--train-text",)])
def test_a_model_taught_in_chunks_says_so_and_resumes_bit_for_bit(run, chain, tmp_path, monkeypatch, flags):
    shapes, loss = set(), Stage.loss

    def look(self, batch):
        if self.context is not None:
            shapes.add(self.context.shape[1])
        shapes.add(self.tokens.shape[1])
        return loss(self, batch)

    monkeypatch.setattr(Stage, "loss", look)
    flags = (*flags, "--long-prompts", 2, "--save-every", 2)
    weights = chain["vae"].path
    straight = run("unet", tmp_path / "straight", *flags, "--steps", 4, weights=weights)
    run("unet", tmp_path / "parts", *flags, "--steps", 2, weights=weights)
    resumed = run("unet", tmp_path / "parts", *flags, "--steps", 4, weights=weights)
    assert all(torch.equal(value, resumed.weights[name]) for name, value in straight.weights.items())
    assert shapes == {154}
    model = load_model(straight.path)
    assert model.config.text.chunks == 2
    assert model.encode_prompts("a breast").shape[1] == 154
    control = run("controlnet", tmp_path / "control", weights=straight.path)  # as the start has it, unasked
    assert load_model(control.path).config.text.chunks == 2
    once = run("unet", tmp_path / "once", "--long-prompts", 1, weights=straight.path)
    assert load_model(once.path).config.text.chunks == 1


@pytest.mark.parametrize(
    ("stage", "flags", "named"),
    [
        ("unet", ("--long-prompts", 9), "use 1 to 8 chunks of 75 tokens"),
        ("unet", ("--captions", "findings"), "no table of --data has any"),
        ("vae", ("--long-prompts", 2), "belongs to the unet and controlnet stages"),
    ],
)
def test_what_cannot_be_is_refused(refused, tmp_path, stage, flags, named):
    assert named in refused(stage, tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()


def test_learned_prompt_tokens_and_chunks_are_refused_together(refused, chain, tmp_path):
    said = refused("unet", tmp_path / "r", "--prompt-tokens", 2, "--long-prompts", 2, weights=chain["unet"].path)
    assert "2 prompt tokens: they go with prompts of one chunk, not of 2" in said
