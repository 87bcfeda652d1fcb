"""Fixtures: a micro model with a ControlNet that does something, and the rooms around it."""

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
def engine(weights):
    """The engine of that model."""
    return Engine(weights, "cpu")


@pytest.fixture
def rooms(engine, tmp_path):
    """The rooms, with a folder that is empty."""
    (tmp_path / "root").mkdir()
    return Rooms(engine, tmp_path / "root")
