// Filters, sorting and theme of the report. The state stands in the address after '#', so that a
// view can be sent to somebody: #task=video&method=daq,paper&sort=results:5:descending&theme=dark
"use strict";

const state = new URLSearchParams(location.hash.slice(1));
const chosen = (name) => (state.get(name) || "").split(",").filter(Boolean).map(decodeURIComponent);

function save() {
  history.replaceState(null, "", "#" + state.toString());
}

function choose(name, values) {
  if (values.length) state.set(name, values.map(encodeURIComponent).join(","));
  else state.delete(name);
  save();
  filter();
}

// Show what matches every filter; a filter with nothing chosen matches all.
function filter() {
  const wanted = { task: chosen("task"), method: chosen("method") };
  for (const chip of document.querySelectorAll(".chip")) {
    chip.setAttribute("aria-pressed", wanted[chip.dataset.filter].includes(chip.dataset.value));
  }
  for (const element of document.querySelectorAll("[data-task]")) {
    element.hidden = Object.entries(wanted).some(
      ([name, values]) =>
        values.length && name in element.dataset && !values.includes(element.dataset[name]));
  }
  const rows = [...document.querySelectorAll("#results tbody tr")];
  const shown = rows.filter((row) => !row.hidden).length;
  document.getElementById("count").textContent = `${shown} of ${rows.length} cells shown`;
}

// Numbers by value, words by alphabet, empty cells last in either direction.
function sort(table, column, direction) {
  const key = (row) => row.cells[column].dataset.value;
  const sign = direction === "descending" ? -1 : 1;
  const numeric = table.tHead.rows[0].cells[column].classList.contains("number");
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * (numeric ? Number(x) - Number(y) : x.localeCompare(y));
  });
  table.tBodies[0].append(...rows);
  for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
  table.tHead.rows[0].cells[column].setAttribute("aria-sort", direction);
}

for (const chip of document.querySelectorAll(".chip")) {
  chip.addEventListener("click", () => {
    const { filter: name, value } = chip.dataset;
    const values = chosen(name);
    choose(name, values.includes(value) ? values.filter((v) => v !== value) : [...values, value]);
  });
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") === "ascending";
      const direction = ascending ? "descending" : "ascending";
      sort(table, column, direction);
      state.set("sort", `${table.id}:${column}:${direction}`);
      save();
    });
  });
}

function theme(name) {
  if (name) document.documentElement.dataset.theme = name;
}

document.getElementById("theme").addEventListener("click", () => {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const next = (state.get("theme") || system) === "dark" ? "light" : "dark";
  state.set("theme", next);
  save();
  theme(next);
});

theme(state.get("theme"));
const [id, column, direction] = (state.get("sort") || "").split(":");
const sorted = document.getElementById(id);
if (sorted && sorted.matches("table.sortable") && sorted.tHead.rows[0].cells[column]) {
  sort(sorted, Number(column), direction);
}
filter();
