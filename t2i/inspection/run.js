"use strict";
// A page that renews itself stays where it was: the place on the page, and what is unfolded.
const KEY = `t2i show ${location.pathname}`;
const folds = () => [...document.querySelectorAll("details[id]")];
const panes = () => [...document.querySelectorAll(".over-time")];
try {
  const before = JSON.parse(sessionStorage.getItem(KEY) || "null");
  if (before) {
    for (const fold of folds()) if (fold.id in before.open) fold.open = before.open[fold.id];
    panes().forEach((pane, i) => pane.scrollTo(...(before.panes[i] || [0, 0])));
    window.scrollTo(before.x, before.y);
  }
  window.addEventListener("pagehide", () => {
    const open = Object.fromEntries(folds().map(fold => [fold.id, fold.open]));
    const places = panes().map(pane => [pane.scrollLeft, pane.scrollTop]);
    sessionStorage.setItem(KEY, JSON.stringify({ x: scrollX, y: scrollY, open, panes: places }));
  });
} catch {
  // Where nothing may be stored, the browser's own memory has to do.
}
