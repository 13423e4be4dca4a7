"use strict";
// The chat page. A turn is one message and the answer of each model that was asked; the conversation that a model is
// given is the messages with its own side's answers. Text is put in as text while it streams; only the finished
// answer, which the server has sanitised, is put in as HTML.
const byId = (id) => document.getElementById(id);
const transcript = byId("transcript"), message = byId("message"), statusLine = byId("status");
let turns = [];     // [{text, answers: [string, string]}]
let running = [];   // an AbortController for each answer under way

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// What a side is told: earlier turns that have an answer (the other side's where this one was not asked), and the new one.
function history(side, text) {
  const said = turns.flatMap((turn) => {
    const answer = turn.answers[side] ?? turn.answers[1 - side];
    return answer ? [{ role: "user", content: turn.text }, { role: "assistant", content: answer }] : [];
  });
  return [...said, { role: "user", content: text }];
}

function requestFor(side, text) {
  const option = byId(`model-${side}`).selectedOptions[0];
  const format = byId("format").value;
  const plain = format === "plain" || (format === "auto" && option.dataset.plain === "1");
  const seed = byId("seed").value;
  const body = {
    model: option.value, stream: true, stream_options: { include_usage: true },
    temperature: Number(byId("temperature").value), max_tokens: Number(byId("max-tokens").value),
    ...(seed === "" ? {} : { seed: Number(seed) }),
    ...(plain ? { prompt: text } : { messages: history(side, text), truncation: "auto" }),
  };
  return { url: plain ? "/v1/completions" : "/v1/chat/completions", body, plain, context: option.dataset.context };
}

async function post(url, body, signal) {
  const response = await fetch(url, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
  });
  if (!response.ok) {
    const found = await response.json().catch(() => ({}));
    throw new Error(found.error?.message ?? `the server answered ${response.status}`);
  }
  return response;
}

// The data of server-sent events, parsed, as they arrive.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

// Follow the answer down, unless the reader has scrolled up to read.
function following(change) {
  const near = transcript.scrollHeight - transcript.scrollTop - transcript.clientHeight < 60;
  change();
  if (near) transcript.scrollTop = transcript.scrollHeight;
}

async function answer(side, turn, box, abort) {
  const asked = requestFor(side, turn.text);
  const text = box.querySelector(".text"), note = box.querySelector(".note");
  const streamed = text.appendChild(document.createTextNode(""));
  const notes = [];
  let whole = "", reason = "", count = 0, failed = false;
  try {
    for await (const chunk of events(await post(asked.url, asked.body, abort.signal))) {
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.left_out_messages) notes[0] = `the oldest ${chunk.left_out_messages} messages did not fit the context of ${asked.context} tokens`;
      if (chunk.usage) count = chunk.usage.completion_tokens;
      const choice = chunk.choices[0];
      if (!choice) continue;
      reason = choice.finish_reason ?? reason;
      const piece = choice.delta?.content ?? choice.text ?? "";
      if (!piece) continue;
      whole += piece;
      following(() => streamed.appendData(piece));
    }
    notes.push(`${count} tokens`);
    if (reason === "length") notes.push("cut at the limit");
    if (!whole.trim()) notes.push("an empty answer");
  } catch (error) {
    failed = error.name !== "AbortError";
    notes.push(failed ? error.message : "stopped");
  }
  if (asked.plain) notes.push("continues your text alone");
  turn.answers[side] = whole;
  const finished = asked.plain || !whole ? null : await post("/page/markdown", { text: whole }).then((r) => r.json()).catch(() => null);
  following(() => {
    if (finished) {
      text.innerHTML = finished.html;
      text.classList.remove("raw");
    }
    note.textContent = notes.filter(Boolean).join(" · ");
    note.classList.toggle("bad", failed);
    note.hidden = false;
    box.setAttribute("aria-busy", "false");
  });
}

function addTurn(text, sides) {
  byId("welcome").hidden = true;
  const place = element("article", sides.length > 1 ? "turn two" : "turn");
  place.append(element("div", "mine", text));
  const answers = element("div", "answers");
  const boxes = sides.map((side) => {
    const box = element("section", "answer");
    box.setAttribute("aria-busy", "true");
    const note = element("p", "note", "");
    note.hidden = true;
    box.append(element("h2", "", byId(`model-${side}`).value), element("div", "text raw"), note);
    answers.append(box);
    return box;
  });
  place.append(answers);
  transcript.append(place);
  transcript.scrollTop = transcript.scrollHeight;
  return boxes;
}

async function send() {
  const text = message.value.trim();
  if (!text || running.length) return;
  for (const id of ["temperature", "max-tokens", "seed"]) {
    if (byId(id).validity.valid && (id === "seed" || byId(id).value !== "")) continue;
    byId("settings").open = true;
    byId(id).focus();
    byId(id).reportValidity();
    return;
  }
  const sides = byId("both").checked ? [0, 1] : [0];
  const turn = { text, answers: [] };
  const boxes = addTurn(text, sides);
  message.value = "";
  fit();
  running = sides.map(() => new AbortController());
  busy(true);
  const asked = running;
  await Promise.all(sides.map((side, i) => answer(side, turn, boxes[i], asked[i])));
  if (running !== asked) return;   // cleared meanwhile
  turns.push(turn);
  running = [];
  busy(false);
}

function stop() { for (const each of running) each.abort(); }

function busy(yes) {
  const focused = document.activeElement;
  byId("send").hidden = yes;
  byId("stop").hidden = !yes;
  byId("clear").disabled = false;
  statusLine.textContent = yes ? "Answering" : "Answer complete";
  if (focused === byId("send") || focused === byId("stop")) message.focus();
}

function clear() {
  stop();
  turns = [];
  running = [];
  for (const turn of transcript.querySelectorAll(".turn")) turn.remove();
  byId("welcome").hidden = false;
  busy(false);
  statusLine.textContent = "Conversation cleared";
  message.focus();
}

function fit() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight}px`;
}

byId("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
byId("stop").addEventListener("click", stop);
byId("clear").addEventListener("click", clear);
byId("both").addEventListener("change", () => { byId("second").hidden = !byId("both").checked; });
message.addEventListener("input", fit);
message.addEventListener("keydown", (event) => {
  // A key that ends a composition (Chinese or Japanese input) chooses a word and sends nothing.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (running.length) stop(); else byId("settings").open = false;
});
document.addEventListener("click", (event) => {
  if (!byId("settings").contains(event.target)) byId("settings").open = false;
});
fit();
