"""A model to import adapters for."""

import pytest
import torch

from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.files.checkpoint import save_model


@pytest.fixture(scope="session")
def base(micro, tmp_path_factory):
    """A model of micro with random weights, to be read only."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    save_model(LatentDiffusion(micro), path)
    return path
