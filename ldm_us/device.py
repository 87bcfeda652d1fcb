"""Where a command computes."""

import torch


def check_device(device: str) -> None:
    """Refuse a device that this machine, or this build of PyTorch, does not have."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: not available here. Use cpu, or a GPU that PyTorch sees.") from error
