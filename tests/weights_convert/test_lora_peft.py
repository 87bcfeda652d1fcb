"""PEFT's own folders: names, the scale that LoraConfig gives, and adapters that are more than a LoRA."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from ldm_us.files.lora_file import load_lora
from ldm_us.runtime.entry import run_command
from weights_convert.__main__ import main
from weights_convert.lora_import import import_lora

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "bias": "none", "init_lora_weights": True}
UNET, TEXT = "down_blocks.0.attentions.0.proj_in", "text_model.encoder.layers.0.mlp.fc1"
OURS = {
    UNET: "unet.encoder.levels.0.transformers.0.proj_in",
    TEXT: "text.blocks.0.mlp_in",
    TEXT.removeprefix("text_model."): "text.blocks.0.mlp_in",  # transformers 5
}


def write_adapter(folder, module=UNET, settings=None, end=".weight", rank=2, extra=None):
    """The adapter of one layer of micro, as save_pretrained of PEFT writes it."""
    folder.mkdir(parents=True)
    a, b = f"base_model.model.{module}.lora_A{end}", f"base_model.model.{module}.lora_B{end}"
    width = 8 if module == UNET else 16
    generator = torch.Generator().manual_seed(0)
    tensors = {a: torch.randn(rank, 8, generator=generator), b: torch.randn(width, rank, generator=generator)}
    save_file(tensors | (extra or {}), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | (settings or {})))
    return folder, tensors[a], tensors[b]


def imported(path, base, tmp_path):
    import_lora(path, base, tmp_path / "ours.safetensors", overwrite=True)
    return load_lora(tmp_path / "ours.safetensors")


@pytest.mark.parametrize("module", OURS)
@pytest.mark.parametrize("end", [".weight", ".default.weight", ".my_adapter.weight"])
def test_the_adapter_of_one_network_is_read_in_every_spelling(module, end, base, tmp_path):
    folder, a, b = write_adapter(tmp_path / "peft", module, end=end)
    lora = imported(folder, base, tmp_path)
    (update,) = lora.updates
    assert (update.module, update.rank, update.alpha) == (OURS[module], 2, 3.0)
    assert torch.equal(lora.tensors[f"{OURS[module]}.lora_down.weight"].flatten(1), a)
    assert torch.equal(lora.tensors[f"{OURS[module]}.lora_up.weight"].flatten(1), b)
    sources = json.loads(lora.metadata["sources"])
    assert [source["file"] for source in sources] == ["adapter_model.safetensors"]


@pytest.mark.parametrize(
    ("settings", "alpha"),
    [
        ({"lora_alpha": 16}, 16.0),
        ({"lora_alpha": 16, "use_rslora": True}, 16 * math.sqrt(2)),
        ({"lora_alpha": 16, "alpha_pattern": {"attentions.0.proj_in": 5}}, 5.0),
        ({"lora_alpha": 16, "r": 9, "rank_pattern": {"proj_in": 2}}, 16.0),
        ({"init_lora_weights": "gaussian", "target_modules": ["proj_in"], "lora_dropout": 0.1}, 3.0),
    ],
)
def test_alpha_is_that_of_adapter_config(settings, alpha, base, tmp_path):
    folder, _, _ = write_adapter(tmp_path / "peft", settings=settings)
    assert [update.alpha for update in imported(folder, base, tmp_path).updates] == [alpha]


def test_the_weights_file_is_read_with_the_config_beside_it_and_refused_without(base, tmp_path):
    folder, _, _ = write_adapter(tmp_path / "peft", settings={"lora_alpha": 7})
    assert imported(folder / "adapter_model.safetensors", base, tmp_path).updates[0].alpha == 7
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"PEFT's weights without adapter_config\.json, which says what alpha is"):
        imported(folder / "adapter_model.safetensors", base, tmp_path)
    with pytest.raises(ValueError, match="no LoRA in this folder"):
        imported(folder, base, tmp_path)


@pytest.mark.parametrize(
    ("settings", "extra", "sentence"),
    [
        ({"peft_type": "LOHA"}, {}, "an adapter of type LOHA, not a LoRA"),
        ({"use_dora": True}, {}, "use_dora"),
        ({"modules_to_save": ["conv_in"]}, {"base_model.model.conv_in.weight": (8, 4, 3, 3)}, "modules_to_save"),
        ({"lora_bias": True}, {}, "lora_bias"),
        ({"init_lora_weights": "pissa_niter_4"}, {}, "init_lora_weights"),
        ({"bias": "lora_only"}, {f"base_model.model.{UNET}.base_layer.bias": (8,)}, "biases trained whole"),
        ({}, {"base_model.model.text_model.embeddings.lora_embedding_A": (2, 8)}, "a LoRA of embeddings"),
        ({}, {f"base_model.model.{UNET}.lora_magnitude_vector": (8,)}, "a DoRA"),
        ({"lora_alpha": None}, {}, "adapter_config.json cannot be used"),
    ],
)
def test_an_adapter_that_is_more_than_a_lora_is_refused_by_name(settings, extra, sentence, base, tmp_path):
    extra = {name: torch.ones(shape) for name, shape in extra.items()}
    folder, _, _ = write_adapter(tmp_path / "peft", settings=settings, extra=extra)
    with pytest.raises(ValueError, match=sentence) as error:
        imported(folder, base, tmp_path)
    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ours.safetensors").exists()


def test_an_audit_of_the_file_in_the_folder_is_that_of_the_folder(tmp_path, capsys):
    folder, _, _ = write_adapter(tmp_path / "peft")
    for path in (folder, folder / "adapter_model.safetensors"):
        assert run_command(lambda: main(["audit", str(path), "--preset", "micro"])) == 0  # noqa: B023
        assert "Clean" in capsys.readouterr().out


def test_a_folder_of_settings_without_weights_says_what_is_missing(base, tmp_path):
    folder, _, _ = write_adapter(tmp_path / "peft")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"adapter_config.json without adapter_model.safetensors"):
        imported(folder, base, tmp_path)
