"""What the fields of a config may be: a file that asks for 10^9 layers is refused before anybody builds them.

The limits lie far above any Stable Diffusion 1.x; they only keep the time and memory of building a model bounded.
"""

import dataclasses
import sys
from typing import Any

LIMITS = {  # the largest value of a field, where it is not LARGEST
    "timesteps": 100_000,
    "vocabulary": 1_000_000,
    "layers": 100,
    "res_blocks": 10,
}
LARGEST = 100_000  # widths, sizes, heads
LONGEST = 8  # levels


def check_limits(config: Any, where: str = "config") -> None:
    """Raise ValueError, naming the field, for a value of another type than its default's or beyond its limit."""
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), field.default
        name = f"{where}.{field.name}"
        if dataclasses.is_dataclass(default):
            if type(value) is not type(default):
                raise ValueError(f"{name} is no table of fields.")
            check_limits(value, name)
        elif isinstance(default, tuple):
            if not isinstance(value, tuple) or not 1 <= len(value) <= LONGEST:
                raise ValueError(f"{name} is no list of 1 to {LONGEST} values.")
            for item in value:
                _check_value(name, item, default[0], LARGEST)
        elif not (default is None and value is None):
            _check_value(name, value, 0.0 if default is None else default, LIMITS.get(field.name, LARGEST))


def _check_value(name: str, value: Any, default: Any, limit: int) -> None:
    if isinstance(default, bool | str):
        if type(value) is not type(default):
            raise ValueError(f"{name} is a {type(value).__name__}, not a {type(default).__name__}.")
        if isinstance(value, str) and not (len(value) <= 100 and value.isprintable()):
            raise ValueError(f"{name} is a text that is too long to show, or has control characters.")
    elif isinstance(default, int):
        if type(value) is not int or not 0 <= value <= limit:
            raise ValueError(f"{name} is no whole number from 0 to {limit}.")
    elif type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{name} is no finite number.")
