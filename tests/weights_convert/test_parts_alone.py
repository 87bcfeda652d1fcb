"""A file of one part: what it is, how it gets into a model, and advice that works when it is run."""

import json
import os
import re
import shlex

import pytest
import torch
from safetensors.torch import save_file

import sample
from ldm_us.config import BUNDLED, TINY
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import load_model, save_model
from ldm_us.runtime.entry import run_command
from ldm_us.synthesis.weights import read_controlnet
from tests.golden.converted import convert_state_dict
from tests.golden.original import PREFIXES, tiny_compvis, to_diffusers
from weights_convert.__main__ import main
from weights_convert.audit.findings import audit
from weights_convert.convert import load_piece
from weights_convert.diffusers_folder import folder_texts
from weights_convert.import_command import plan_import
from weights_convert.sources import open_source


def whole():
    return tiny_compvis("vae", "text", "unet")


def other_vae(scale=2.0):
    """An autoencoder that is not that of the model, in CompVis' names within a whole file."""
    return {key: value * scale for key, value in tiny_compvis("vae").items()}


def bare(tensors, part):
    return {key.removeprefix(PREFIXES[part]): value for key, value in tensors.items()}


def lone_vaes(folder):
    """The same autoencoder in every form that it is passed on in."""
    named = other_vae()
    beside = {"loss.logvar": torch.zeros(()), "model_ema.decay": torch.zeros(()), "model_ema.encoderx": torch.zeros(2)}
    torch.save({"state_dict": bare(named, "vae") | beside}, folder / "ft-mse.ckpt")
    torch.save(bare(named, "vae"), folder / "flat.pt")
    save_file(named | {"first_stage_model.loss.logvar": torch.zeros(1)}, folder / "prefixed.safetensors")
    for old in (False, True):
        save_file(to_diffusers(named, "vae", old), folder / f"diffusers_{old}.safetensors")
    (folder / "folder").mkdir()
    save_file(to_diffusers(named, "vae"), folder / "folder" / "diffusion_pytorch_model.safetensors")
    (folder / "folder" / "config.json").write_text(folder_texts(TINY, False)["vae/config.json"])
    return sorted(folder.iterdir())


def test_an_autoencoder_alone_in_any_layout_replaces_that_of_a_model(inputs, tmp_path):
    expected = convert_state_dict(other_vae(), TINY)
    model = open_source(inputs / "model.safetensors")
    for path in lone_vaes(tmp_path):
        first, second = plan_import(model, TINY, {"vae": path}, ema=False)
        assert {piece.target.partition(".")[0] for piece in first.pieces} == {"text", "unet"}
        found = {piece.target: load_piece(piece) for piece in second.pieces}
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert audit(open_source(path), TINY).is_clean, path


def test_an_audit_says_that_a_file_is_an_autoencoder(tmp_path, capsys):
    save_file(bare(other_vae(), "vae"), tmp_path / "vae.safetensors")
    assert run_command(lambda: main(["audit", str(tmp_path / "vae.safetensors"), "--preset", "tiny"])) == 0
    assert " tensors; vae (compvis)" in capsys.readouterr().out


def test_the_scale_of_an_exchanged_autoencoder_comes_with_its_folder(convert, inputs, tmp_path):
    lone_vaes(tmp_path)
    config = tmp_path / "folder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.5}))
    out = tmp_path / "out.safetensors"
    assert convert(inputs / "model.safetensors", "--vae", tmp_path / "folder", "--out", out)[0] == 0
    assert load_model(out, parts=()).config.vae.scale == 0.5
    config.write_text(json.dumps(json.loads(config.read_text()) | {"shift_factor": 0.5}))
    code, _, error = convert(inputs / "model.safetensors", "--vae", tmp_path / "folder", "--out", out, "--overwrite")
    assert (code, "shift_factor is 0.5" in error) == (2, True)


def test_an_autoencoder_alone_is_no_model_and_the_advice_names_the_option(convert, tmp_path):
    save_file(bare(other_vae(), "vae"), tmp_path / "vae.safetensors")
    code, _, error = convert(tmp_path / "vae.safetensors", "--out", tmp_path / "out.safetensors")
    assert code == 2
    assert "holds vae, but no text and no unet" in error
    assert "as SRC, and this file with --vae" in error
    assert os.listdir(tmp_path) == ["vae.safetensors"]


def test_a_model_measured_with_its_own_autoencoder_keeps_it(convert, tmp_path):
    lone_vaes(tmp_path)
    out = tmp_path / "out.safetensors"
    code, _, error = convert(BUNDLED, "--vae", tmp_path / "flat.pt", "--out", out, preset=None)
    assert (code, "with its own autoencoder" in error) == (2, True)


@pytest.mark.parametrize("names", ["CLIPModel", "CLIPTextModelWithProjection"])
def test_the_text_tower_of_a_whole_clip_is_taken(names, convert, inputs, tmp_path):
    tensors = {f"text_model.{key}": value for key, value in bare(tiny_compvis("text"), "text").items()}
    tensors |= {"text_projection.weight": torch.ones(32, 32)}
    if names == "CLIPModel":
        tensors |= {"vision_model.encoder.layers.0.x": torch.ones(2), "visual_projection.weight": torch.ones(2, 2)}
        tensors |= {"logit_scale": torch.ones(())}
    save_file(tensors, tmp_path / "clip.safetensors")
    options = ("--text", tmp_path / "clip.safetensors", "--out", tmp_path / "out.safetensors")
    code, said, _ = convert(inputs / "model.safetensors", *options)
    assert code == 0
    assert "projection of CLIP's feature" in said
    assert ("image tower of CLIP" in said) == (names == "CLIPModel")


def test_spare_tensors_of_clip_beside_a_whole_model_are_left_out_and_unknown_ones_named(convert, tmp_path):
    spare = {"cond_stage_model.logit_scale": torch.ones(())}
    spare |= {"cond_stage_model.transformer.text_projection.weight": torch.eye(32)}
    save_file(whole() | spare, tmp_path / "in.safetensors")
    assert convert(tmp_path / "in.safetensors", "--out", tmp_path / "out.safetensors")[0] == 0
    save_file(whole() | {"gate.alpha": torch.ones(1)}, tmp_path / "in.safetensors")
    code, _, error = convert(tmp_path / "in.safetensors", "--out", tmp_path / "no.safetensors")
    assert code == 2
    assert "complete as tiny, but with tensors that it has no place for: 1 unexpected (gate.alpha)" in error
    assert "Check that the file is complete" not in error


def test_the_advice_for_an_original_controlnet_works_when_it_is_run(inputs, convert, tmp_path):
    """control.pth is a pickle, the copy a safetensors file without a config; both give the same advice."""
    assert convert(inputs / "model.safetensors", "--out", tmp_path / "model.safetensors")[0] == 0
    model = load_model(tmp_path / "model.safetensors", parts=())
    save_file(tiny_compvis("controlnet"), tmp_path / "control.safetensors")
    for path in (inputs / "control.pth", tmp_path / "control.safetensors"):
        with pytest.raises(ValueError, match=str(path)) as error:
            read_controlnet(path, model, "cpu", "--controlnet")
        command = re.search(r"`python -m weights_convert (import MODEL --controlnet .*?)`", str(error.value))
        assert command is not None
        words = shlex.split(command[1].replace("MODEL", str(tmp_path / "model.safetensors")))
        words[-1] = str(tmp_path / "both.safetensors")
        assert main([*words, "--overwrite"]) == 0
        assert read_controlnet(tmp_path / "both.safetensors", model, "cpu", "--controlnet").controlnet is not None


def test_a_control_lora_is_called_what_it_is(convert, tmp_path):
    tensors = {"lora_controlnet": torch.zeros(0), "input_blocks.1.1.proj_in.down": torch.ones(2)}
    save_file(tensors, tmp_path / "x.safetensors")
    code, _, error = convert(tmp_path / "x.safetensors", "--out", tmp_path / "out.safetensors")
    assert (code, "this is a control-LoRA" in error, "import --lora" in error) == (2, True, False)


def test_a_folder_given_as_weights_is_told_what_to_give(tmp_path, capsys):
    def said():
        words = ["--weights", str(tmp_path), "--class", "benign", "--out", str(tmp_path / "samples")]
        assert run_command(lambda: sample.main(words)) == 2
        return capsys.readouterr().err

    assert f"{tmp_path}: a folder, not a model file. Of a diffusers folder `python -m weights_convert import" in said()
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert f"{tmp_path}: a folder, not a model file. Give {tmp_path / 'model.safetensors'}." in said()


def test_an_audit_of_a_folder_that_lacks_a_component_is_not_clean_and_names_it(inputs, tmp_path, capsys):
    (tmp_path / "text_encoder").mkdir()
    save_file(to_diffusers(tiny_compvis("text"), "text"), tmp_path / "text_encoder" / "model.safetensors")
    assert run_command(lambda: main(["audit", str(tmp_path), "--preset", "tiny"])) == 1
    assert "Not clean: no weights of unet in the folder, no weights of vae in the folder." in capsys.readouterr().out


def advised(error):
    """The words of the command between backquotes in a sentence."""
    return shlex.split(re.search(r"`python -m weights_convert (.*?)`", error)[1])


def test_the_advice_for_a_folder_of_a_part_or_a_lora_works_when_followed(convert, inputs, micro, tmp_path, capsys):
    assert convert(inputs / "model.safetensors", "--out", tmp_path / "model.safetensors")[0] == 0
    save_model(LatentDiffusion(micro), tmp_path / "micro.safetensors")
    control, lora, word = tmp_path / "my control", tmp_path / "my lora", tmp_path / "word"
    for folder in (control, lora, word):
        folder.mkdir()
    (control / "config.json").write_text(folder_texts(TINY, True)["controlnet/config.json"])
    save_file(to_diffusers(tiny_compvis("controlnet"), "controlnet"), control / "diffusion_pytorch_model.safetensors")
    layer = "unet.down_blocks.0.attentions.0.proj_in"
    matrices = {f"{layer}.lora_A.weight": torch.ones(2, 8), f"{layer}.lora_B.weight": torch.ones(8, 2)}
    save_file(matrices, lora / "pytorch_lora_weights.safetensors")
    save_file({"<us>": torch.ones(2, 8)}, word / "learned_embeds.safetensors")
    given = ["--class", "benign", "--out", str(tmp_path / "samples")]
    for option, folder in (
        ("--controlnet", control),
        ("--weights", control),
        ("--lora", control),
        ("--weights", lora),
        ("--lora", lora),
        ("--lora", word),
    ):
        weights = [] if option == "--weights" else ["--weights", str(tmp_path / "model.safetensors")]
        capsys.readouterr()
        assert run_command(lambda: sample.main([*weights, option, str(folder), *given])) == 2  # noqa: B023
        error = capsys.readouterr().err
        assert f"{folder}: a folder, not a " in error
        replaced = {
            "MODEL": str(tmp_path / ("model" if folder == control else "micro")) + ".safetensors",
            "model.safetensors": str(tmp_path / "out.safetensors"),
            "lora.safetensors": str(tmp_path / "out.safetensors"),
        }
        words = [replaced.get(each, each) for each in advised(error)]
        if folder == control:  # an original model says its sizes itself only if it is one of ours
            assert words[:2] == ["import", replaced["MODEL"]]
        assert main([*words, "--overwrite"]) == 0
    for words in (["import", str(lora), "--out", "x.safetensors"], ["audit", str(word)]):
        capsys.readouterr()
        assert run_command(lambda: main(words)) == 2  # noqa: B023
        error = capsys.readouterr().err
        assert f"{words[1]}: holds a" in error
        assert advised(error)[1] == ("--lora" if words[1] == str(lora) else "--embedding")


def test_what_ldm_and_dreambooth_keep_beside_the_networks_is_left_out_or_compared(convert, tmp_path):
    tensors = tiny_compvis("vae", "text", "unet")
    for scale, code in ((0.18215, 0), (0.5, 2)):
        more = {"embedding_manager.string_to_param_dict.*": torch.ones(1, 8), "scale_factor": torch.tensor(scale)}
        torch.save({**tensors, **more}, tmp_path / "model.ckpt")
        done, text, error = convert(tmp_path / "model.ckpt", "--out", tmp_path / "out.safetensors", "--overwrite")
        assert done == code, error
        assert ("vectors for the placeholder word" in text) == (code == 0)
    assert "scale_factor is 0.5, not 0.18215" in error
    (tmp_path / "model.yaml").write_text("scale_factor: 0.5\n")
    assert convert(tmp_path / "model.ckpt", "--out", tmp_path / "out.safetensors", "--overwrite")[0] == 0
