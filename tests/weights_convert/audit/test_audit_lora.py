"""`audit` of a LoRA: what it is, how large each update is, and every damage by name."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.lora_file import save_lora
from ldm_us.networks.lora import LoRAConfig, add_lora
from weights_convert.lora_export import export_lora


@pytest.fixture(scope="module")
def files(micro, tmp_path_factory):
    """One LoRA in the names of each program, and the largest norm of alpha / r B A in it."""
    torch.manual_seed(0)
    folder, model = tmp_path_factory.mktemp("loras"), LatentDiffusion(micro)
    config = LoRAConfig(rank=2, alpha=3.0, parts=("unet", "text"), targets=("q", "cross.v"))
    for parameter in add_lora(model, config, torch.Generator().manual_seed(0)).values():
        parameter.data += 0.2
    save_lora(folder / "ours.safetensors", model, config, "ab" * 32)
    for names in ("kohya", "diffusers"):
        export_lora(folder / "ours.safetensors", folder / f"{names}.safetensors", names)
    layers = [module for module in model.modules() if hasattr(module, "lora_up")]
    products = (1.5 * layer.lora_up.weight.detach() @ layer.lora_down.weight.detach() for layer in layers)
    return folder, max(float(product.norm()) for product in products)


@pytest.mark.parametrize("names", ["ours", "kohya", "diffusers"])
def test_it_says_whose_names_which_parts_targets_ranks_alphas_and_sizes(names, files, micro, run_audit):
    folder, largest = files
    code, text, _ = run_audit(folder / f"{names}.safetensors", "--preset", "micro")
    assert code == 0
    assert f"a LoRA in the names of {names}" in text
    assert "13 updates (1 of text, 12 of unet), rank 2, alpha / rank 1.5" in text
    assert "unet: cross.q 4, cross.v 4, self.q 4" in text
    assert f" to {largest:.3g}, median" in text
    assert "Clean" in text


@pytest.mark.parametrize("names", ["ours", "kohya", "diffusers"])
def test_damage_of_every_kind_is_found_where_it_was_planted(names, files, micro, run_audit, tmp_path):
    with safe_open(files[0] / f"{names}.safetensors", "pt") as file:
        metadata = file.metadata()
    tensors = load_file(files[0] / f"{names}.safetensors")
    matrices = [name for name in tensors if name.endswith((".lora_down.weight", ".lora_A.weight"))]
    nan, short, alone = matrices[:3]
    tensors[nan][0, 0] = math.nan
    tensors[short] = tensors[short][:1].clone()
    del tensors[alone]
    start, end = ("lora_unet_", "lora_down") if names == "kohya" else ("unet.", "lora_A")
    unknown = f"{start}colour.{end}.weight"
    tensors[unknown] = torch.ones(2, 8)
    save_file(tensors, tmp_path / "damaged.safetensors", metadata)
    code, text, _ = run_audit(tmp_path / "damaged.safetensors", "--preset", "micro")
    assert code == 1
    assert f"not finite: {nan}: 1 NaN" in text
    assert "lacks its other matrix" in text
    assert unknown in text
    other = short.replace("lora_down", "lora_up").replace("lora_A", "lora_B")
    assert f"{other} is float32" in text
    assert "Not clean: 4 problems" in text


def test_a_rank_that_is_not_that_of_the_settings_is_found(files, run_audit, tmp_path):
    with safe_open(files[0] / "ours.safetensors", "pt") as file:
        metadata = file.metadata()
    settings = json.loads(metadata["lora"]) | {"rank": 3}
    tensors = load_file(files[0] / "ours.safetensors")
    save_file(tensors, tmp_path / "other.safetensors", metadata | {"lora": json.dumps(settings)})
    code, text, _ = run_audit(tmp_path / "other.safetensors")
    assert code == 1
    assert "to_q: not of rank 3, as its settings say" in text
    assert "Not clean: 13 problems" in text


def test_a_learned_prompt_in_ours_is_named_as_trained_whole(micro, run_audit, tmp_path):
    model = LatentDiffusion(micro)
    model.add_prompt_tokens(2, torch.Generator())
    config = LoRAConfig(parts=(), full=("text.prompt",))
    add_lora(model, config, torch.Generator())
    save_lora(tmp_path / "prompt.safetensors", model, config, "random")
    code, text, _ = run_audit(tmp_path / "prompt.safetensors")
    assert code == 0
    assert "1 trained whole: text.prompt" in text


def test_another_kind_of_adapter_or_an_option_of_models_is_refused(files, run_audit, tmp_path):
    save_file({"lora_unet_down_blocks_0_attentions_0_proj_in.hada_w1_a": torch.ones(8, 2)}, tmp_path / "x.safetensors")
    code, _, error = run_audit(tmp_path / "x.safetensors")
    assert code == 2
    assert "a LoHa" in error
    code, _, error = run_audit(files[0] / "ours.safetensors", "--csv", tmp_path / "x.csv")
    assert code == 2
    assert "--csv does nothing with a LoRA" in error
