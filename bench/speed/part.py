"""A part of the benchmark in a process of its own: python -m bench.speed.part PART SETTINGS. Its last line is JSON."""

import json
import os
import sys
from typing import Any

import torch

from bench.speed.settings import Settings
from ldm_us.runtime.memory import keep_freed_memory


def main(name: str, settings: Settings) -> Any:
    """What a part gives. Its modules are imported here alone: start-up is timed too."""
    torch.set_num_threads(settings.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    part, _, side = name.partition(":")
    if side == "ours":  # as every program of ours does
        keep_freed_memory()
    if part == "start":
        from bench.speed.whole import start_side

        return start_side(settings, side)
    if part == "samples":
        from bench.speed.whole import sample_side

        return sample_side(settings, side)
    if part == "convert":
        from bench.speed.whole import convert_side

        return convert_side(settings, side)
    if part == "epoch":
        from bench.speed.epochs import epoch_side

        return epoch_side(settings, side)
    if part in ("UNet", "ControlNet", "LoRA"):
        from bench.speed.training import training_side

        return training_side(settings, side, part)
    if part != "networks":
        raise ValueError(f"no such part: {part}")
    from bench.parity import quiet
    from bench.speed.networks import as_values, network_rows

    quiet()
    return as_values(network_rows(settings))


if __name__ == "__main__":
    value = main(sys.argv[1], Settings.from_json(sys.argv[2]))
    print(f"\n{json.dumps(value)}")
