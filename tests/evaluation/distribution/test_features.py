"""ldm_us/evaluation/distribution/features.py and network_file.py: named vectors, streamed pixels, and refused files."""

import json
import os
import weakref
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ldm_us.data.readers.busi import read_busi
from ldm_us.data.records import load_image
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.evaluation.distribution import features as features_module
from ldm_us.evaluation.distribution.features import Features, count_seen_in_training, extract, load_features
from ldm_us.evaluation.distribution.network_file import load_network
from ldm_us.evaluation.judge.file import Training, image_digests, save_judge
from ldm_us.evaluation.judge.network import JudgeConfig, fresh_judge
from ldm_us.evaluation.sets.image_sets import stream
from ldm_us.files.atomic import sha256_file
from ldm_us.files.checkpoint import save_model

RADIMAGENET = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return timm.create_model("resnet18", pretrained=False, num_classes=3).eval()


def images(n: int, size: int, channels: int = 1) -> Tensor:
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(0)).expand(-1, channels, -1, -1)


def test_features_of_the_autoencoder_are_its_scaled_latents_averaged_over_16_cells(micro, busi, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LatentDiffusion(micro).eval().requires_grad_(False)
    save_model(model, tmp_path / "m.safetensors")
    records = read_busi(busi)
    found = load_features("vae", tmp_path / "m.safetensors")
    vectors = extract(found, records, micro.image_size, batch=4)
    x = torch.stack([load_image(record.image, micro.image_size) for record in records])
    z = model.vae.encode(x).mean  # (11, 4, 4, 4): the cells of a 4x4 grid are its pixels
    assert vectors.shape == (11, 64)
    assert vectors.dtype == torch.float64
    assert torch.allclose(vectors, z.flatten(1).double(), atol=1e-5)
    assert found.about["sha256"] == sha256_file(tmp_path / "m.safetensors")
    assert (found.about["kind"], found.about["file"], found.about["image_size"]) == ("vae", "m.safetensors", 16)


def test_features_of_a_judge_are_what_its_classes_are_a_linear_map_of(busi, tmp_path: Path) -> None:
    records = read_busi(busi)
    network = fresh_judge(JudgeConfig(size=32), 0).eval().requires_grad_(False)
    training = Training(1, 2, 0, 0.1, ["busi"], "a" * 64, image_digests(records[:5]), {})
    save_judge(network, tmp_path / "judge.safetensors", training)
    found = load_features(str(tmp_path / "judge.safetensors"))
    vectors = extract(found, records, 32, batch=4)
    pixels = torch.cat(list(stream(records, 32)))
    assert vectors.shape == (11, 2 * network.config.widths[-1])
    assert torch.allclose(network.to_class(vectors.float()), network(pixels).class_logits, atol=1e-5)
    assert (found.about["kind"], found.size) == ("judge", 32)
    assert count_seen_in_training(found, records) == 5


def test_images_are_resized_to_what_the_network_was_made_for(busi) -> None:
    records = read_busi(busi)[:2]
    found = Features({"file": "fake"}, 8, lambda x: x.flatten(1))
    expected = F.interpolate(next(stream(records, 32)), (8, 8), mode="bilinear", antialias=True).clamp(0, 1)
    assert torch.equal(extract(found, records, 32, batch=2), expected.flatten(1).double())


def test_no_more_than_two_batches_of_pixels_are_alive_at_a_time(busi, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is read and the one before it, however many there are."""
    alive: list[weakref.ref[Tensor]] = []
    most = []

    def watched(*arguments):
        for pixels in stream(*arguments):
            alive.append(weakref.ref(pixels))
            most.append(sum(one() is not None for one in alive))
            yield pixels
            del pixels

    monkeypatch.setattr(features_module, "stream", watched)
    seen: list[int] = []
    found = Features({"file": "fake"}, 16, lambda x: x.mean(dim=(2, 3)))
    extract(found, read_busi(busi), 16, batch=2, on_batch=seen.append)
    assert seen == [2, 2, 2, 2, 2, 1]
    assert max(most) <= 2
    assert not any(one() is not None for one in alive)


def test_vectors_that_are_not_finite_are_refused_with_the_image_that_gave_them(busi) -> None:
    records = read_busi(busi)

    def broken(x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3)).masked_fill(torch.arange(len(x))[:, None] == 1, torch.nan)

    with pytest.raises(ValueError, match=r"fake: gives nan or infinity for .*") as refusal:
        extract(Features({"file": "fake"}, 16, broken), records, 16, batch=4)
    assert str(records[1].image) in str(refusal.value)


def test_features_of_weights_are_what_the_network_pools_before_its_classifier(resnet, busi, tmp_path: Path) -> None:
    records = read_busi(busi)[:3]
    save_file(resnet.state_dict(), tmp_path / "weights.safetensors")
    found = load_features(str(tmp_path / "weights.safetensors"), network="resnet18")
    vectors = extract(found, records, 224, batch=2)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # ImageNet
    pixels = torch.cat(list(stream(records, 224)))
    with torch.no_grad():
        pooled = resnet.forward_features((pixels - mean[:, None, None]) / std[:, None, None]).mean(dim=(2, 3))
    assert torch.allclose(vectors, pooled.double(), atol=1e-4)
    assert found.about["network"] == "resnet18"
    assert found.about["normalisation"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert found.about["image_size"] == 224


def test_weights_named_as_radimagenet_names_them_are_the_same_network_on_pixels_of_minus_1_to_1(
    resnet, tmp_path: Path
) -> None:
    split = {name: name.split(".", 1) for name in resnet.state_dict() if not name.startswith("fc")}
    state = {f"backbone.{RADIMAGENET[a]}.{b}": resnet.state_dict()[name] for name, (a, b) in split.items()}
    torch.save(state, tmp_path / "ResNet18.pt")
    loaded = load_network(tmp_path / "ResNet18.pt", "resnet18")
    assert loaded.input == (224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    x = images(2, 64, 3)
    with torch.no_grad():
        assert torch.equal(loaded.model.forward_features(x), resnet.forward_features(x))


def test_weights_in_a_checkpoint_of_a_parallel_training_are_found(resnet, tmp_path: Path) -> None:
    state = {f"module.{name}": value for name, value in resnet.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "checkpoint.pth")
    loaded = load_network(tmp_path / "checkpoint.pth", "resnet18")
    assert torch.equal(loaded.model.conv1.weight, resnet.conv1.weight)


def test_a_classifier_that_names_its_network_and_its_grey_images_needs_no_option(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", pretrained=False, num_classes=3, in_chans=1)
    said = {"timm": "resnet18", "classes": json.dumps(["a", "b", "c"]), "size": "64", "mean": "[0.25]", "std": "[0.5]"}
    save_file(model.state_dict(), tmp_path / "c.safetensors", said)
    found = load_features(str(tmp_path / "c.safetensors"))
    assert (found.size, found.about["normalisation"]) == (64, {"mean": [0.25], "std": [0.5]})
    x = images(2, 64)
    model.eval()
    with torch.no_grad():
        expected = model.forward_head(model.forward_features((x - 0.25) / 0.5), pre_logits=True)
    assert torch.allclose(found.network(x), expected, atol=1e-5)
    save_file(model.state_dict(), tmp_path / "c.safetensors", said | {"std": "[0]"})
    with pytest.raises(ValueError, match="does not fit 1 channels"):
        load_features(str(tmp_path / "c.safetensors"))
    save_file(model.state_dict(), tmp_path / "c.safetensors", said | {"size": "large"})
    with pytest.raises(ValueError, match="is no number"):
        load_features(str(tmp_path / "c.safetensors"))


class Shell:
    """A pickle that runs a command when it is read."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_wants_to_run_a_command_is_refused_and_torchs_own_reader_is_never_asked(
    resnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    path, marker = tmp_path / "weights.pt", tmp_path / "ran"
    content = {"state_dict": resnet.state_dict(), "callback": Shell(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    with pytest.raises(
        ValueError, match=r"refused: this pickle asks for (posix|nt)\.system.*Nothing in it was run"
    ) as said:
        load_features(str(path), network="resnet18")
    assert "\n" not in str(said.value)
    assert not marker.exists()
    torch.save({"model": {"state_dict": resnet.state_dict()}}, path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(load_network(path, "resnet18").model.conv1.weight, resnet.conv1.weight)


def test_files_and_names_that_do_not_fit_are_refused(micro, resnet, tmp_path: Path) -> None:
    weights = str(tmp_path / "weights.safetensors")
    save_file(resnet.state_dict(), weights)
    (tmp_path / "text.pt").write_text("not weights")
    (tmp_path / "cut.safetensors").write_bytes(Path(weights).read_bytes()[:1000])
    torch.save(resnet, tmp_path / "pickled.pt")
    torch.save({"epoch": 3}, tmp_path / "number.pt")
    save_model(LatentDiffusion(micro), tmp_path / "model.safetensors")
    for source, options, sentence in (
        ("missing.pt", {}, "no such file"),
        (weights, {}, "Add --network"),
        (weights, {"network": "resnet81"}, "--network resnet81: timm .* does not know it. Did you mean resnet"),
        (weights, {"network": "resnet34"}, r"not the weights of resnet34: \d+ tensors missing.*--network"),
        (str(tmp_path / "text.pt"), {"network": "resnet18"}, "cannot be read as weights"),
        (str(tmp_path / "cut.safetensors"), {"network": "resnet18"}, "cannot be read as weights"),
        (str(tmp_path / "pickled.pt"), {"network": "resnet18"}, "cannot be read as weights.*not a whole pickled model"),
        (str(tmp_path / "number.pt"), {"network": "resnet18"}, "entry 'epoch' is a int, not a tensor"),
        (str(tmp_path / "model.safetensors"), {}, "a model file. Give --features vae --weights"),
        ("vae", {}, "vae: needs --weights"),
        ("vae", {"weights": tmp_path / "model.safetensors", "network": "resnet18"}, "--network: belongs to"),
        (weights, {"weights": tmp_path / "model.safetensors"}, "does not use --weights"),
    ):
        with pytest.raises(ValueError, match=sentence) as refusal:
            load_features(source, **options)
        assert "\n" not in str(refusal.value)
