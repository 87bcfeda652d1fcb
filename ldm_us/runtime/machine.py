"""What decides how sums are rounded here: the processor, and the libraries that choose their kernels by it."""

import os
import platform
import re
from pathlib import Path

import torch

CHOOSERS = ("ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")  # let oneDNN and MKL use fewer instructions

UNITS = {  # of a CPU, by the names of torch.cpu.get_capabilities; either one will do
    ("bf16", "x86_64"): ("avx512_bf16", "amx_bf16", "avx10_2"),
    ("fp16", "x86_64"): ("avx512_fp16", "amx_fp16", "avx10_2"),
}
# Measured: a call of us128's UNet, batch 4, one thread, with oneDNN kept to AVX-512 or to AVX2; ratio to float32.
SLOWER = {"bf16": "2 to 27 times as long as fp32", "fp16": "25 times as long as fp32"}


def device_kind(device: str | torch.device) -> str:
    """Name the GPU and its cuDNN; or the CPU, the instructions PyTorch uses of it, and what limits oneDNN and MKL.

    oneDNN and MKL look at the processor themselves: it tells more than the instructions that PyTorch uses.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return f"cuda, {torch.cuda.get_device_name(device)}, cuDNN {torch.backends.cudnn.version()}"
    if device.type == "cpu":
        limits = [f"{name}={os.environ[name]}" for name in CHOOSERS if os.environ.get(name)]
        return ", ".join(["cpu", torch.backends.cpu.get_cpu_capability(), processor(), *limits])
    return device.type


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name, family and model of the CPU, from Linux; elsewhere what Python knows of it."""
    try:
        with open(cpuinfo, encoding="utf-8", errors="replace") as file:
            first, _, _ = file.read(1 << 14).partition("\n\n")  # the others repeat it
    except OSError:
        first = ""
    known = dict(re.findall(r"^([^:\n]*?)\s*: (.*)$", first, re.MULTILINE))
    told = [f"{name} {known[name]}" for name in ("cpu family", "model", "stepping") if name in known]
    if "model name" in known:
        return f"{known['model name'].strip()} ({', '.join(told)})"
    return platform.processor() or platform.machine() or "unknown processor"


def libraries() -> str:
    """The versions of oneDNN and MKL in this build of PyTorch."""
    names = {"MKL-DNN v": "oneDNN", "oneAPI Math Kernel Library Version ": "MKL"}
    found = re.findall(f"({'|'.join(names)})([\\d.]+)", torch.__config__.show())
    return ", ".join(sorted(f"{names[name]} {version}" for name, version in found)) or "unknown"


def half_precision(device: str) -> str:
    """The half precision that a GPU has: bf16 with float32's range, else fp16."""
    with torch.cuda.device(device):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def other_device(before: str | None, now: str) -> list[str]:
    """A sentence where work goes on on another kind of device than it was begun on; None: that is not known."""
    kinds = [device.partition(":")[0] for device in (before or now, now)]
    if kinds[0] == kinds[1]:
        return []
    return [
        f"begun on {kinds[0]}, it goes on on {kinds[1]}, which rounds otherwise: --device {kinds[0]} keeps the bits."
    ]


def emulation_notes(precision: str, device: str) -> list[str]:
    """A sentence where a CPU has no instructions for this half precision, and takes longer than in float32."""
    abilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    units = UNITS.get((precision, abilities.get("architecture", "")), ())
    if not device.startswith("cpu") or not units or any(abilities.get(unit) for unit in units):
        return []
    return [
        f"--precision {precision}: this CPU only emulates it, which took {SLOWER[precision]} where it was measured."
    ]
