"use strict";
// Keys on a row's page, and a cut that shows its counts while it moves; all works without this, by buttons.
const form = document.getElementById("mark");
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
  const value = { g: "good", b: "bad", u: "unsure" }[event.key];
  const link = { j: "a[rel=next]", k: "a[rel=prev]", n: "#draw" }[event.key];
  const target = value && form ? form.querySelector(`button[value=${value}]`) : link && document.querySelector(link);
  if (target) { event.preventDefault(); target.click(); }
});
const cut = document.getElementById("cut");
if (cut) {
  let latest = 0;
  cut.addEventListener("input", async () => {
    const mine = ++latest;
    const answer = await fetch("/cut?" + new URLSearchParams(new FormData(cut)));
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (mine === latest) document.getElementById("counts").replaceWith(page.getElementById("counts"));
  });
}
