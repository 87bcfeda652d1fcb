"""The protocol's classifiers: augmentation, schedule, determinism, start weights and files."""

import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ldm_us.data.readers.busi import read_busi
from ldm_us.evaluation.distribution.features import count_seen_in_training, extract, load_features
from ldm_us.evaluation.distribution.network_file import IMAGENET_MEAN, IMAGENET_STD
from ldm_us.evaluation.judge.file import image_digests
from ldm_us.evaluation.protocol.classifier import ClassifierConfig, build_classifier, check_classifier, save_classifier
from ldm_us.evaluation.protocol.classifier_training import (
    EpochFigures,
    Images,
    affine,
    augment,
    best_epoch,
    predict,
    random_boxes,
    rate_at,
    steps_per_epoch,
    to_input,
    train_classifier,
)
from ldm_us.evaluation.sets.image_sets import stream
from ldm_us.training.perceptual import EFFICIENTNET, PACKAGE, names_in_file

SMALL = ClassifierConfig(network="test_resnet", size=32, epochs=12, warmup_epochs=1, batch=8, lr=5e-3)
STILL = replace(SMALL, crop=(1.0, 1.0), rotation=0.0, brightness=0.0, contrast=0.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_without_crop_turn_and_light_an_image_stays_as_it_is(monkeypatch):
    monkeypatch.setattr("ldm_us.evaluation.protocol.classifier_training.ASPECT", (1.0, 1.0))
    images = torch.rand(3, 1, 16, 16, generator=generator())
    torch.testing.assert_close(augment(images, STILL, generator()), images, atol=1e-5, rtol=0)


def test_crops_hold_80_to_100_percent_of_the_area_and_lie_inside():
    box = random_boxes(2000, (0.8, 1.0), generator())
    area = box[:, 2] * box[:, 3]
    assert 0.8 <= area.min() < 0.81
    assert area.max() <= 1
    assert (box[:, :2].abs() + box[:, 2:] <= 1 + 1e-6).all()


def test_a_quarter_turn_is_torch_rot90_and_a_crop_is_its_part():
    images = torch.rand(1, 1, 8, 8, generator=generator())
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    grid = torch.nn.functional.affine_grid(affine(whole, torch.tensor([math.pi / 2])), [1, 1, 8, 8], False)
    turned = torch.nn.functional.grid_sample(images, grid, align_corners=False)
    assert any(torch.allclose(turned, images.rot90(k, (2, 3)), atol=1e-5) for k in (1, 3))
    corner = torch.tensor([[-0.5, -0.5, 0.5, 0.5]])
    grid = torch.nn.functional.affine_grid(affine(corner, torch.zeros(1)), [1, 1, 4, 4], False)
    cut = torch.nn.functional.grid_sample(images, grid, align_corners=False)
    torch.testing.assert_close(cut, images[:, :, :4, :4], atol=1e-5, rtol=0)


def test_brightness_and_contrast_stay_within_what_is_asked_for(monkeypatch):
    monkeypatch.setattr("ldm_us.evaluation.protocol.classifier_training.ASPECT", (1.0, 1.0))
    images = torch.full((400, 1, 4, 4), 0.4)
    images[:, :, :2] = 0.6
    changed = augment(images, replace(STILL, brightness=0.02, contrast=0.2), generator())
    ratio = changed.mean(dim=(1, 2, 3)) / 0.5
    spread = (changed[:, 0, 0, 0] - changed[:, 0, 3, 0]) / 0.2 / ratio
    assert 0.98 <= ratio.min() < 0.981 < 1.019 < ratio.max() <= 1.02 + 1e-4
    assert 0.8 - 1e-4 <= spread.min() < 0.81 < 1.19 < spread.max() <= 1.2 + 1e-4


def test_the_learning_rate_rises_for_the_warm_up_and_falls_along_a_cosine():
    config = ClassifierConfig(epochs=10, warmup_epochs=2)
    rates = [rate_at(step, config, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10:] == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 40)) for i in range(40)])


def test_the_epoch_kept_is_the_most_accurate_then_the_one_of_lowest_loss_then_the_first():
    history = [
        EpochFigures(1, 0.5, 0.1),
        EpochFigures(2, 0.7, 0.9),
        EpochFigures(3, 0.7, 0.8),
        EpochFigures(4, 0.7, 0.8),
    ]
    assert best_epoch(history).epoch == 3


def stripes(n, seed):
    """Two classes that differ in the direction of their stripes."""
    labels = torch.arange(n) % 2
    phase = torch.rand(n, 1, 1, 1, generator=generator(seed)) * 6
    wave = (torch.arange(32) * 0.8 + phase).sin() * 100 + 127
    pixels = torch.where(labels.view(-1, 1, 1, 1) == 0, wave.expand(-1, 1, 32, 32), wave.mT.expand(-1, 1, 32, 32))
    return Images(pixels.to(torch.uint8), labels)


@pytest.fixture(scope="module")
def trained():
    train, validation = stripes(32, 0), stripes(8, 1)
    runs = []
    for seed in (0, 0, 1):
        network, _ = build_classifier(SMALL, 2, seed)
        history = train_classifier(network, train, validation, SMALL, steps_per_epoch(32, 8), seed, "cpu")
        runs.append((network, history, predict(network, stripes(16, 2).pixels, SMALL, "cpu")))
    return runs


def test_the_same_seed_gives_the_same_classifier_and_another_seed_another(trained):
    assert torch.equal(trained[0][2], trained[1][2])
    assert trained[0][1] == trained[1][1]
    assert not torch.equal(trained[0][2], trained[2][2])


def test_a_classifier_learns_what_it_is_taught_and_keeps_its_best_epoch(trained):
    network, history, probabilities = trained[0]
    assert len(history) == SMALL.epochs
    assert (probabilities.argmax(dim=1) == stripes(16, 2).labels).float().mean() >= 0.9
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(16, dtype=torch.float64))
    validation = stripes(8, 1)
    kept = predict(network, validation.pixels, SMALL, "cpu")
    assert (kept.argmax(dim=1) == validation.labels).double().mean() == best_epoch(history).accuracy


def test_bf16_predicts_nearly_the_same(trained):
    network, _, probabilities = trained[0]
    again = predict(network, stripes(16, 2).pixels, replace(SMALL, precision="bf16"), "cpu")
    torch.testing.assert_close(again, probabilities, atol=0.1, rtol=0)
    assert not torch.equal(again, probabilities)


def test_a_saved_classifier_is_rebuilt_from_what_its_file_says(trained, tmp_path):
    network, _, probabilities = trained[0]
    save_classifier(network, tmp_path / "c.safetensors", SMALL, ("benign", "malignant"), [], {"seed": 0})
    with safe_open(tmp_path / "c.safetensors", framework="pt") as file:
        said = file.metadata()
    again = timm.create_model(said["timm"], num_classes=len(json.loads(said["classes"])))
    again.load_state_dict(load_file(tmp_path / "c.safetensors"))
    torch.testing.assert_close(predict(again, stripes(16, 2).pixels, SMALL, "cpu"), probabilities)


@pytest.mark.parametrize("imagenet", [False, True])
def test_features_of_a_saved_classifier_are_what_it_pools_itself(trained, busi, tmp_path, imagenet, monkeypatch):
    usual = SimpleNamespace(mean=IMAGENET_MEAN, std=IMAGENET_STD)  # of ResNet-50, not of the network here
    monkeypatch.setattr("ldm_us.evaluation.protocol.classifier.config_of", lambda name: usual)
    network, _, _ = trained[0]
    config, records = replace(SMALL, imagenet_normalisation=imagenet), read_busi(busi)
    path, older = tmp_path / "c.safetensors", tmp_path / "older.safetensors"
    save_classifier(network, path, config, ("benign", "malignant"), image_digests(records[:4]), {"seed": 0})
    found = load_features(str(path))
    images = torch.cat(list(stream(records, 32)))
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(to_input(images, config)), pre_logits=True)
    torch.testing.assert_close(extract(found, records, 32, batch=4), expected.double(), atol=1e-5, rtol=1e-5)
    assert count_seen_in_training(found, records) == 4
    with safe_open(path, framework="pt") as file:
        said = {key: value for key, value in file.metadata().items() if key not in ("mean", "std", "images")}
    save_file(load_file(path), older, said | {"normalisation": "imagenet" if imagenet else "none"})
    vectors = extract(load_features(str(older)), records, 32, batch=4)
    torch.testing.assert_close(vectors, expected.double(), atol=1e-5, rtol=1e-5)


def test_start_weights_are_used_but_for_a_head_of_another_size(tmp_path):
    start = timm.create_model("test_resnet", num_classes=10)
    save_file(start.state_dict(), tmp_path / "imagenet.safetensors")
    torch.save({"state_dict": start.state_dict()}, tmp_path / "imagenet.pth")
    for name in ("imagenet.safetensors", "imagenet.pth"):
        network, note = build_classifier(replace(SMALL, weights=str(tmp_path / name)), 3, seed=0)
        assert "head" in note
        state = network.state_dict()
        same = [key for key, value in start.state_dict().items() if torch.equal(value, state[key])]
        assert len(same) == len(state) - 2
    torch.save(["not", "weights"], tmp_path / "other.pth")
    with pytest.raises(ValueError, match="holds a list, not a dictionary of tensors"):
        build_classifier(replace(SMALL, weights=str(tmp_path / "other.pth")), 3, seed=0)
    save_file({"conv": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="tensors missing, unknown"):
        build_classifier(replace(SMALL, weights=str(tmp_path / "other.safetensors")), 3, seed=0)


def test_imagenet_is_the_extras_network_with_its_own_normalisation_and_a_fresh_head(monkeypatch, tmp_path):
    google, path = timm.create_model(EFFICIENTNET), tmp_path / "efficientnet.pth"
    names = names_in_file(google)
    torch.save({names[name]: value for name, value in google.state_dict().items()}, path)
    monkeypatch.setattr("ldm_us.evaluation.protocol.classifier.installed_weights", lambda: path)
    config = ClassifierConfig(network=EFFICIENTNET, weights="imagenet", imagenet_normalisation=True)
    check_classifier(config)
    network, note = build_classifier(config, 3, seed=0)
    assert note == "the head of efficientnet.pth has another shape and is drawn at random"
    state = network.state_dict()
    same = [name for name, value in google.state_dict().items() if torch.equal(value, state[name])]
    assert len(same) == len(state) - 2
    assert all(weight.requires_grad for weight in network.parameters())
    ends = to_input(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), config)  # the network was made for (pixel - 127) / 128
    assert ends.amin() == -1
    assert ends.amax() == 1
    with pytest.raises(ValueError, match=r"of tf_efficientnet_lite0 alone, and classifier\.network is 'resnet50'"):
        check_classifier(replace(config, network="resnet50"))


def test_without_the_extra_imagenet_is_one_sentence_that_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(ValueError, match=r"Install the extra perceptual"):
        check_classifier(ClassifierConfig(network=EFFICIENTNET, weights="imagenet"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"network": "resnet_of_nobody"}, "network"),
        ({"crop": (0.0, 1.0)}, "crop"),
        ({"lr": 0.0}, "lr"),
        ({"warmup_epochs": 12}, "warmup_epochs"),
        ({"precision": "fp8"}, "precision"),
        ({"validation": 1.0}, "validation"),
        ({"weights": "nowhere.pth"}, "weights"),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(change, named):
    with pytest.raises(ValueError, match=f"classifier.{named}"):
        check_classifier(replace(SMALL, **change))
