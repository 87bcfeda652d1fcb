"""What figures are measured on, how busy it was, and the memory of a process."""

import os
import platform
import resource
import time
from pathlib import Path

import torch


def peak_memory(device: str) -> int:
    """Most bytes so far: of the GPU's memory that tensors took; on a CPU of the whole process, Python included."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says begins with the memory of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def free_memory() -> int | None:
    """Bytes that a new process may take without swapping; None where the system does not say."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return None
    line = next(line for line in info.read_text().splitlines() if line.startswith("MemAvailable"))
    return 1024 * int(line.split()[1])


def machine(device: str) -> str:
    """What the figures were measured on."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    return f"{cores} CPU cores ({platform.machine()}), {threads} threads, torch {torch.__version__}"


def load() -> float:
    """How many processes wanted to compute in the last minute, on average; 1 is this one alone on one thread."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def unix_time() -> float:
    """Seconds that two processes can compare."""
    return time.time()
