"""The page on which a person answers. What it shows was written by models: it is set as text, never as markup."""

from __future__ import annotations

import base64
import hashlib

SCRIPT = """
const token = location.hash.slice(1), list = document.getElementById("questions"), shown = new Map();
const headers = {"Authorization": "Bearer " + token, "Content-Type": "application/json"};
const make = (tag, text) => { const e = document.createElement(tag); e.textContent = text; return e; };
function show(q) {
  const form = make("form", ""), text = make("pre", q.text), input = make("input", "");
  const left = make("small", ""), send = make("button", "Answer");
  input.setAttribute("aria-label", "Your answer to question " + q.number);
  form.append(make("h2", "Question " + q.number), text, input, send, left);
  form.onsubmit = async event => {
    event.preventDefault();
    const body = JSON.stringify({number: q.number, answer: input.value});
    const sent = await fetch("/answers", {method: "POST", headers, body});
    if (sent.status === 409) { left.textContent = " too late"; } else { form.remove(); }
  };
  list.append(form);
  shown.set(q.number, {form, left});
}
async function refresh() {
  const note = document.getElementById("note");
  try {
    const answer = await fetch("/waiting", {headers});
    if (answer.status === 401) { note.textContent = "The token after # in the address is wrong."; return; }
    const waiting = await answer.json();
    const open = new Map(waiting.map(q => [q.number, q]));
    for (const [number, {form}] of shown) if (!open.has(number)) { form.remove(); shown.delete(number); }
    for (const q of waiting) {
      if (!shown.has(q.number)) show(q);
      if (q.seconds_left !== null) shown.get(q.number).left.textContent = " " + Math.ceil(q.seconds_left) + " s";
    }
    note.textContent = waiting.length ? "" : "Nothing to answer just now.";
  } catch { note.textContent = "The run isn't there any more."; }
  setTimeout(refresh, 1000);
}
refresh();
"""

STYLE = "body{font:16px system-ui;max-width:42rem;margin:2rem auto;padding:0 1rem}pre{white-space:pre-wrap}"

PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>You are asked</title>'
    f'<style>{STYLE}</style><h1>You are asked</h1><p id="note" role="status"></p><main id="questions"></main>'
    f"<script>{SCRIPT}</script></html>"
)


def _digest(content: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"


POLICY = (
    f"default-src 'none'; connect-src 'self'; script-src {_digest(SCRIPT)}; style-src {_digest(STYLE)}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing but this script and this style."""
