"use strict";
const byId = id => document.getElementById(id);
const KEYS = {ArrowLeft: "left", ArrowRight: "right", ArrowDown: "equal"};
const TINY = 128;  // pixels: only smaller images are enlarged without smoothing
const loaded = new Map();  // name of an image -> the image that was loaded ahead
let judge = sessionStorage.getItem("judge") || "";
let current = null;  // the pair that is shown
let busy = false;
let retry = () => {};

async function ask(what, request = {}) {
  const response = await fetch(what, {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({judge, ...request})});
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function preload(name) {
  if (!loaded.has(name)) {
    const image = new Image();
    image.src = `images/${name}`;
    loaded.set(name, image);
  }
  return loaded.get(name).decode();
}

function only(id) {
  for (const part of ["start", "vote", "done"]) byId(part).hidden = part !== id;
}

async function show(state) {
  byId("problem").hidden = true;
  if (!state.judge) {
    only("start");
    byId("name").focus();
    return;
  }
  judge = state.judge;
  sessionStorage.setItem("judge", judge);
  byId("judge").textContent = judge;
  byId("count").textContent = `${state.done} of ${state.total}`;
  byId("progress").value = state.done / Math.max(state.total, 1);
  byId("total").textContent = `You have judged ${state.done} pairs.`;
  for (const button of document.querySelectorAll("[data-action=undo]")) button.disabled = state.done === 0;
  current = null;
  if (!state.pairs.length) return only("done");
  only("vote");
  const [pair, ...next] = state.pairs;
  byId("vote").classList.add("loading");
  byId("prompt").textContent = pair.prompt;
  await Promise.all([preload(pair.left), preload(pair.right)]);
  for (const side of ["left", "right"]) {
    const image = byId(side), ahead = loaded.get(pair[side]);
    image.src = ahead.src;
    image.classList.toggle("tiny", Math.max(ahead.naturalWidth, ahead.naturalHeight) <= TINY);
    await image.decode();
  }
  byId("vote").classList.remove("loading", "left", "right", "equal");
  current = pair;
  for (const {left, right} of next) for (const name of [left, right]) preload(name).catch(() => {});
}

async function attempt(action) {
  if (busy) return;
  busy = true;
  retry = () => attempt(action);
  try {
    await show(await action());
  } catch (error) {
    byId("message").textContent = error instanceof TypeError
      ? "t2i judge does not answer. Is it still running? Your votes so far are saved." : error.message;
    byId("problem").hidden = false;
    byId("vote").classList.remove("left", "right", "equal");
  } finally {
    busy = false;
    document.body.dataset.shown = current ? current.id : "";
  }
}

function vote(choice) {
  if (!current || busy) return;
  const {id} = current;
  byId("vote").classList.add(choice);
  attempt(() => ask("vote", {id, choice}));
}

const ACTIONS = {
  undo: () => attempt(() => ask("undo")),
  retry: () => retry(),
  leave: () => {
    sessionStorage.removeItem("judge");
    judge = "";
    byId("name").value = "";
    show({judge: ""});
  },
};

byId("start").addEventListener("submit", event => {
  event.preventDefault();
  judge = byId("name").value.trim();
  attempt(() => ask("state"));
});
document.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (button?.dataset.choice) vote(button.dataset.choice);
  if (button?.dataset.action) ACTIONS[button.dataset.action]();
  if (button) button.blur();  // so that the keys go on to mean votes
});
document.addEventListener("keydown", event => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || !byId("start").hidden) return;
  if (event.key in KEYS && !byId("vote").hidden) {
    event.preventDefault();
    vote(KEYS[event.key]);
  }
  if (event.key === "Backspace") ACTIONS.undo();
});
attempt(() => ask("state"));
