"""The sheet that a reader opens: one HTML file, without a network, with the images and without the key.

Every image is decoded, made grey, brought to one size and encoded anew, so that file name, metadata and compression
tell nothing. The reader's name is asked first, and the answers are kept in the browser under study and name, so that a
second reader at the same computer does not see them, until they are saved as a JSON file.
"""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ldm_us.data.records import CLASSES
from ldm_us.evaluation.reader.deck import Key
from ldm_us.evaluation.reader.preparation import prepare
from ldm_us.files.pictures import to_picture
from ldm_us.report.page import image

RATINGS = ("surely generated", "probably generated", "probably real", "surely real")  # answers 1 to 4
LARGEST = 1024  # pixels of a side

STYLE = """
:root { color-scheme: dark; }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0; background: #101214; color: #d7dbdf; line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 760px; margin: 0 auto; padding: 1.2rem 1rem 2rem; }
h1 { font-size: 1.25rem; margin: 0 0 .3rem; }
p { margin: .4rem 0; color: #a2abb4; }
.card { display: none; text-align: center; margin: 1rem 0; }
.card.shown { display: block; }
.card img { width: min(100%, 54vh); height: auto; background: #000; }
.answers { display: grid; grid-template-columns: repeat(4, 1fr); gap: .5rem; margin: .6rem 0; }
.answers.classes { grid-template-columns: repeat(3, 1fr); }
button { font: inherit; color: inherit; background: #1d2226; border: 1px solid #3a4249; border-radius: 5px;
  padding: .55rem .4rem; cursor: pointer; }
button:hover { border-color: #6fb5f4; }
button:focus-visible { outline: 2px solid #6fb5f4; outline-offset: 2px; }
button[aria-pressed=true] { background: #1d3d5c; border-color: #6fb5f4; color: #fff; }
button:disabled { opacity: .45; cursor: default; }
kbd { color: #8a949d; font: inherit; font-size: .82em; }
.bar { height: 4px; background: #262c31; margin: .6rem 0; }
.bar div { height: 100%; background: #6fb5f4; width: 0; }
.way { display: flex; gap: .5rem; align-items: center; justify-content: space-between; flex-wrap: wrap; }
.way label { display: flex; gap: .4rem; align-items: center; }
input { font: inherit; color: inherit; background: #1d2226; border: 1px solid #3a4249; border-radius: 5px;
  padding: .4rem .5rem; width: 11rem; }
.way { margin: .6rem 0; }
.said { min-height: 1.5em; }
@media (max-width: 520px) { .answers { grid-template-columns: repeat(2, 1fr); } }
"""

SCRIPT = """
const cards = [...document.querySelectorAll('.card')];
let answers = {}, shown = 0, reader = '', store = '';
const byId = id => document.getElementById(id);
const whole = i => questions.every(q => answers[i] && answers[i][q] !== undefined);
function keep() { try { localStorage.setItem(store, JSON.stringify(answers)); } catch (e) { } }
function forget() { try { localStorage.removeItem(store); } catch (e) { } }
function show(i) {
  shown = Math.max(0, Math.min(cards.length - 1, i));
  cards.forEach((card, k) => card.classList.toggle('shown', k === shown));
  document.querySelectorAll('[data-question]').forEach(b => b.setAttribute('aria-pressed',
    String(!!answers[shown] && answers[shown][b.dataset.question] === b.dataset.value)));
  const done = cards.filter((_, k) => whole(k)).length;
  byId('place').textContent = `image ${shown + 1} of ${cards.length}, ${done} answered`;
  byId('done').style.width = 100 * done / cards.length + '%';
  byId('back').disabled = shown === 0; byId('next').disabled = shown === cards.length - 1;
  byId('save').disabled = done < cards.length;
}
function answer(question, value) {
  answers[shown] = {...answers[shown], [question]: value}; keep();
  show(whole(shown) && shown < cards.length - 1 ? shown + 1 : shown);
}
document.querySelectorAll('[data-question]').forEach(b =>
  b.addEventListener('click', () => answer(b.dataset.question, b.dataset.value)));
byId('back').addEventListener('click', () => show(shown - 1));
byId('next').addEventListener('click', () => show(shown + 1));
byId('start').addEventListener('submit', e => {
  e.preventDefault();
  reader = byId('reader').value.trim();
  if (!reader) return;
  store = `reader-study-${study}-${reader}`;
  try { answers = JSON.parse(localStorage.getItem(store)) || {}; } catch (e) { }
  byId('start').hidden = true; byId('study').hidden = false; byId('who').textContent = 'Reader: ' + reader;
  const open = cards.findIndex((_, k) => !whole(k)); show(open < 0 ? 0 : open);
});
document.addEventListener('keydown', e => {
  if (!reader || e.target.tagName === 'INPUT' || e.ctrlKey || e.metaKey || e.altKey) return;
  const button = document.querySelector(`[data-key="${CSS.escape(e.key.toLowerCase())}"]`);
  if (button) { e.preventDefault(); answer(button.dataset.question, button.dataset.value); }
  if (e.key === 'ArrowLeft') show(shown - 1);
  if (e.key === 'ArrowRight') show(shown + 1);
});
byId('save').addEventListener('click', () => {
  const given = cards.map((_, k) => answers[k]);
  const text = JSON.stringify({study, reader, answers: given}, null, 1);
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
  link.download = `answers_${reader.replace(/[^A-Za-z0-9_-]/g, '_')}.json`;
  link.click(); forget();
  byId('said').textContent = `Saved as ${link.download}: send this file back.`;
});
"""


def sheet(key: Key) -> str:
    """The whole page, in ASCII. Nothing in it tells the kinds apart."""
    cards = "\n".join(f'<div class="card">{_picture(card.file, key.sides)}</div>' for card in key.cards)
    questions = ["rating", *(["label"] if key.ask_class else [])]
    rows = _row("rating", [(str(i), str(i), text) for i, text in enumerate(RATINGS, start=1)], "")
    if key.ask_class:
        rows += _row("label", [(label[0], label, label) for label in CLASSES], " classes")
    question = "real or generated" + (", and of which class (benign, malignant, normal)" if key.ask_class else "")
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Reader study {key.study}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>Real or generated?</h1>
<p>{len(key.cards)} breast ultrasound images, half of them real, in random order. Say of each: {question}.
Answers can be changed until they are saved, and are kept in this browser, under your
name, if you pause.</p>
<form class="way" id="start"><label>Reader <input id="reader" placeholder="name or number" maxlength="60" required>
</label><button>Start or go on</button></form>
<div id="study" hidden>
<div class="bar"><div id="done"></div></div>
{cards}
{rows}
<div class="way"><button id="back">back <kbd>left</kbd></button><span id="place"></span>
<button id="next">next <kbd>right</kbd></button></div>
<p class="way"><span id="who"></span><button id="save">Save answers</button></p>
<p class="said" id="said" role="status"></p>
</div>
</main>
<script>
const study = {json.dumps(key.study)}, questions = {json.dumps(questions)};
{SCRIPT}</script>
</body>
</html>
"""
    return page.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _row(question: str, buttons: list[tuple[str, str, str]], kind: str) -> str:
    cells = "".join(
        f'<button data-question="{question}" data-key="{pressed}" data-value="{value}" aria-pressed="false">'
        f"{escape(text)} <kbd>{pressed}</kbd></button>"
        for pressed, value, text in buttons
    )
    return f'<div class="answers{kind}" role="group">{cells}</div>\n'


def _picture(file: str, sides: Sequence[int]) -> str:
    return image(to_picture(prepare(Path(file), sides)), "an ultrasound image", LARGEST)
