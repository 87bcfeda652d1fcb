"""An audit as one HTML page that loads nothing: verdict, totals, drift with charts, and a table of every tensor."""

from collections import Counter

from ldm_us.display.pages import render
from ldm_us.files.checkpoint import PARTS
from weights_convert.audit.chart import drift_chart
from weights_convert.audit.drift import by_block, by_kind, most_drifted, shares, unchanged_parts
from weights_convert.audit.findings import Audit, Row
from weights_convert.audit.text import counts, detail, flag_lines, number, printable, ratio, shape_of, verdict
from weights_convert.summary import layouts_of, origin

MOST_DRIFTED = 25
FUNCTIONS = (by_block, by_kind, counts, detail, layouts_of, number, origin, printable, ratio, shape_of, shares)


def audit_page(audit: Audit) -> str:
    """Fill page.html."""
    unchanged = unchanged_parts(audit.drifts)
    changed = [drift for drift in audit.drifts if drift.part not in unchanged]
    parts = {part: [drift for drift in changed if drift.part == part] for part in PARTS}
    return render(
        "weights_convert/audit/page.html",
        title=f"Weights audit: {printable(audit.plan.source.path.name or str(audit.plan.source.path))}",
        audit=audit,
        verdict=verdict(audit),
        left_out=Counter(audit.plan.ignored.values()),
        flags=flag_lines(audit.rows),
        unchanged=unchanged,
        changed=changed,
        charts={part: drift_chart(own, f"drift of {part}") for part, own in parts.items() if own},
        furthest=most_drifted(changed, MOST_DRIFTED),
        drifts={drift.target: drift for drift in audit.drifts},
        uses=dict.fromkeys(use for row in audit.rows for use in uses_of(row).split()),
        uses_of=uses_of,
        **{function.__name__: function for function in FUNCTIONS},
    )


def uses_of(row: Row) -> str:
    """What the filter can ask for, in one word each: how a tensor is used, and whether its numbers stand out."""
    return f"{row.status} flagged" if row.flag else row.status
