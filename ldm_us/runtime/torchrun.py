"""The old place of ldm_us/runtime/processes.py, for imports that have not moved yet."""

from ldm_us.runtime.processes import local_device, process_count

__all__ = ["local_device", "process_count"]
