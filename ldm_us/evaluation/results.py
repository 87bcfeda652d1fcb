"""The files that a command leaves in --out: looked for before the work, and read again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm_us.files.atomic import write_text


def check_out(out: Path | None, names: Sequence[str], overwrite: bool) -> None:
    """Raise ValueError where --out is no folder, or has one of the files that would be replaced."""
    if out is None or not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"--out {out}: exists and is not a folder. Choose another name.")
    found = [name for name in names if (out / name).exists()]
    if found and not overwrite:
        raise ValueError(f"--out {out}: has {found[0]} already. Choose another folder, or add --overwrite.")


def keep(result: dict[str, Any], out: Path | None, name: str, finite: bool = False) -> int:
    """Print a result as JSON, and write it into --out where that is given; -> the exit code. `finite`: refuse nan."""
    printed = json.dumps(result, indent=2, allow_nan=not finite)
    print(printed)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / name, printed + "\n")
    return 0


def read_json(path: Path, remedy: str) -> Any:
    """What a JSON file holds; None where there is none. Raise ValueError, naming the remedy, for a damaged one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). {remedy}") from error
