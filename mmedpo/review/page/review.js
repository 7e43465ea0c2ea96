// The page of a review: one pair a screen, verdicts by key or button. What a reviewer has not sent stays in the browser.

import { Viewer } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const STEPS = 10; // of clinical relevance
const STORE = "mmedpo";
const RETRY = 2000; // milliseconds
const state = { reviewer: "", start: null, pair: null, draft: null, since: 0, sending: false, ahead: new Map() };
const viewer = new Viewer($("panels"), (boxes) => { state.draft.boxes = boxes; keep(); show(); });

// Storage: the reviewer's name, one draft a pair, and a verdict that the server has not confirmed.

const stored = (name) => JSON.parse(localStorage.getItem(`${STORE}/${name}`));
const store = (name, value) => (value === null
  ? localStorage.removeItem(`${STORE}/${name}`) : localStorage.setItem(`${STORE}/${name}`, JSON.stringify(value)));
const draftOf = ({ digest }) => `draft/${state.start.blind ? "blind/" : ""}${state.reviewer}/${digest}`;
const unsent = () => `unsent/${state.start.name}/${state.reviewer}`;
const keep = () => store(draftOf(state.pair), state.draft);

async function ask(path, body) {
  const headers = { "X-Reviewer": encodeURIComponent(state.reviewer), "Content-Type": "application/json" };
  const response = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  if (response.status === 401 && path !== "login") {
    await password();
    return ask(path, body);
  }
  const answer = await response.json();
  if (!response.ok) throw Object.assign(new Error(answer.error), { told: true });
  return answer;
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function prompt(question, type = "text") {
  $("asked").textContent = question;
  $("answer").type = type;
  $("answer").value = "";
  $("ask").showModal();
  return new Promise((resolve) => { $("ask").onclose = () => resolve($("answer").value.trim()); });
}

async function password() {
  for (let said = "Password of this review"; ;) {
    const given = await prompt(said, "password");
    try {
      return await ask("login", { password: given });
    } catch (error) {
      said = error.message;
    }
  }
}

async function named() {
  let name = "";
  while (!name) name = await prompt("Your name or initials, as they shall stand beside your verdicts");
  state.reviewer = name;
  store("reviewer", name);
}

// Pairs

async function load(position) {
  const pair = await ask(`api/pairs/${position}`);
  const sides = pair.same_images ? ["first"] : ["first", "second"];
  pair.urls = await Promise.all(sides.map((side, number) => Promise.all(
    pair.sides[number].sizes.map(async (_, image) => {
      const response = await fetch(`api/images/${position}/${side}/${image}`);
      if (!response.ok) throw Object.assign(new Error("An image of this pair cannot be read."), { told: true });
      return URL.createObjectURL(await response.blob());
    }),
  )));
  return pair;
}

function ahead(position) {
  if (!state.ahead.has(position)) {
    const loading = load(position);
    loading.catch(() => state.ahead.delete(position));
    state.ahead.set(position, loading);
  }
  return state.ahead.get(position);
}

async function go(position) {
  if (position < 0 || position >= state.start.pairs) return;
  try {
    const pair = await ahead(position);
    state.ahead.delete(position);
    for (const url of (state.pair?.urls ?? []).flat()) URL.revokeObjectURL(url);
    state.pair = pair;
  } catch (error) {
    return notice(error.told ? error.message : "The server does not answer. Start it again, then press a key.");
  }
  const { pair } = state;
  state.draft = stored(draftOf(pair)) ?? fresh(pair);
  state.since = performance.now();
  notice("");
  location.hash = position;
  const titles = state.start.blind ? ["A", "B"] : ["Original", "Noised"];
  viewer.show(pair.urls.flatMap((own, side) => own.map((url, number) => ({
    url, width: pair.sides[side].sizes[number][0], height: pair.sides[side].sizes[number][1],
    title: (pair.same_images ? "Image" : titles[side]) + (own.length > 1 ? ` ${number + 1}` : ""),
    marked: "boxes" in pair, side, place: number,
  }))), state.draft.boxes, pair.boxes?.[0]?.label ?? "lesion");
  show();
  const next = following();
  if (next !== null) ahead(next).catch(() => {});
}

function fresh(pair) {
  const { after = {}, relevance = null, reason = "" } = pair.mine ?? {};
  const [chosen, rejected] = pair.sides.map((side) => side.text);
  return { chosen, rejected, boxes: pair.boxes ?? [], relevance, reason, ...after };
}

function following() {
  const { done, pairs } = state.start;
  for (let step = 1; step <= pairs; step++) {
    const position = (state.pair.position + step) % pairs;
    if (!done.has(position) && position !== state.pair.position) return position;
  }
  return null;
}

// Verdicts

async function give(decision, better = null) {
  if (state.sending) return;
  const { pair, draft, start } = state;
  if (decision === "reject" && !start.blind && !draft.reason.trim()) {
    $("reason").focus();
    return notice("Say why in one line, then press Enter.");
  }
  const id = [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const seconds = Math.round((performance.now() - state.since) / 100) / 10;
  const { position, digest } = pair;
  await send({ id, position, digest, decision, better, seconds, blind: start.blind, ...draft });
}

// A verdict is kept until the server has written it; the same id sent twice is written once. Return why it was refused.
async function send(verdict) {
  state.sending = true;
  store(unsent(), verdict);
  for (;;) {
    try {
      await ask("api/verdicts", verdict);
      break;
    } catch (error) {
      if (error.told) {
        store(unsent(), null);
        state.sending = false;
        notice(`Not saved: ${error.message}`);
        return error.message;
      }
      notice("Not saved yet: the server does not answer. The verdict is kept in this browser and sent again.");
      await new Promise((resolve) => setTimeout(resolve, RETRY));
    }
  }
  store(unsent(), null);
  store(draftOf(verdict), null);
  state.sending = false;
  state.start.done.add(verdict.position);
  notice("");
  if (!state.pair) return null;
  const next = following();
  if (next === null) {
    await go(verdict.position);
    notice("All pairs of this review have your verdict. You may close this page, or look at them again.");
  } else await go(next);
  return null;
}

// Screen

function show() {
  const { pair, draft, start } = state;
  $("main").hidden = false;
  $("progress").textContent = `Pair ${pair.position + 1} of ${start.pairs} · ${start.done.size} with your verdict`;
  $("bar").value = start.done.size / start.pairs;
  $("question").textContent = pair.question;
  $("options").replaceChildren(...pair.options.map((option) => element("li", option)));
  $("sides").replaceChildren(...(isSame() ? pair.sides.slice(0, 1) : pair.sides).map(side));
  for (const id of ["relevance", "outline", "draw", "erase", "facts"]) $(id).hidden = start.blind;
  $("blink").hidden = pair.same_images;
  $("amount").textContent = draft.relevance === null ? "as judged" : draft.relevance.toFixed(1);
  if (document.activeElement !== $("reason")) $("reason").value = draft.reason;
  document.body.classList.toggle("drawing", viewer.drawing);
  $("draw").setAttribute("aria-pressed", viewer.drawing);
  $("mine").textContent = [pair.mine ? `Your verdict so far: ${verdictOf(pair.mine)}.` : "",
    pair.others ? `${pair.others} other ${pair.others === 1 ? "reviewer has" : "reviewers have"} seen this pair.` : ""].join(" ");
  if (!start.blind) $("made").replaceChildren(...facts(pair).flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

function verdictOf(mine) {
  const better = { first: "A is better", second: "B is better", neither: "neither is right" }[mine.better];
  return better ?? { accept: "accepted", reject: "rejected", unsure: "not sure" }[mine.decision];
}

function element(name, text, classes = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = classes;
  return made;
}

// The answer of a visual pair is the same on both images, so that it is shown and edited once.
function isSame() {
  const [first, second] = state.pair.sides;
  return !state.start.blind && !state.pair.same_images && first.text === second.text;
}

function side({ text, parts }, number) {
  const { pair, draft, start } = state;
  const name = ["chosen", "rejected"][number];
  const made = element("div", "", `side ${start.blind ? "" : name}`);
  const heading = element("h2", start.blind ? "AB"[number] : isSame() ? "Answer, the same on both images" : ["Chosen", "Rejected"][number]);
  made.append(heading);
  if (state.editing === name) {
    const field = element("textarea", draft[name]);
    field.setAttribute("aria-label", `${name} text`);
    field.addEventListener("input", () => {
      for (const one of isSame() ? ["chosen", "rejected"] : [name]) draft[one] = field.value;
      keep();
    });
    made.append(field);
    return made;
  }
  const words = element("p", "");
  if (draft[name] !== text && !start.blind) words.textContent = draft[name];
  else for (const [part, differs] of parts) words.append(differs && pair.same_images ? element("mark", part) : part);
  if (!start.blind) {
    const edit = element("button", draft[name] === text ? "Edit" : "Edit again");
    edit.title = `Edit (${"ew"[number]})`;
    edit.addEventListener("click", () => edited(name));
    heading.append(edit);
  }
  made.append(words);
  return made;
}

function edited(name) {
  state.editing = isSame() ? "chosen" : name;
  show();
  const field = document.querySelector(".side textarea");
  field?.focus();
  field?.setSelectionRange(field.value.length, field.value.length);
}

function facts(pair) {
  const amount = (value) => (value === null ? "not scored" : Number(value.toFixed(3)));
  const rows = [["Kind of pair", pair.kind.replaceAll("_", " ")], ["Rejected side by", pair.made_by ?? "not recorded"],
    ["Clinical relevance", amount(pair.relevance)], ["Weight", amount(pair.weight)]];
  if (pair.localizer) rows.push(["Lesion by", pair.localizer]);
  if (pair.agreed !== null) rows.push(["Judges agreed", pair.agreed ? "yes" : "no"]);
  for (const { round, judge, score, rationale } of pair.judgements) {
    rows.push([`${judge}, round ${round}`, `${amount(score)}${rationale ? ` · ${rationale}` : ""}`]);
  }
  if (pair.flaws.length) rows.push(["Warnings of the audit", pair.flaws.join("; ")]);
  return rows;
}

// Keys and buttons: [key, what it does, function, in a blind review, in others, has a button]

function relevance(value) {
  state.draft.relevance = Math.min(STEPS, Math.max(0, value)) / STEPS;
  keep();
  show();
}

const step = (by) => relevance(Math.round((state.draft.relevance ?? state.pair.relevance ?? 0.5) * STEPS) + by);

function swap() {
  if (!state.pair.same_images) return notice("The sides differ by their images; there is nothing to swap.");
  [state.draft.chosen, state.draft.rejected] = [state.draft.rejected, state.draft.chosen];
  keep();
  return show();
}

function slide(id, by) {
  $(id).value = Number($(id).value) + by;
  windowed();
}

function windowed() {
  viewer.window(Number($("width").value), Number($("level").value));
}

function fit() {
  [$("width").value, $("level").value] = [255, 127.5];
  windowed();
  viewer.fit();
}

function drawing() {
  viewer.drawing = !viewer.drawing;
  show();
}

const both = { blind: true, open: true };
const KEYS = [
  { key: "a", title: "Accept", act: () => give("accept"), open: true, button: true },
  { key: "r", title: "Reject", act: () => give("reject"), open: true, button: true },
  { key: "1", title: "A is better", act: () => give("accept", "first"), blind: true, button: true },
  { key: "2", title: "B is better", act: () => give("accept", "second"), blind: true, button: true },
  { key: "n", title: "Neither is right", act: () => give("reject", "neither"), blind: true, button: true },
  { key: "u", title: "Not sure", act: () => give("unsure"), ...both, button: true },
  { key: "s", title: "Swap sides", act: swap, open: true, button: true },
  { key: "Backspace", title: "Back", act: () => go(state.pair.position - 1), ...both, button: true },
  { key: "ArrowLeft", title: "Back", act: () => go(state.pair.position - 1), ...both },
  { key: "ArrowRight", title: "Next, without a verdict", act: () => go(state.pair.position + 1), ...both, button: true },
  { key: "e", title: "Edit the chosen text (Escape ends)", act: () => edited("chosen"), open: true },
  { key: "w", title: "Edit the rejected text (Escape ends)", act: () => edited("rejected"), open: true },
  ...[..."0123456789"].map((key) => (
    { key, title: `Clinical relevance ${key / STEPS}`, act: () => relevance(Number(key)), open: true, many: "0 to 9: clinical relevance 0.0 to 0.9" })),
  { key: "t", title: "Clinical relevance 1.0", act: () => relevance(STEPS), open: true },
  { key: "ArrowUp", title: "More relevant", act: () => step(1), open: true },
  { key: "ArrowDown", title: "Less relevant", act: () => step(-1), open: true },
  { key: "c", title: "Write a reason (Enter ends)", act: () => $("reason").focus(), ...both },
  { key: "b", title: "Show both images in turn", act: () => viewer.blink(), ...both },
  { key: "o", title: "Lesion outline on and off", act: () => viewer.outline(), open: true },
  { key: "d", title: "Draw a box", act: drawing, open: true },
  { key: "Delete", title: "Delete the selected box, or all", act: () => viewer.erase(), open: true },
  { key: "+", title: "Zoom in", act: () => viewer.zoom(1 / 1.4), ...both },
  { key: "-", title: "Zoom out", act: () => viewer.zoom(1.4), ...both },
  { key: "f", title: "Whole image and whole window", act: fit, ...both },
  { key: "[", title: "Narrower window (more contrast)", act: () => slide("width", -15), ...both },
  { key: "]", title: "Wider window", act: () => slide("width", 15), ...both },
  { key: ",", title: "Lower level (brighter)", act: () => slide("level", -6), ...both },
  { key: ".", title: "Higher level (darker)", act: () => slide("level", 6), ...both },
  { key: "?", title: "These keys", act: () => $("keys").showModal(), ...both },
];

function ofMode() {
  return KEYS.filter((one) => (state.start.blind ? one.blind : one.open));
}

function leave() {
  state.editing = null;
  document.activeElement?.blur();
  show();
}

document.addEventListener("keydown", (event) => {
  if (!state.pair || document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey) return;
  const inside = event.target.matches("textarea, #reason");
  if (inside) {
    const ends = event.key === "Escape" || (event.key === "Enter" && event.target === $("reason"));
    if (ends) {
      const wanted = event.target === $("reason") && event.key === "Enter" && state.rejecting;
      event.preventDefault();
      leave();
      if (wanted) give("reject");
    }
    return;
  }
  const found = ofMode().find((one) => one.key === event.key);
  if (!found) return;
  event.preventDefault();
  act(found);
});

function act({ key, act: run }) {
  state.rejecting = key === "r";
  state.editing = null;
  run();
}

$("reason").addEventListener("input", () => { state.draft.reason = $("reason").value; keep(); });
$("less").addEventListener("click", () => step(-1));
$("more").addEventListener("click", () => step(1));
for (const id of ["width", "level"]) $(id).addEventListener("input", windowed);
$("fit").addEventListener("click", fit);
$("blink").addEventListener("click", () => viewer.blink());
$("outline").addEventListener("click", () => viewer.outline());
$("draw").addEventListener("click", drawing);
$("erase").addEventListener("click", () => viewer.erase());
$("help").addEventListener("click", () => $("keys").showModal());
$("who").addEventListener("click", async () => { await named(); await begin(); });

async function begin() {
  state.ahead.clear();
  state.pair = null;
  state.start = await ask("api/start");
  state.start.done = new Set(state.start.done);
  $("name").textContent = state.start.name + (state.start.blind ? " (blind)" : "");
  $("who").textContent = state.reviewer;
  $("verdicts").replaceChildren(...ofMode().filter((one) => one.button).map((one) => {
    const button = element("button", one.title);
    button.append(element("kbd", { Backspace: "⌫", ArrowRight: "→" }[one.key] ?? one.key));
    button.addEventListener("click", () => act(one));
    return button;
  }));
  $("list").replaceChildren(...ofMode().filter((one) => one.key === "0" || !one.many).flatMap((one) => (
    one.many ? [element("dt", "0 – 9"), element("dd", "Clinical relevance 0.0 to 0.9")] : [element("dt", one.key), element("dd", one.title)])));
  const kept = stored(unsent());
  const refused = kept && await send(kept);
  const asked = Number(location.hash.slice(1));
  const first = [...Array(state.start.pairs).keys()].find((position) => !state.start.done.has(position)) ?? 0;
  await go(location.hash && asked >= 0 && asked < state.start.pairs ? asked : first);
  if (refused) notice(`An earlier verdict of yours was not saved: ${refused}`);
}

async function main() {
  try {
    state.reviewer = stored("reviewer") ?? "";
    await ask("api/start"); // asks for the password first
    if (!state.reviewer) await named();
    await begin();
  } catch (error) {
    notice(error.told ? error.message : "The server does not answer. Start it again, and load this page again.");
  }
}

main();
