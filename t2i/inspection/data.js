"use strict";
// Fills in the images of the page. Every text becomes a text node: nothing of the data set is read as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const PER_PAGE = 60;
const state = { kind: "", text: "", page: 0 };

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function card(entry) {
  const made = element("div", "image");
  if (entry.picture) {
    const image = element("img");
    image.src = entry.picture;
    image.alt = "";
    made.append(image);
  } else {
    made.append(element("div", "none", entry.size ? "not shown" : "no image"));
  }
  const about = element("div");
  about.append(element("b", "", entry.name), " ", element("span", "badge", entry.side === "train" ? "trained on" : entry.side));
  const facts = [];
  if (entry.size) facts.push(`${entry.size[0]} × ${entry.size[1]}`);
  if (entry.format) facts.push(entry.format);
  if (entry.scale > 1) facts.push(`enlarged ${entry.scale} times`);
  if (facts.length) about.append(element("p", "quiet", facts.join(" · ")));
  if (entry.reason) about.append(element("p", "warns", entry.reason));
  (entry.captions || []).forEach((caption, i) => {
    const tokens = entry.tokens[i], long = data.limit !== null && tokens > data.limit;
    const shown = element("p", "caption", caption + " ");
    if (tokens) shown.append(element("span", long ? "warns" : "quiet", long ? `${tokens} tokens, cut off at ${data.limit}` : `${tokens} tokens`));
    about.append(shown);
  });
  made.append(about);
  return made;
}

for (const name of ["leaks", "duplicates", "near"]) {
  const section = document.getElementById(name), box = section.querySelector(".groups");
  for (const group of data[name].groups) {
    const made = element("div", "group");
    made.append(...group.places.map(place => card(data.entries[place])));
    if (group.more) made.append(element("p", "quiet", `and ${group.more} more`));
    box.append(made);
  }
  if (data[name].more) box.append(element("p", "quiet", `and ${data[name].more} more groups`));
  section.hidden = !data[name].groups.length;
}

function matches(entry) {
  if (state.kind && !entry.kinds.includes(state.kind)) return false;
  const text = state.text.toLowerCase();
  return !text || entry.name.toLowerCase().includes(text) || (entry.captions || []).some(caption => caption.toLowerCase().includes(text));
}

function show() {
  const found = data.entries.filter(matches), pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
  state.page = Math.min(Math.max(state.page, 0), pages - 1);
  const first = state.page * PER_PAGE, shown = found.slice(first, first + PER_PAGE);
  document.getElementById("images").replaceChildren(...shown.map(card));
  document.getElementById("place").textContent = found.length ? `${first + 1} to ${first + shown.length} of ${found.length}` : "none";
  document.getElementById("before").disabled = state.page === 0;
  document.getElementById("next").disabled = state.page === pages - 1;
}

for (const button of document.querySelectorAll("#kinds button")) {
  button.addEventListener("click", () => {
    for (const other of document.querySelectorAll("#kinds button")) other.setAttribute("aria-pressed", String(other === button));
    Object.assign(state, { kind: button.dataset.kind, page: 0 });
    show();
  });
}
document.getElementById("search").addEventListener("input", event => {
  Object.assign(state, { text: event.target.value, page: 0 });
  show();
});
function turn(step) {
  state.page += step;
  show();
  document.getElementById("kinds").scrollIntoView();
}
document.getElementById("before").addEventListener("click", () => turn(-1));
document.getElementById("next").addEventListener("click", () => turn(1));
show();
