"""LoRA and ControlNet files at sampling: merged or beside the weights the same samples, and what does not fit."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_us.config import US128
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.diffusion.sampling import Sampling
from ldm_us.files.atomic import sha256_file
from ldm_us.files.checkpoint import load_model, save_model
from ldm_us.files.lora_file import UNKNOWN_BASE, save_lora
from ldm_us.networks.lora import LoRAConfig, LoRALinear, add_lora, lora_state
from ldm_us.synthesis.drawing import Wanted, draw_samples
from ldm_us.synthesis.recipe import Recipe
from ldm_us.synthesis.weights import ScaledLoRA, Source, load_sampler, parse_lora
from tests.synthesis.conftest import trained

UNET = LoRAConfig(rank=2, alpha=3)
CONTROL = LoRAConfig(rank=3, parts=("controlnet", "unet"), targets=("q", "v"))


def write_lora(path, model, config, base, seed):
    """A LoRA with values, beside `model`, which stays as it is."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in add_lora(model, config, generator).items():
        if "lora" in name:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    save_lora(path, model, config, base)
    return lora_state(model, config)


def add_beside(model, state, scale):
    """Put updates beside weights that are not merged, without adding one matrix to another."""
    names = sorted({name.rpartition(".lora_")[0] for name in state if ".lora_" in name})
    for name in names:
        parent, _, attribute = name.rpartition(".")
        layer = getattr(model.get_submodule(parent), attribute)
        down, up = (state[f"{name}.lora_{matrix}.weight"] for matrix in ("down", "up"))
        if isinstance(layer, LoRALinear):  # a second LoRA: rows below and columns beside those of the first
            down = torch.cat([layer.lora_down.weight, down])
            up = torch.cat([layer.lora_up.weight, up * scale], dim=1)
        else:
            layer = LoRALinear(layer, LoRAConfig(rank=len(down), alpha=len(down)), torch.Generator())
            up = up * scale
        layer.lora_down.weight, layer.lora_up.weight = (torch.nn.Parameter(m) for m in (down, up))
        setattr(model.get_submodule(parent), attribute, layer)


def test_loras_merged_one_after_another_sample_as_those_beside_the_weights(weights, tmp_path):
    """LoRA Eq. 3."""
    beside, base = load_model(weights), sha256_file(weights)
    loras = []
    for i, (config, scale) in enumerate([(UNET, 0.7), (CONTROL, -0.5)]):
        path = tmp_path / f"{i}.safetensors"
        state = write_lora(path, load_model(weights), config, base, seed=i)
        loras.append(ScaledLoRA(path, scale))
        add_beside(beside, state, scale * (config.alpha / config.rank))
    merged, _ = load_sampler(Source(weights, loras=loras), "cpu", warn=pytest.fail)
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:9, 3:12] = 1
    recipe = Recipe(Sampling(steps=4, guidance=2.0, control_scale=1.0, size=16))
    plain, one, other = (
        draw_samples(model, [Wanted("a benign breast", 3, mask)], recipe)[0].x
        for model in (load_model(weights), merged, beside)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert float((one - plain).abs().max()) > 1e-3


def test_lora_and_scale_are_in_the_fields_and_the_sample_verifies_with_the_file_alone(run, weights, tmp_path, capsys):
    for i in range(2):
        write_lora(tmp_path / f"{i}.safetensors", load_model(weights), UNET, sha256_file(weights), seed=i)
    names = [tmp_path / "0.safetensors", f"{tmp_path / '1.safetensors'}:0.25"]
    run(tmp_path / "out", "--class", "benign", "--lora", *names)
    entry = json.loads((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()[0])
    assert [(lora["file"], lora["scale"]) for lora in entry["loras"]] == [("0.safetensors", 1), ("1.safetensors", 0.25)]
    import sample

    asked = ["--verify", tmp_path / "out" / "0000_benign_seed1.png", "--weights", weights]
    assert (
        sample.main([str(w) for w in [*asked, "--lora", tmp_path / "1.safetensors", tmp_path / "0.safetensors"]]) == 0
    )
    capsys.readouterr()
    assert sample.main([str(w) for w in asked]) == 1
    assert "--lora gives none" in capsys.readouterr().out


def test_a_lora_of_other_weights_is_merged_with_one_line_of_warning(run, weights, tmp_path, capsys):
    write_lora(tmp_path / "l.safetensors", load_model(weights), UNET, "ab" * 32, seed=0)
    run(tmp_path / "out", "--class", "benign", "--lora", tmp_path / "l.safetensors")
    notes = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert "trained on a model of SHA-256 abababababab, not on" in notes[0]


def test_a_lora_of_an_unknown_base_is_merged_without_a_warning(weights, tmp_path):
    write_lora(tmp_path / "l.safetensors", load_model(weights), UNET, UNKNOWN_BASE, seed=0)
    merged, fields = load_sampler(Source(weights, loras=[ScaledLoRA(tmp_path / "l.safetensors")]), "cpu", pytest.fail)
    assert fields["loras"][0]["sha256"] == sha256_file(tmp_path / "l.safetensors")
    name = "unet.encoder.levels.0.transformers.0.block.self_attention.to_q.weight"
    assert not torch.equal(merged.get_parameter(name), load_model(weights).get_parameter(name))


def test_a_learned_prompt_that_takes_the_place_of_another_is_one_line_of_warning(weights, tmp_path):
    loras = [ScaledLoRA(tmp_path / f"{seed}.safetensors") for seed in (0, 1)]
    config = LoRAConfig(parts=(), full=("text.prompt",))
    for seed, (path, _) in enumerate(loras):
        model = load_model(weights)
        model.add_prompt_tokens(2, torch.Generator().manual_seed(seed))
        add_lora(model, config, torch.Generator())
        save_lora(path, model, config, UNKNOWN_BASE)
    load_sampler(Source(weights, loras=loras[:1]), "cpu", pytest.fail)
    notes = []
    load_sampler(Source(weights, loras=loras), "cpu", notes.append)
    assert notes == [f"{loras[1].path}: its learned prompt takes the place of the one before it."]


def test_a_controlnet_lora_of_another_base_is_refused(refused, weights, tmp_path):
    write_lora(tmp_path / "l.safetensors", load_model(weights), CONTROL, "ab" * 32, seed=0)
    line = refused(tmp_path / "out", "--class", "benign", "--lora", tmp_path / "l.safetensors")
    assert "whose ControlNet it holds" in line
    assert not (tmp_path / "out").exists()


def test_a_lora_with_more_keys_than_the_model_is_refused(refused, micro, weights, tmp_path):
    unet = dataclasses.replace(micro.unet, attention=(True, True))
    larger = LatentDiffusion(dataclasses.replace(micro, unet=unet))
    write_lora(tmp_path / "l.safetensors", larger, UNET, sha256_file(weights), seed=0)
    line = refused(tmp_path / "out", "--class", "benign", "--lora", tmp_path / "l.safetensors")
    assert "tensors that the model has no place for" in line


@pytest.mark.parametrize(("scale", "sentence"), [(":nan", "use a finite scale"), (":inf", "use a finite scale")])
def test_a_scale_that_is_no_number_is_refused(refused, tmp_path, scale, sentence):
    assert sentence in refused(tmp_path / "out", "--lora", f"l.safetensors{scale}")


def test_a_file_name_may_hold_a_colon():
    assert parse_lora("a:b/l.safetensors") == (ScaledLoRA(parse_lora("a:b/l.safetensors").path))
    assert parse_lora("l.safetensors:-0.5").scale == -0.5
    assert str(parse_lora("l.safetensors:-0.5").path) == "l.safetensors"


def test_the_controlnet_of_another_file_is_the_one_that_is_followed(run, micro, weights, masks, tmp_path):
    torch.manual_seed(5)
    save_model(LatentDiffusion(micro), tmp_path / "plain.safetensors")
    both = load_model(tmp_path / "plain.safetensors")
    both.controlnet = load_model(weights).controlnet
    save_model(both, tmp_path / "both.safetensors")
    mask = masks / "benign" / "benign (1)_mask.png"
    run(tmp_path / "a", "--weights", tmp_path / "both.safetensors", "--mask", mask)
    run(tmp_path / "b", "--weights", tmp_path / "plain.safetensors", "--controlnet", weights, "--mask", mask)
    name = "0000_benign_(1)_seed1.png"
    with Image.open(tmp_path / "a" / name) as one, Image.open(tmp_path / "b" / name) as other:
        assert np.array_equal(one, other)
        assert other.text["controlnet_sha256"] == sha256_file(weights)


def test_a_controlnet_that_does_not_fit_or_is_none_is_refused(refused, micro, tmp_path):
    save_model(trained(LatentDiffusion(US128)), tmp_path / "us128.safetensors")
    save_model(LatentDiffusion(micro), tmp_path / "plain.safetensors")
    line = refused(tmp_path / "out", "--controlnet", tmp_path / "us128.safetensors")
    assert "made for a UNet of us128, which is of another size than that of micro" in line
    assert "no ControlNet in it" in refused(tmp_path / "out", "--controlnet", tmp_path / "plain.safetensors")
