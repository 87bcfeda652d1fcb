"""Golden numbers: a network with weights imported from their original names computes what the original computes."""

import pytest
import torch

from ldm_us.config import PRESETS, SD15, TINY
from ldm_us.diffusion.model import LatentDiffusion
from ldm_us.networks.clip import TextEncoder
from ldm_us.networks.controlnet import ControlNet
from ldm_us.networks.unet import Control, UNet
from ldm_us.networks.vae import VAE
from tests.golden.compare import BAR, GOLDEN, difference, hint, named, unet_inputs, vae_inputs
from tests.golden.converted import convert_state_dict
from tests.golden.original import filled

ARRAYS = {"unet": 1, "controlnet": 14, "vae": 2, "clip": 1}  # how many golden arrays each network has; tokens go in


def load(part, config, layout, size):
    """One network with weights from its original file; built without memory of its own, freed by whoever drops it."""
    weights = convert_state_dict(filled(layout, size, part), config)
    with torch.device("meta"):
        if part == "vae":
            network = VAE(config.vae)
        elif part == "text":
            network = TextEncoder(config.text)
        else:
            network = UNet(config.unet)
            network = network if part == "unet" else ControlNet(network, config.control)
    network.load_state_dict({key.removeprefix(f"{part}."): value for key, value in weights.items()}, assign=True)
    return network.eval().requires_grad_(False)


def both(unet, inputs, control):
    """eps_hat without and with the residuals, in one call: reading the weights of sd15 is most of the work."""
    residuals = [torch.cat([torch.zeros_like(residual), residual]) for residual in (*control.skips, control.middle)]
    inputs = [torch.cat([value, value]) for value in inputs]
    return unet(*inputs, Control(residuals[:-1], residuals[-1])).chunk(2)


@pytest.fixture(scope="module")
def outputs():
    """Size -> name -> result; one network at a time, so that sd15 needs no more than the memory of its UNet."""
    results = {}
    with torch.no_grad():
        for size, config in (("tiny", TINY), ("sd15", SD15)):
            inputs, (image, latents) = unet_inputs(config), vae_inputs()
            control = load("controlnet", config, "lllyasviel_controlnet", size)(*inputs, hint())
            plain, controlled = both(load("unet", config, "compvis_single_file", size), inputs, control)
            result = {"unet.eps": plain, "controlnet.eps": controlled}
            vae = load("vae", config, "compvis_single_file", size)
            result |= {"vae.moments": vae.moments(image), "vae.decoded": vae.decode_unscaled(latents)}
            text = load("text", config, "compvis_single_file", size)
            states = text(torch.from_numpy(GOLDEN[size]["clip.tokens"]))
            result["clip.last_hidden_state"] = states if size == "tiny" else states[:, ::4, ::8]
            results[size] = result | named(control, every=1 if size == "tiny" else 16)
    return results


@pytest.mark.parametrize("size", GOLDEN)
@pytest.mark.parametrize("network", ARRAYS)
def test_the_network_with_imported_weights_gives_the_golden_numbers(outputs, size, network):
    names = [name for name in GOLDEN[size] if name.startswith(f"{network}.") and name != "clip.tokens"]
    assert len(names) == ARRAYS[network]
    differences = {name: difference(outputs[size][name], size, name) for name in names}
    assert {name: value for name, value in differences.items() if not value < BAR} == {}


def test_sd15_has_as_many_parameters_and_tensors_as_the_original():
    with torch.device("meta"):
        model = LatentDiffusion(PRESETS["sd15"])
        model.add_controlnet()
    found = {
        part: (sum(value.numel() for value in network.parameters()), len(list(network.parameters())))
        for part, network in model.named_children()
    }
    assert found == {
        "vae": (83_653_863, 248),
        "text": (123_060_480, 196),
        "unet": (859_520_964, 686),
        "controlnet": (361_279_120, 340),
    }
    assert list(model.buffers()) == []
