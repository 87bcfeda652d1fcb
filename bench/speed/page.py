"""Results of the benchmark as a page in Markdown: commands, machine, rates of the machine, table."""

import json
from pathlib import Path
from typing import Any

from bench.speed.command_line import GROUPS
from bench.speed.table import Row, bars_for, differences, paper_minutes, table


def page(out: Path) -> str:
    """All results of a folder. Raise ValueError where there are none, or those of several machines or devices."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*.json"))]
    if not results:
        raise ValueError(f"--out {out}: nothing is measured there yet.")
    if len({(result["machine"], result["device"]) for result in results}) > 1:
        raise ValueError(f"--out {out}: holds results of several machines. Give each machine a folder of its own.")
    results.sort(key=lambda result: (GROUPS.index(result["group"]), result["settings"]["dtype"]))
    rows = [Row(**row) for result in results for row in result["rows"]]
    loads, seconds = [value for result in results for value in result["load"]], sum(r["seconds"] for r in results)
    versions = dict.fromkeys(", ".join(map(" ".join, result["versions"].items())) for result in results)
    lines = [
        *(f"    {command}" for command in dict.fromkeys(result["command"] for result in results)),
        "",
        f"{results[0]['machine']}; {'; '.join(versions)}.",
        *dict.fromkeys(f"{size_of(result)}." for result in results),
        *(f"{result['settings']['dtype']}: {rates_of(result)}." for result in results if result["group"] == "networks"),
        f"It took {seconds:.0f} s; load meanwhile: {min(loads):.1f} to {max(loads):.1f}.",
        "",
        table(rows, bars_for(results[0]["device"])),
        "",
        differences(rows),
    ]
    minutes = paper_minutes(rows) if results[0]["device"].startswith("cuda") else None
    if minutes is not None:
        verdict = "pass" if minutes < 20 else "MISS"
        lines.append(
            f"The paper's training by these steps, 100 epochs of 617 images twice: {minutes:.0f} minutes of 20,"
        )
        lines[-1] += f" {verdict}."
    return "\n".join(lines).rstrip()


def size_of(result: dict[str, Any]) -> str:
    """Pixels and threads."""
    settings = result["settings"]
    clock = "of the clock" if settings["clock"] == "wall" else "of the processors, which do not run while others do"
    return f"{settings['size']}x{settings['size']} pixels, {settings['threads']} threads, seconds {clock}"


def rates_of(result: dict[str, Any]) -> str:
    """What the machine did at best."""
    rates = result["rates"]
    return f"matrix product {rates['matrix'] / 1e9:.0f} GFLOP/s, copy {rates['copy'] / 1e9:.1f} GB/s"
