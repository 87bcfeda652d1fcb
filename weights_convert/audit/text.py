"""An audit as text for a terminal, and its table as comma-separated values."""

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence

from weights_convert.audit.drift import STATES, GroupDrift, by_block, by_kind, most_drifted, shares, unchanged_parts
from weights_convert.audit.findings import Audit, Row
from weights_convert.convert import Plan
from weights_convert.summary import layouts_of, read_lines

LISTED = 20  # rows of one kind; --html and --csv have all
MOST_DRIFTED = 10
BAR = 30  # letters of the longest bar

PLACE_COLUMNS = ("key", "our name", "shape", "dtype", "status", "transform or reason")
NUMBER_COLUMNS = ("sha256", "lowest", "highest", "rms", "flag")
# Column -> the field of a Drift.
DRIFT_COLUMNS = {"drift": "state", "relative change": "relative", "largest change": "largest", "cosine": "cosine"}


def audit_text(audit: Audit) -> str:
    """Files, totals, what stands out, verdict, drift."""
    lines = file_lines(audit.plan)
    lines += [f"  ignored {count:4}: {reason}" for reason, count in Counter(audit.plan.ignored.values()).items()]
    lines += ["", f"{audit.config.name:12}  tensors  expected     parameters       expected  types"]
    for total in audit.totals:
        found = (f"{total.tensors:,}", f"{total.parameters:,}") if total.dtypes else ("-", "-")
        counts = f"{found[0]:>8}  {total.expected_tensors:8,}  {found[1]:>13}  {total.expected_parameters:13,}"
        lines.append(f"{total.part:12} {counts}  {', '.join(total.dtypes) or 'not in this file'}")
    lines += ["", *flag_lines(audit.rows), *problem_lines(audit)]
    return "\n".join(lines + drift_lines(audit))


def file_lines(plan: Plan) -> list[str]:
    """What was read."""
    source = plan.source
    return [f"{source.path}: {len(source.entries):,} tensors; {layouts_of(plan)}", *read_lines(source, sizes=True)]


def flag_lines(rows: Sequence[Row]) -> list[str]:
    """How many tensors are all zero, of one number, or not finite."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        if row.numbers is not None and row.flag:
            kinds.setdefault(row.flag if row.numbers.is_finite else "not finite", []).append(row)
    return [f"{len(own):,} {kind}, such as {printable(own[0].key)}" for kind, own in kinds.items()]


def problem_lines(audit: Audit) -> list[str]:
    """The verdict, and the first of the rows behind it."""
    kinds: dict[str, list[Row]] = {}
    for row in audit.problems:
        kinds.setdefault(row.problem, []).append(row)
    lines = [verdict(audit)]
    for kind, own in kinds.items():
        for row in own[:LISTED]:
            lines.append(f"  {kind}: {printable(row.key)}  {f'{row.dtype} {list(row.shape)}'.strip()}  {detail(row)}")
        if len(own) > LISTED:
            lines.append(f"  {kind}: and {len(own) - LISTED:,} more; --html and --csv list them all")
    return lines


def verdict(audit: Audit) -> str:
    """One sentence: clean or not, and why."""
    if audit.is_clean:
        return f"Clean: everything fits {audit.config.name}, and every number that is used is finite."
    kinds = Counter(sorted(row.problem for row in audit.problems))
    wrong = [f"{count:,} {kind}" for kind, count in kinds.items()]
    wrong += [f"no weights of {component} in the folder" for component in audit.plan.source.lacking]
    text = "Not clean: " + ", ".join(wrong) + "."
    used = sum(row.status == "used" for row in audit.rows)
    if kinds["misshaped"] > used:
        text += f" Hardly anything has the sizes of {audit.config.name}: does another --preset fit?"
    return text


def detail(row: Row) -> str:
    """What is wrong with a row, beyond the name of its problem."""
    return row.note if row.status != "used" else f"{row.flag}, for {', '.join(row.targets)}"


def shape_of(row: Row) -> str:
    """320x4x3x3."""
    return "x".join(map(str, row.shape))


def printable(name: str) -> str:
    """A name from a file that may be hostile, without letters that steer a terminal."""
    return name if name.isprintable() else ascii(name)


def drift_lines(audit: Audit) -> list[str]:
    """What changed: counts, then blocks and kinds with bars, then the tensors that moved furthest."""
    if audit.other is None:
        return []
    lines = ["", "drift from", *file_lines(audit.other), f"  {counts(audit)}"]
    same = unchanged_parts(audit.drifts)
    lines += [f"  {part}: nothing changed: {why}" for part, why in same.items()]
    drifts = [drift for drift in audit.drifts if drift.part not in same]
    lines += group_lines("by block", by_block(drifts)) + group_lines("by kind of layer", by_kind(drifts))
    worst = most_drifted(drifts, MOST_DRIFTED)
    if worst:
        title = "furthest moved (matrices and kernels)"
        lines += ["", f"{title:58} {'relative':>9} {'largest':>9} {'cosine':>7}"]
        lines += [f"{d.target:58} {ratio(d.relative):>9} {number(d.largest):>9} {number(d.cosine):>7}" for d in worst]
    return lines


def counts(audit: Audit) -> str:
    """How many tensors are compared, and how they differ."""
    states = Counter(drift.state for drift in audit.drifts)
    text = f"{len(audit.drifts):,} tensors in both: "
    text += ", ".join(f"{states[state]:,} {words}" for state, words in STATES.items())
    for plan, file in ((audit.plan, "SRC"), (audit.other, "OTHER")):
        if plan is not None and len(plan.pieces) > len(audit.drifts):
            text += f"; {len(plan.pieces) - len(audit.drifts):,} fit in {file} alone"
    return text


def group_lines(title: str, groups: Sequence[GroupDrift]) -> list[str]:
    """A table with bars; none for no groups."""
    if not groups:
        return []
    lines = ["", f"{title:30} {'tensors':>7} {'differ':>7} {'relative':>9} {'largest':>9}"]
    for group, share in zip(groups, shares(groups), strict=True):
        line = f"{f'{group.part} {group.name}':30} {group.tensors:7,} {group.differing:7,} {ratio(group.relative):>9}"
        lines.append(f"{line} {number(group.largest):>9}  {'#' * math.ceil(BAR * share)}".rstrip())
    return lines


def ratio(value: float) -> str:
    """A relative change; infinite is a change of what was all zero."""
    return "from 0" if math.isinf(value) else number(value)


def number(value: float) -> str:
    """Three digits; "-" for what is no number."""
    return "-" if math.isnan(value) else f"{value:.3g}"


def csv_table(audit: Audit) -> str:
    """The table, key by key, in full precision; a tensor of the file has a line for each of our names."""
    drifts = {drift.target: drift for drift in audit.drifts}
    file = io.StringIO()
    columns = (*PLACE_COLUMNS, *NUMBER_COLUMNS, *(DRIFT_COLUMNS if audit.drifts else ()))
    table = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for row in audit.rows:
        for target in row.targets or ("",):
            cells = vars(row) | {"our name": target, "shape": shape_of(row), "transform or reason": row.note}
            if row.numbers is not None:
                cells |= vars(row.numbers) | {"flag": row.flag}
            if target in drifts:
                cells |= {column: getattr(drifts[target], field) for column, field in DRIFT_COLUMNS.items()}
            table.writerow(cells)
    return file.getvalue()
