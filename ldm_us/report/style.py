"""The look of a report: one style sheet, for light, dark, narrow and printed pages."""

from ldm_us.display.axes import COLOURS

LINES = " ".join(f"--c{i}: {colour};" for i, colour in enumerate(COLOURS))
LIGHT = f"""
  --page: #fafaf8; --card: #ffffff; --ink: #1d2125; --muted: #59626b; --line: #dde1e5; --mark: #e8f0f8;
  {LINES}"""

DARK = """
  --page: #131619; --card: #1b1f24; --ink: #e7e9ec; --muted: #a2abb4; --line: #333a42; --mark: #1d2d3d;
  --c0: #6fb5f4; --c1: #f39c50; --c2: #6dcb94; --c3: #dccbfb; --c4: #f08ba5; --c5: #a2abb4;"""

RULES = """
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.55; overflow-wrap: break-word;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 900px; margin: 0 auto; padding: 2rem 1rem 3rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.35rem; margin: 0 0 .6rem; }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p { margin: .5rem 0; }
a { color: var(--c0); }
code { font-size: .92em; }
small, .muted, figcaption, .lead { color: var(--muted); }
small { font-size: .85em; }
section { border-top: 2px solid var(--line); margin-top: 2.5rem; padding-top: 1.6rem; }
.stage { display: inline-block; background: var(--mark); border-radius: 4px; padding: 0 .5rem; }
.note { border-left: 3px solid var(--c1); padding: .2rem .8rem; margin: .6rem 0; }

.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .4rem .7rem .4rem 0; border-bottom: 1px solid var(--line); }
thead th:last-child { white-space: nowrap; }
thead th { color: var(--muted); font-weight: 600; font-size: .85rem; }
td small { display: block; }
.summary td { width: 30%; }
.summary td:first-child { width: 40%; padding-left: .7rem; }
.summary .run { padding-top: 1.1rem; }
.summary .run a { font-size: 1.1rem; text-decoration: none; }
.summary dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; margin: .4rem 0 0; }
.summary dt { font-weight: 400; color: var(--muted); }
.summary dd { font-weight: 400; margin: 0; }
.after { font-weight: 600; }
.this td { font-weight: 600; }
.configuration th { font-weight: 400; color: var(--muted); width: 12rem; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--c0); }

.chain { list-style: none; display: flex; flex-wrap: wrap; gap: .4rem 0; margin: .6rem 0; padding: 0; }
.chain li { border: 1px solid var(--line); border-radius: 4px; padding: .1rem .6rem; background: var(--card);
  font-size: .92rem; }
.chain li + li { margin-left: 1.7rem; position: relative; }
.chain li + li::before { content: "\\2192"; position: absolute; left: -1.35rem; color: var(--muted); }
.chain .this { background: var(--mark); border-color: var(--c0); font-weight: 600; }

figure { margin: 0; }
figure > h4 { margin: 0 0 .3rem; font-size: .98rem; }
figcaption { font-size: .86rem; margin-top: .35rem; }
.pairs, .charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 1rem; }
.pairs > figure, .charts > figure, .pictures { background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; padding: .8rem; }
.more { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 260px), 1fr)); gap: 1rem; }
img { display: block; max-width: 100%; height: auto; border-radius: 3px; }
.pairs img, .more img { width: 100%; }
.chart { display: block; width: 100%; height: auto; font-size: 13px; color: var(--muted); }
.chart text { fill: currentColor; }
.chart .axis-label { font-style: italic; }
.grid { stroke: var(--line); }
.tick { stroke: currentColor; stroke-opacity: .6; }

.pictures { margin: 0 0 1.2rem; }
.pictures table { table-layout: fixed; }
.pictures th, .pictures td { border: 0; padding: 2px; font-weight: 400; font-size: .82rem; color: var(--muted); }
.pictures tbody th { padding-top: .5rem; color: var(--ink); }
.pictures img { width: 100%; }
.caution { font-size: .86rem; border: 1px solid var(--line); border-radius: 6px; padding: .4rem .8rem; }
footer { border-top: 1px solid var(--line); margin-top: 2.5rem; padding-top: .8rem; font-size: .86rem;
  color: var(--muted); }

@media print {
  main { max-width: none; padding: 0; }
  figure, .pictures, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  section { break-before: page; border-top: 0; }
  .scroll { overflow: visible; }
}
"""

STYLE = (
    f":root {{ color-scheme: light dark;{LIGHT} }}\n"
    f"@media screen and (prefers-color-scheme: dark) {{ :root {{{DARK} }} }}\n{RULES}"
)
