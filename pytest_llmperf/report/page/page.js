"use strict";

// Sorting: column headings are buttons; the sort is stable.

const table = document.getElementById("table");

function sortKey(row, heading) {
  const column = heading.dataset.column;
  return column ? (JSON.parse(row.dataset.order)[column] ?? -Infinity) : row.cells[heading.cellIndex].textContent;
}

function compare(left, right) {
  return typeof left === "string" ? left.localeCompare(right, undefined, { numeric: true }) : left - right || 0;
}

function sortBy(heading) {
  const falling = heading.ariaSort === "ascending";
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row) => [sortKey(row, heading), row]);
  keyed.sort(([left], [right]) => (falling ? compare(right, left) : compare(left, right)));
  body.append(...keyed.map(([, row]) => row));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.ariaSort = falling ? "descending" : "ascending";
}

function makeSortable() {
  for (const heading of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sortBy(heading));
    heading.append(button);
  }
}

// Filtering: by words (a row must contain all), by outcome, and by whether the cell gates.

function filter() {
  const words = document.getElementById("words").value.toLowerCase().split(/\s+/);
  const outcomes = [...document.querySelectorAll("#outcomes :checked")].map((box) => box.value);
  const gating = document.getElementById("gating").checked;
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    row.hidden =
      (gating && !("gates" in row.dataset)) ||
      (outcomes.length > 0 && !outcomes.includes(row.dataset.outcome)) ||
      !words.every((word) => text.includes(word));
    shown += !row.hidden;
  }
  document.getElementById("shown").textContent = `${shown} of ${table.tBodies[0].rows.length} cells`;
}

function makeFilterable() {
  const form = document.getElementById("filters");
  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
}

// Following a link to a test opens its details.

function openTarget() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
  }
}

// Charts: draw each when it first becomes visible, and again when the colour scheme changes.

const charts = JSON.parse(document.getElementById("charts").textContent);
const drawn = new Set();
let plotly;

function loadPlotly() {
  plotly ??= (async () => {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (char) => char.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  })();
  return plotly;
}

// Escape untrusted names, since plotly interprets some HTML in texts.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

const roleColor = (role, index) => color({ now: "now", baseline: "past", level: "level" }[role] ?? `other-${index % 6}`);

const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "cross"];

function bands(trace, shade) {
  if (trace.low.length === 0) return [];
  const edge = { x: trace.x, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
  return [{ ...edge, y: trace.low }, { ...edge, y: trace.high, fill: "tonexty", fillcolor: `${shade}33` }];
}

function drawing(trace, index) {
  const shade = roleColor(trace.role, index);
  const name = plain(trace.name);
  const common = { name, x: trace.x, y: trace.y, text: trace.labels.map(plain) };
  const dashed = trace.role === "other" ? DASHES[index % DASHES.length] : trace.role === "baseline" ? "dash" : "solid";
  const line = { color: shade, width: 1.5, dash: dashed };
  const marker = { color: shade, size: 7, symbol: trace.role === "other" ? SYMBOLS[index % SYMBOLS.length] : "circle" };
  switch (trace.form) {
    case "line":
      return [...bands(trace, shade), { ...common, mode: "lines", line, showlegend: trace.role !== "level" }];
    case "points":
      return [{ ...common, mode: "markers", marker: { ...marker, symbol: trace.role === "now" ? "diamond" : "circle" } }];
    case "path":
      return [{ ...common, mode: `lines+markers${trace.labels.length ? "+text" : ""}`, textposition: "top center", cliponaxis: false, line, marker }];
    case "bars":
      return [{ ...common, type: "bar", marker: { color: shade } }];
    case "box":
      return [{ name, y: trace.y, type: "box", boxpoints: "all", jitter: 0.4, pointpos: 0, line: { color: shade, width: 1 },
        marker: { color: shade, size: 4, opacity: 0.6 }, fillcolor: "transparent", showlegend: false }];
  }
}

function layout(chart) {
  const axis = { gridcolor: color("faint"), linecolor: color("faint"), zeroline: false, automargin: true };
  const ticks = chart.ticks && { tickvals: Object.values(chart.ticks), ticktext: Object.keys(chart.ticks).map(plain) };
  return {
    autosize: true,
    margin: { l: 8, r: 8, t: 8, b: 8 },
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: color("soft") },
    hoverlabel: { bgcolor: color("wash"), font: { color: color("ink") }, namelength: -1 },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    barmode: "group",
    xaxis: { ...axis, ...ticks, categoryorder: "array", categoryarray: chart.categories, title: { text: plain(chart.x) }, type: chart.log_x ? "log" : undefined, showgrid: false },
    yaxis: { ...axis, title: { text: plain(chart.y) }, rangemode: chart.from_zero ? "tozero" : "normal" },
    shapes: chart.marks.map((mark) => ({ type: "line", x0: mark.x, x1: mark.x, y0: 0, y1: 1, yref: "paper",
      line: { color: color(mark.accepted ? "accepted" : "level"), width: 1, dash: mark.accepted ? "dot" : "solid" } })),
    annotations: chart.marks.map((mark) => ({ x: mark.x, y: 1, yref: "paper", xanchor: "left", yanchor: "top", showarrow: false,
      text: plain(mark.label), textangle: 90, font: { size: 10, color: color(mark.accepted ? "accepted" : "level") } })),
  };
}

function chartOf(figure) {
  const select = figure.querySelector("select");
  return charts[select ? select.value : figure.dataset.charts];
}

async function draw(figure) {
  await loadPlotly();
  const chart = chartOf(figure);
  figure.querySelector(".summary").textContent = chart.summary;
  const place = figure.querySelector(".drawing");
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", `${chart.title}: ${chart.summary}`);
  await Plotly.react(place, chart.traces.flatMap(drawing), layout(chart), { responsive: true, displayModeBar: false });
}

function addSelect(figure, numbers) {
  const select = document.createElement("select");
  select.ariaLabel = "metric";
  select.append(...numbers.map((number) => new Option(charts[number].title.replace(/^[^:]*: /, ""), number)));
  select.addEventListener("change", () => draw(figure));
  figure.querySelector("figcaption").append(select);
}

function prepare(figure, observer) {
  const numbers = figure.dataset.charts.split(" ");
  if (numbers.length > 1) addSelect(figure, numbers);
  const place = document.createElement("div");
  place.className = "drawing";
  figure.querySelector("figcaption").after(place);
  observer.observe(figure);
}

function preparePictures() {
  const observer = new IntersectionObserver((entries) => {
    for (const { target } of entries.filter((entry) => entry.isIntersecting && !drawn.has(entry.target))) {
      drawn.add(target);
      draw(target);
    }
  });
  for (const figure of document.querySelectorAll("figure[data-charts]")) prepare(figure, observer);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(draw));
}

if (table) {
  makeSortable();
  makeFilterable();
}
preparePictures();
openTarget();
addEventListener("hashchange", openTarget);
