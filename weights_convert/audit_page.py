"""An audit as one HTML page that loads nothing: verdict, totals, drift with charts, and a table of every tensor."""

from collections import Counter
from collections.abc import Sequence
from html import escape

import ldm_us
from ldm_us.report.page import document, table
from weights_convert.audit import Audit, AuditedFile, Comparison
from weights_convert.audit_chart import drift_chart
from weights_convert.audit_rows import Row, Total
from weights_convert.audit_text import counts, detail, flag_lines, number, printable, ratio, verdict
from weights_convert.drift import Drift, GroupDrift, by_block, by_kind, most_drifted, part_of, unchanged_parts

MOST_DRIFTED = 25
DRIFT_HEADER = ("Relative change", "Largest change", "Cosine")
CAPTION = (
    "Relative change ||a - b|| / ||b|| of every tensor, a in this file and b in the other, block by block as the "
    "network runs. The bar, and the number below: the matrices and kernels of the block together. Biases and norms "
    "often start near 0, where a ratio says little; those that start at 0 have none."
)
STYLE = """
main { max-width: 1240px; }
.verdict { font-size: 1.1rem; font-weight: 600; border-left: 4px solid var(--c2); padding: .2rem .8rem; }
.verdict.bad { border-color: var(--c1); }
.chart.drift { font-size: 11px; min-width: 640px; }
.drift .ground { fill: var(--mark); fill-opacity: .5; }
.drift .full { fill-opacity: .75; }
.drift .hollow { fill: none; stroke-opacity: .6; }
.drift .block { stroke: var(--ink); stroke-width: 2.5; }
.drift .value { font-weight: 600; fill: var(--ink); }
.bar { display: inline-block; height: .6rem; background: var(--c0); border-radius: 2px; vertical-align: middle; }
.bars td:last-child { width: 35%; }
.keys { max-height: 80vh; overflow: auto; border: 1px solid var(--line); border-radius: 6px; }
.keys table { font-size: .78rem; white-space: nowrap; }
.keys th { position: sticky; top: 0; background: var(--card); }
.keys th, .keys td { padding: .25rem .9rem .25rem .4rem; }
.keys .hash { font-family: ui-monospace, monospace; }
.keys .bad td { background: color-mix(in srgb, var(--c1) 18%, transparent); }
.keys .ignored td { color: var(--muted); }
.filter { display: flex; flex-wrap: wrap; gap: .6rem; align-items: center; margin: .6rem 0; }
.filter input, .filter select { font: inherit; padding: .25rem .5rem; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 4px; }
.filter input { flex: 1 1 16rem; }
@media print { .keys { max-height: none; } .filter { display: none; } }
"""
SCRIPT = """<script>
const rows = [...document.querySelectorAll(".keys tbody tr")].map(row => [row, row.textContent.toLowerCase()]);
const words = document.querySelector(".filter input"), kind = document.querySelector(".filter select");
const count = document.querySelector(".filter output");
function filter() {
  const wanted = words.value.toLowerCase().split(/\\s+/);
  let shown = 0;
  for (const [row, text] of rows) {
    const asked = !kind.value || row.dataset.status.split(" ").includes(kind.value);
    const fits = asked && wanted.every(word => text.includes(word));
    row.hidden = !fits;
    shown += fits;
  }
  count.textContent = shown + " of " + rows.length;
}
words.addEventListener("input", filter);
kind.addEventListener("change", filter);
filter();
</script>"""


def audit_page(audit: Audit) -> str:
    """The whole page."""
    title = f"Weights audit: {audit.source.path.name or audit.source.path}"
    sections = [heading(title, audit), contents_section(audit)]
    if audit.problems:
        sections.append(problems_section(audit.problems))
    if audit.comparison is not None:
        sections.append(drift_section(audit.comparison))
    sections.append(keys_section(audit))
    sections.append(f"<footer>Written by ldm_us {escape(ldm_us.__version__)}.</footer>{SCRIPT}")
    return document(title, "\n".join(sections), STYLE)


def heading(title: str, audit: Audit) -> str:
    """The title and the verdict."""
    mark = "" if audit.is_clean else " bad"
    return f'<h1>{escape(title)}</h1><p class="verdict{mark}">{escape(verdict(audit))}</p>'


def contents_section(audit: Audit) -> str:
    """Files, totals, what was left out, and what stands out."""
    body = files_table(audit.source)
    header = ("Part", "Tensors", "expected", "Parameters", "expected", "Types")
    body += f"<h3>Against the architecture of {escape(audit.config.name)}</h3>"
    body += table(header, [total_cells(total) for total in audit.totals])
    reasons = Counter(row.note for row in audit.rows if row.status == "ignored")
    if reasons:
        body += "<h3>Left out by an import</h3>"
        body += table(("Tensors", "Why"), [(f"{count:,}", reason) for reason, count in reasons.items()])
    flags = flag_lines(audit.rows)
    if flags:
        body += "<h3>Flagged</h3>" + "".join(f"<p>{escape(line)}</p>" for line in flags)
    return f"<section><h2>What is in it</h2>{body}</section>"


def files_table(file: AuditedFile) -> str:
    """Paths, sizes, hashes and layouts."""
    found = ", ".join(f"{layout.part} ({layout.naming}{', ema' if layout.ema else ''})" for layout in file.layouts)
    rows = [(str(path), f"{size:,}", digest) for path, size, digest in file.files]
    return f"<p>{file.tensors:,} tensors: {escape(found)}.</p>" + table(("File", "Bytes", "sha256"), rows)


def total_cells(total: Total) -> tuple[str, ...]:
    """One part, found and expected."""
    expected = f"{total.expected_tensors:,}", f"{total.expected_parameters:,}"
    if not total.dtypes:
        return total.part, "-", expected[0], "-", expected[1], "not in this file"
    found = f"{total.tensors:,}", f"{total.parameters:,}"
    return total.part, found[0], expected[0], found[1], expected[1], ", ".join(total.dtypes)


def problems_section(rows: Sequence[Row]) -> str:
    """Everything that makes the audit unclean."""
    cells = [(row.problem, printable(row.key), shape_of(row), row.dtype, detail(row)) for row in rows]
    body = table(("Problem", "Key", "Shape", "Type", "Detail"), cells)
    return f"<section><h2>What does not fit</h2>{body}</section>"


def shape_of(row: Row) -> str:
    """320x4x3x3; "number" for a tensor without axes."""
    return "x".join(map(str, row.shape)) or "number"


def drift_section(comparison: Comparison) -> str:
    """What changed since the other file: a chart for each part that did, then tables."""
    same = unchanged_parts(comparison.drifts)
    drifts = [drift for drift in comparison.drifts if part_of(drift) not in same]
    body = f"<h2>Drift from {escape(comparison.other.path.name)}</h2>{files_table(comparison.other)}"
    body += f"<p>{escape(counts(comparison))}.</p>"
    body += "".join(f"<p>{part}: nothing changed: {why}.</p>" for part, why in same.items())
    for part in dict.fromkeys(map(part_of, drifts)):
        svg = drift_chart([drift for drift in drifts if part_of(drift) == part], f"drift of {part}")
        body += f'<h3>Where {part} changed</h3><figure class="pictures"><div class="scroll">{svg}</div>'
        body += f"<figcaption>{escape(CAPTION)}</figcaption></figure>"
    if drifts:
        body += "<h3>By block</h3>" + bars(by_block(drifts)) + "<h3>By kind of layer</h3>" + bars(by_kind(drifts))
        body += f"<h3>The {MOST_DRIFTED} matrices and kernels that moved furthest</h3>"
        cells = [(drift.target, *drift_cells(drift)) for drift in most_drifted(drifts, MOST_DRIFTED)]
        body += table(("Tensor", *DRIFT_HEADER), cells)
    return f"<section>{body}</section>"


def bars(groups: Sequence[GroupDrift]) -> str:
    """Groups of tensors, each with a bar."""
    longest = max((g.relative for g in groups if g.relative < float("inf")), default=0.0) or 1.0
    body = ""
    for group in groups:
        share = min(group.relative / longest, 1.0) if group.relative == group.relative else 0.0
        cells = (f"{group.part} {group.name}", f"{group.differing:,} of {group.tensors:,}", ratio(group.relative))
        body += "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in (*cells, number(group.largest)))
        body += f'<td><span class="bar" style="width:{100 * share:.1f}%"></span></td></tr>'
    names = ("Where", "Differ", "Relative change", "Largest change", "")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return f'<div class="scroll bars"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def drift_cells(drift: Drift | None) -> tuple[str, str, str]:
    """Relative change, largest change and cosine."""
    if drift is None:
        return "", "", ""
    relative = drift.state if drift.relative == 0 else ratio(drift.relative)
    return relative, number(drift.largest), number(drift.cosine)


def keys_section(audit: Audit) -> str:
    """Every tensor, with a filter."""
    drifts = {} if audit.comparison is None else {drift.target: drift for drift in audit.comparison.drifts}
    header = ["Key in the file, and ours", "Shape", "Type", "Use"]
    header += [*(DRIFT_HEADER if drifts else ()), "Transform or reason", "Lowest", "Highest", "RMS", "Flag"]
    header += ["sha256 of the bytes"]
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    body = "".join(key_row(row, drifts) for row in audit.rows)
    kinds = dict.fromkeys(kind for row in audit.rows for kind in kinds_of(row))
    options = "".join(f'<option value="{escape(kind)}">{escape(kind.replace("-", " "))}</option>' for kind in kinds)
    return (
        '<section><h2>Key by key</h2><div class="filter"><input type="search" aria-label="Words to look for" '
        f'placeholder="words in the row, such as: unet cross_attention"><select aria-label="Use"><option value="">all'
        f'</option>{options}</select><output></output></div><div class="keys"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></section>"
    )


def kinds_of(row: Row) -> list[str]:
    """What the filter can ask for: how it is used, and its flag."""
    flag = "" if row.numbers is None else row.numbers.flag
    return [row.status, *(["flagged"] if flag else [])]


def key_row(row: Row, drifts: dict[str, Drift]) -> str:
    """One tensor of the file, with one line for each of our names."""
    numbers, targets = row.numbers, row.targets
    cells = [shape_of(row), row.dtype, row.status]
    if drifts:
        lines = [drift_cells(drifts.get(target)) for target in targets or ("",)]
        cells += ["\n".join(column) for column in zip(*lines, strict=True)]
    cells += [row.note]
    if numbers is None:
        cells += [""] * 4
    else:
        cells += [number(numbers.lowest), number(numbers.highest), number(numbers.rms), numbers.flag]
    ours = "".join(f"<small>{escape(target)}</small>" for target in targets if target != row.key)
    body = f"<td>{escape(printable(row.key))}{ours}</td>"
    body += "".join(f"<td>{escape(cell).replace(chr(10), '<br>')}</td>" for cell in cells)
    body += f'<td class="hash">{"" if numbers is None else numbers.sha256}</td>'
    mark = "bad" if row.problem else row.status
    return f'<tr class="{mark}" data-status="{" ".join(kinds_of(row))}">{body}</tr>'
