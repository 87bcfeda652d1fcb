"""Fixtures: a micro model with a ControlNet that does something, and the rooms around it."""

import json
from dataclasses import replace

import pytest
import torch

from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import save_model
from ldm_us.studio.rooms import Rooms
from ldm_us.synthesis.serving.engine import Engine
from tests.synthesis.conftest import OLD_LINEAGE, trained


@pytest.fixture(scope="session")
def weights(micro, tmp_path_factory):
    """A model file of micro with a ControlNet."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_model(trained(LatentDiffusion(micro)), path, OLD_LINEAGE)
    return path


@pytest.fixture(scope="session")
def two_weights(micro, tmp_path_factory):
    """A model file of buckets whose ControlNet follows two structures."""
    entry = {"stage": "controlnet", "data": ["phantoms"], "aspect": "bucket", "sizes": {"24x32": 1, "32x24": 5}}
    config = replace(micro, image_size=32, control=replace(micro.control, hint=("lobe", "nodule")))
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("two") / "two.safetensors"
    save_model(trained(LatentDiffusion(config)), path, {"lineage": json.dumps([entry])})
    return path


@pytest.fixture(scope="session")
def engine(weights):
    """The engine of that model."""
    return Engine(weights, "cpu")


@pytest.fixture
def rooms(engine, tmp_path):
    """The rooms, with a folder that is empty."""
    (tmp_path / "root").mkdir()
    return Rooms(engine, tmp_path / "root")
