"""The labelling page: one HTML file that asks for nothing from outside."""

import base64
import html
import io
import json
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Images = dict[str, NDArray[np.uint8]]
"""Pictures `[H, W, 3]` by name."""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>@TITLE@</title>
<style>
:root { color-scheme: light dark; --line: #8886; --yes: #1a7f37; --no: #c0392b; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 0 auto; padding: 1rem;
  text-align: center; }
h1 { font-size: 1.3rem; margin: 0 0 .5rem; }
progress { width: 100%; height: .6rem; }
#image { width: min(100%, 24rem); image-rendering: pixelated; border: 1px solid var(--line); display: block;
  margin: .8rem auto; }
.row { display: flex; gap: .5rem; justify-content: center; flex-wrap: wrap; margin: .5rem 0; }
button { font: inherit; padding: .6rem 1.2rem; border: 1px solid var(--line); border-radius: .5rem;
  cursor: pointer; }
button:disabled { opacity: .4; cursor: default; }
.yes { background: var(--yes); color: #fff; } .no { background: var(--no); color: #fff; }
kbd { border: 1px solid var(--line); border-radius: .25rem; padding: 0 .3rem; font-size: .85em; }
small, footer { opacity: .8; }
#all { display: grid; grid-template-columns: repeat(auto-fill, minmax(2.6rem, 1fr)); gap: 3px;
  margin-top: 1rem; }
#all button { padding: 0; border: 3px solid transparent; border-radius: .3rem; background: none;
  line-height: 0; }
#all img { width: 100%; image-rendering: pixelated; }
#all .isyes { border-color: var(--yes); } #all .isno { border-color: var(--no); }
#all [aria-current=true] { outline: 3px solid #0969da; }
input { font: inherit; padding: .3rem; }
</style>
</head>
<body>
<h1>@QUESTION@</h1>
<progress id="progress" max="1" value="0"></progress>
<div id="status" aria-live="polite"></div>
<img id="image" alt="sample">
<div class="row">
<button id="back">Back <kbd>&larr;</kbd></button>
<button id="yes" class="yes">Yes <kbd>Y</kbd></button>
<button id="no" class="no">No <kbd>N</kbd></button>
</div>
<div class="row">
<label>Your name <input id="labeller" maxlength="40" autocomplete="off"></label>
<button id="download">Download answers</button>
</div>
<small id="kept"></small>
<div id="all"></div>
<footer class="row"><button id="clear">Start over</button></footer>
<noscript>This page needs JavaScript; it loads nothing from outside.</noscript>
<script>
"use strict";
const ABOUT = @ABOUT@;
const IMAGES = @IMAGES@;
const names = Object.keys(IMAGES);
const key = "lightning-genesis-label-" + ABOUT.images;
const byId = (id) => document.getElementById(id);
let state = { labeller: "", answers: {}, at: 0 };
let kept = true;
try {
  const found = JSON.parse(localStorage.getItem(key));
  if (found && typeof found.answers === "object") state = found;
} catch (error) { kept = false; }

function keep() {
  try { localStorage.setItem(key, JSON.stringify(state)); kept = true; } catch (error) { kept = false; }
  byId("kept").textContent = kept ? "Answers are kept in this browser until you start over."
    : "This browser keeps nothing: download before you close the page.";
}
function show() {
  const count = names.filter((name) => name in state.answers).length;
  const name = names[state.at];
  byId("progress").max = names.length;
  byId("progress").value = count;
  const answer = name in state.answers ? (state.answers[name] ? ", answered yes" : ", answered no") : "";
  const done = count === names.length ? "All answered: download your answers. " : "";
  byId("status").textContent = done + "Image " + (state.at + 1) + " of " + names.length + answer
    + "; " + count + " answered";
  byId("image").src = IMAGES[name];
  byId("back").disabled = state.at === 0;
  [...byId("all").children].forEach((button, number) => {
    const known = names[number] in state.answers;
    button.className = known ? (state.answers[names[number]] ? "isyes" : "isno") : "";
    button.setAttribute("aria-current", number === state.at);
  });
}
function answer(yes) {
  state.answers[names[state.at]] = yes;
  if (state.at < names.length - 1) state.at += 1;
  keep(); show();
}
function go(at) { state.at = Math.min(Math.max(at, 0), names.length - 1); keep(); show(); }
function contents() {
  const answers = {};
  for (const name of names) if (name in state.answers) answers[name] = state.answers[name];
  return JSON.stringify({ format: ABOUT.format, labeller: state.labeller.trim() || "unnamed",
    question: ABOUT.question, images: ABOUT.images, answers: answers }, null, 1) + "\\n";
}
function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([contents()], { type: "application/json" }));
  link.download = "answers-" + (state.labeller.trim().replace(/[^\\w-]+/g, "_") || "unnamed") + ".json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
names.forEach((name, number) => {
  const button = document.createElement("button");
  const image = document.createElement("img");
  image.src = IMAGES[name]; image.alt = name;
  button.title = name; button.append(image);
  button.onclick = () => go(number);
  byId("all").append(button);
});
byId("yes").onclick = () => answer(true);
byId("no").onclick = () => answer(false);
byId("back").onclick = () => go(state.at - 1);
byId("download").onclick = download;
byId("labeller").value = state.labeller;
byId("labeller").oninput = (event) => { state.labeller = event.target.value; keep(); };
byId("clear").onclick = () => {
  if (!confirm("Forget all answers?")) return;
  state = { labeller: state.labeller, answers: {}, at: 0 }; keep(); show();
};
document.addEventListener("keydown", (event) => {
  if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey) return;
  const actions = { y: () => answer(true), n: () => answer(false), b: () => go(state.at - 1),
    arrowleft: () => go(state.at - 1), arrowright: () => go(state.at + 1) };
  const action = actions[event.key.toLowerCase()];
  if (action) { event.preventDefault(); action(); }
});
state.at = Math.min(Math.max(Number(state.at) || 0, 0), names.length - 1);
keep(); show();
</script>
</body>
</html>
"""


def make_page(images: Images, question: str, digest: str, answer_format: int) -> str:
    """The page for images and a question.

    Args:
        images: by name, in the order in which they are shown.
        question: to be answered with yes or no.
        digest: of the images; goes into the answers, and tells sets apart in the browser.
        answer_format: number of the answers' format.
    """
    about = {"format": answer_format, "question": question, "images": digest}
    parts = {
        "@TITLE@": html.escape(f"Label {len(images)} samples"),
        "@QUESTION@": html.escape(question),
        "@ABOUT@": _script(about),
        "@IMAGES@": _script({name: _address(image) for name, image in images.items()}),
    }
    return re.sub("|".join(parts), lambda token: parts[token[0]], _PAGE)


def _address(image: NDArray[np.uint8]) -> str:
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"


def _script(value: object) -> str:
    """JSON inside a script element, which no text in it can end."""
    return json.dumps(value).replace("<", "\\u003c")
