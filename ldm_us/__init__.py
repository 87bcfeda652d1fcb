"""Latent diffusion for ultrasound images: Stable Diffusion 1.5 and ControlNet, written by hand.

    model = ldm_us.load_model(ldm_us.BUNDLED)
    x = ldm_us.generate(model, ["Ultrasound image of a benign breast"])  # (1, 3, H, W) in [0, 1]

The names below are the stable ones; where a module lies may change. Each is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; at run time __getattr__ does it
    from ldm_us.config import BUNDLED as BUNDLED
    from ldm_us.config import PRESETS as PRESETS
    from ldm_us.data.records import load_image as load_image
    from ldm_us.data.records import load_mask as load_mask
    from ldm_us.diffusion.model import LatentDiffusion as LatentDiffusion
    from ldm_us.diffusion.sampling import Sampling as Sampling
    from ldm_us.diffusion.sampling import generate as generate
    from ldm_us.files.checkpoint import load_model as load_model
    from ldm_us.files.checkpoint import save_model as save_model
    from ldm_us.files.pictures import to_picture as to_picture
    from ldm_us.networks.clip import tokenize as tokenize
    from ldm_us.networks.controlnet import ControlNet as ControlNet

__version__ = "0.1.0"

_HOMES = {
    "BUNDLED": "ldm_us.config",  # path of the model that comes with the package
    "PRESETS": "ldm_us.config",
    "ControlNet": "ldm_us.networks.controlnet",
    "LatentDiffusion": "ldm_us.diffusion.model",
    "Sampling": "ldm_us.diffusion.sampling",
    "generate": "ldm_us.diffusion.sampling",
    "load_image": "ldm_us.data.records",  # a file -> (3, size, size) in [-1, 1]
    "load_mask": "ldm_us.data.records",  # files -> (1, size, size) in {0, 1}
    "load_model": "ldm_us.files.checkpoint",
    "save_model": "ldm_us.files.checkpoint",
    "to_picture": "ldm_us.files.pictures",  # (3, H, W) in [0, 1] -> a Pillow image
    "tokenize": "ldm_us.networks.clip",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its home, once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ldm_us' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """What tab completion offers: the public names are there before they are imported."""
    return sorted({*globals(), *_HOMES})
