"""The fields `name: value` of a .yaml, found without a parser: whatever they lie in, also in {...}, quoted or not."""

import re
from pathlib import Path

from ldm_us.files.stored_tensor import DESCRIPTION_LIMIT

FIELD = re.compile(r"""(?<![^\s{,])(["']?)(\w+)\1[ \t]*:[ \t]*(?:"([^"\n]*)"|'([^'\n]*)'|([^\s"',{}[\]]*))""")
COMMENT = re.compile(r"(?:^|(?<=\s))#.*$", re.MULTILINE)


def yaml_fields(path: Path) -> list[tuple[str, str]]:
    """Name and value of each; "" where the value is more than one word or number. Raise ValueError for a huge file."""
    if path.stat().st_size > DESCRIPTION_LIMIT:
        raise ValueError(f"{path}: too large for a description of a model. Move it away from the weights.")
    text = COMMENT.sub("", path.read_text(encoding="utf-8", errors="replace"))
    return [(match[2], plain(match[3] or match[4] or match[5] or "")) for match in FIELD.finditer(text)]


def plain(value: str) -> str:
    """A value so that equal ones are the same text: 0.012 for 0.0120 and 1.2e-2, true for True."""
    try:
        return f"{float(value):.15g}"
    except ValueError:
        return value.lower() if value.lower() in ("true", "false") else value
