// Keys, a draft that outlives a closed browser, and the time that the page was in view. The page works
// without all this.
"use strict";

const form = document.getElementById("vote");
const status = document.getElementById("status");
const radios = [...form.querySelectorAll("input[type=radio]")];
const note = form.elements.note;
const began = Date.now();
let active = 0;
let since = document.hidden ? null : performance.now();

const store = {
  get(name) { try { return JSON.parse(localStorage.getItem(name)); } catch { return null; } },
  set(name, value) { try { localStorage.setItem(name, JSON.stringify(value)); } catch { /* none: no drafts */ } },
  drop(name) { try { localStorage.removeItem(name); } catch { /* as above */ } },
};
const draftName = "draft/" + form.dataset.draft;

// Drafts: a vote that was saved since is newer than what was begun before it.
function keepDraft() {
  const places = Object.fromEntries(radios.filter((r) => r.checked).map((r) => [r.name, r.value]));
  store.set(draftName, { vote: form.dataset.vote, places, note: note.value, active: seconds(), at: began });
}

function takeDraft() {
  const draft = store.get(draftName);
  if (!draft) return;
  if (draft.vote !== form.dataset.vote) { store.drop(draftName); return; }
  active = Number(draft.active) || 0;
  if (form.dataset.problem) return;
  for (const radio of radios) if (draft.places[radio.name] === radio.value) radio.checked = true;
  note.value = draft.note;
}

function dropOldDrafts() {
  const month = 31 * 86400e3;
  for (const name of Object.keys(localStorage)) {
    if (name.startsWith("draft/") && began - (store.get(name)?.at ?? 0) > month) store.drop(name);
  }
}

function seconds() {
  return (active + (since === null ? 0 : (performance.now() - since) / 1000));
}

// In the page's own words, which it brings along.
const titleOf = (radio) => radio.closest("fieldset").querySelector("legend strong").textContent;
const placeOf = (radio) => radio.nextElementSibling.firstChild.textContent.trim();

function tell() {
  const open = new Set(radios.filter((r) => !form.elements[r.name].value).map(titleOf));
  document.body.classList.toggle("complete", open.size === 0);
  return open.size ? form.dataset.open.replace("{titles}", [...open].join(", ")) : form.dataset.complete;
}

function choose(radio) {
  radio.checked = true;
  changed(radio);
}

function changed(radio) {
  status.textContent = `${titleOf(radio)}: ${placeOf(radio)} – ${tell()}`;
  keepDraft();
}

function grow() {
  note.style.height = "auto";
  note.style.height = `${Math.min(note.scrollHeight + 2, 200)}px`;
}

const actions = {
  enter: () => form.requestSubmit(document.getElementById("save")),
  s: () => document.getElementById("skip")?.click(),
  b: () => document.getElementById("back")?.click(),
  n: () => note.focus(),
};

function pressed(event) {
  if (event.target === note) {
    if (event.key === "Escape") note.blur();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) actions.enter();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
  if (!keys.checked || (event.key === "Enter" && event.target.closest("a, button, summary, input:not([type=radio])"))) return;
  const radio = radios.find((r) => r.dataset.key === event.key);
  const action = actions[event.key.toLowerCase()];
  if (!radio && !action) return;
  event.preventDefault();
  if (radio) choose(radio); else action();
}

const keys = document.getElementById("keys");
keys.checked = store.get("keys") ?? true;
const showKeys = () => document.body.classList.toggle("with-keys", keys.checked);
keys.addEventListener("change", () => { store.set("keys", keys.checked); showKeys(); });
showKeys();

takeDraft();
dropOldDrafts();
status.textContent = tell();
grow();
radios.forEach((radio) => radio.addEventListener("change", () => changed(radio)));
note.addEventListener("input", () => { grow(); keepDraft(); });
document.addEventListener("keydown", pressed);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) { active = seconds(); since = null; keepDraft(); } else { since = performance.now(); }
});
window.addEventListener("pagehide", keepDraft);
form.addEventListener("submit", () => { form.elements.active.value = seconds().toFixed(1); });
if (form.dataset.problem) form.scrollIntoView();
