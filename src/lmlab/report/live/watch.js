"use strict";
// Draws what /data says, and asks again every two seconds. Every text from files is set as text, never as markup.
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 460, HEIGHT = 190, LEFT = 48, RIGHT = 10, TOP = 12, BOTTOM = 22;

function element(parent, name, attributes, text) {
  const made = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return (value / 1e6).toPrecision(3) + "M";
  if (size >= 1e4) return Math.round(value).toLocaleString("en");
  if (size !== 0 && size < 1e-3) return value.toExponential(1);
  return String(Number(value.toPrecision(4)));
}

function clock(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const s = Math.round(seconds), h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60;
  return h ? `${h} h ${m} min` : m ? `${m} min ${s % 60} s` : `${s} s`;
}

// The first steps of a loss lie far above the rest: a scale that is cut at a high quantile keeps the rest readable.
function bounds(curve) {
  const sorted = [...curve.high].sort((a, b) => a - b);
  let low = Math.min(...curve.low), high = sorted[sorted.length - 1];
  const usual = sorted[Math.floor(0.97 * (sorted.length - 1))];
  if (sorted.length > 20 && high - low > 1.8 * (usual - low)) high = usual + 0.25 * (usual - low);
  if (high === low) { high += Math.abs(high) * 0.05 || 1; low -= Math.abs(low) * 0.05 || 1; }
  return [low, high];
}

function plot(parent, curve, spikes) {
  const figure = element(parent, "figure"), caption = element(figure, "figcaption");
  element(caption, "span", {}, curve.title + (curve.unit ? ` (${curve.unit})` : ""));
  const readout = element(caption, "small", {}, short(curve.value[curve.value.length - 1]));
  const svg = element(figure, "svg:svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": curve.title });
  const [low, high] = bounds(curve), first = curve.step[0], last = Math.max(curve.step[curve.step.length - 1], first + 1);
  const x = step => LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / (last - first);
  const y = value => TOP + (HEIGHT - TOP - BOTTOM) * (high - Math.min(high, Math.max(low, value))) / (high - low);
  for (const share of [0, 0.5, 1]) {
    element(svg, "svg:text", { x: LEFT - 6, y: y(low + share * (high - low)) + 3, "text-anchor": "end" }, short(Number((low + share * (high - low)).toPrecision(3))));
    const step = Math.round(first + share * (last - first));
    element(svg, "svg:text", { x: x(step), y: HEIGHT - 6, "text-anchor": ["start", "middle", "end"][share * 2] }, step.toLocaleString("en"));
  }
  for (const step of spikes) if (step >= first && step <= last)
    element(svg, "svg:line", { class: "spike", x1: x(step), x2: x(step), y1: TOP, y2: HEIGHT - BOTTOM });
  const points = values => curve.step.map((step, i) => `${x(step).toFixed(1)},${y(values[i]).toFixed(1)}`);
  element(svg, "svg:polygon", { class: "band", points: [...points(curve.low), ...points(curve.high).reverse()].join(" ") });
  element(svg, "svg:polyline", { class: "line", points: points(curve.value).join(" ") });
  const here = element(svg, "svg:line", { class: "here", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    const wanted = first + (last - first) * ((event.clientX - box.left) / box.width * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT);
    let best = 0;
    curve.step.forEach((step, i) => { if (Math.abs(step - wanted) < Math.abs(curve.step[best] - wanted)) best = i; });
    here.setAttribute("x1", x(curve.step[best]));
    here.setAttribute("x2", x(curve.step[best]));
    here.setAttribute("visibility", "visible");
    readout.textContent = `step ${curve.step[best].toLocaleString("en")}: ${short(curve.value[best])}`;
  });
  svg.addEventListener("pointerleave", () => {
    here.setAttribute("visibility", "hidden");
    readout.textContent = short(curve.value[curve.value.length - 1]);
  });
}

function fact(parent, label, value) {
  if (value === "" || value === null) return;
  const line = element(parent, "span", {}, label + " ");
  element(line, "b", {}, value);
}

function draw(stage, parent) {
  const section = element(parent, "section");
  element(section, "h2", {}, stage.name);
  const facts = element(section, "div", { class: "live" });
  fact(facts, "", stage.status);
  fact(facts, "step", stage.step.toLocaleString("en") + (stage.steps ? ` of ${stage.steps.toLocaleString("en")}` : ""));
  fact(facts, "time", clock(stage.seconds));
  fact(facts, "left", clock(stage.left));
  fact(facts, "spikes", stage.spikes.length ? String(stage.spikes.length) : "");
  if (stage.steps) {
    const bar = element(section, "div", { class: "bar" });
    element(bar, "span").style.width = `${100 * Math.min(1, stage.step / stage.steps)}%`;
  }
  const grid = element(section, "div", { class: "grid" });
  for (const curve of stage.curves) plot(grid, curve, stage.spikes);
  for (const done of stage.interventions)
    element(section, "p", { class: "small" }, `Step ${done.step}: ${done.reason}; ${done.policy} from step ${done.from}` +
      (done.batches ? `, batches ${done.batches[0]} to ${done.batches[1]} left out` : ""));
  if (stage.samples.length) {
    element(section, "h3", {}, "What the model writes");
    for (const sample of [...stage.samples].sort((a, b) => (b.step ?? Infinity) - (a.step ?? Infinity) || 0)) {
      const box = element(section, "div", { class: "sample" });
      element(box, "h4", {}, sample.step === undefined ? "after training" : `step ${sample.step}`);
      const text = element(box, "pre");
      if (sample.prompt) element(text, "b", {}, sample.prompt + (sample.text ? "" : "\n"));
      text.append(sample.text ?? sample.after ?? sample.output ?? "");
    }
  }
}

let shown = "";
function show(data) {
  document.getElementById("run").textContent = data.run;
  document.title = `${data.run}: lmlab watch`;
  const text = JSON.stringify(data.stages);
  if (text === shown) return;
  shown = text;
  const stages = document.getElementById("stages"), top = window.scrollY;
  stages.replaceChildren();
  if (!data.stages.length) element(stages, "p", { class: "empty" }, "No stage has logged two steps yet.");
  for (const stage of [...data.stages].reverse()) draw(stage, stages);
  window.scrollTo(0, top);
}

const state = document.getElementById("state");
async function follow() {
  try {
    const answer = await fetch("data", { cache: "no-store" });
    if (!answer.ok) throw new Error((await answer.text()).slice(0, 300));
    const data = await answer.json();
    show(data);
    state.textContent = `as of ${new Date(data.now * 1000).toLocaleTimeString("en-GB")}`;
    state.className = "byline";
  } catch (error) {
    state.textContent = `Not answering (${error.message}); what is shown is the last that was heard.`;
    state.className = "byline stale";
  }
  setTimeout(follow, 2000);
}

const given = document.getElementById("data").textContent;
if (given.trim() === "null") follow();
else {
  const data = JSON.parse(given);
  show(data);
  state.textContent = `as of ${new Date(data.now * 1000).toLocaleString("en-GB")}`;
}
