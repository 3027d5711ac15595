"use strict";

/* The page around the model: reads what stands in it, draws tokens and shows them as they come. */

const PAUSE_AFTER = 12;  // milliseconds of work before the browser may draw
const byId = (id) => document.getElementById(id);
const described = JSON.parse(byId("model").textContent);
const vocabulary = TOKENIZERS[described.tokenizer.kind](described.tokenizer);

const session = { model: null, state: null, unread: [], output: null, running: false, stopping: false };

/** Let the browser handle what is waiting. */
function pause() {
  return new Promise((done) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = done;
    channel.port2.postMessage(0);
  });
}

function tell(text, wrong = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("wrong", wrong);
}

async function load() {
  const tensors = {}, elements = document.querySelectorAll("script[data-tensor]");
  for (const [number, element] of [...elements].entries()) {
    const tensor = described.tensors[number];
    tensors[tensor.name] = readTensor(tensor, element.textContent.trim());
    element.remove();
    tell(`Reading weights, ${number + 1} of ${described.tensors.length}`);
    await pause();
  }
  session.model = new Model(described.model, tensors);
  tell("Ready");
  show();
}

/** The tokens that follow ids greedily: what the tests compare. */
function greedy(ids, length) {
  const { model } = session, state = model.start(), found = [];
  let logits;
  for (const id of ids) logits = model.read(id, state);
  while (found.length < length) {
    logits = logits.subarray(0, vocabulary.size);
    found.push(logits.indexOf(logits.reduce((a, b) => Math.max(a, b))));
    logits = model.read(found.at(-1), state);
  }
  return found;
}

/** The settings as numbers. Throws a RangeError with a sentence for one out of range. */
function settings() {
  const found = {};
  for (const input of document.querySelectorAll("#settings input")) {
    const value = input.value.trim() === "" ? NaN : Number(input.value);
    const low = Number(input.min), high = input.max === "" ? Infinity : Number(input.max);
    const whole = input.step !== "1" || Number.isInteger(value);
    if (!(value >= low && value <= high && whole)) {
      const range = high === Infinity ? `at least ${low}` : `between ${low} and ${high}`;
      throw new RangeError(`${input.labels[0].dataset.name} must be ${whole ? "" : "a whole number "}${range}.`);
    }
    found[input.name] = value;
  }
  return found;
}

function show() {
  byId("write").disabled = session.model === null || session.running;
  byId("more").disabled = session.state === null || session.running;
  byId("stop").disabled = !session.running;
}

/** Continue the prompt, or with `on` the text that stands there, token by token. */
async function write(on) {
  if (session.model === null || session.running) return;
  const text = byId("prompt").value || "\n";
  let options, ids = [];
  try {
    options = settings();
    if (!on) ids = vocabulary.encode(text);
    if (!on && ids.length === 0) throw new RangeError("The prompt has no token.");
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    tell(error.message, true);
    return;
  }
  const { model } = session, output = byId("output");
  if (!on) {
    Object.assign(session, { state: model.start(), unread: ids, output: vocabulary.stream() });
    const given = document.createElement("span");
    given.className = "given";
    given.textContent = text;
    output.replaceChildren(given, document.createTextNode(""));
  }
  Object.assign(session, { running: true, stopping: false });
  show();
  let count = 0, since = performance.now(), began = since, reading = 0;
  const rate = () => count / Math.max((performance.now() - began) / 1000, 1e-3);
  try {
    while (count < options.length && !session.stopping) {
      let logits;
      while (session.unread.length) {
        logits = model.read(session.unread.shift(), session.state);
        if (session.unread.length && performance.now() - since > PAUSE_AFTER) {
          if (count === 0) tell(`Reading the prompt, ${++reading} of ${reading + session.unread.length} tokens`);
          await pause();
          since = performance.now();
        }
      }
      if (count === 0) began = performance.now();
      const token = drawn(filtered(logits.subarray(0, vocabulary.size), options));
      session.unread.push(token);
      count++;
      output.lastChild.appendData(session.output.push(token));
      if (performance.now() - since > PAUSE_AFTER) {
        tell(`${count} tokens, ${rate().toFixed(0)} tokens per second`);
        if (count % 4 === 0) output.scrollTop = output.scrollHeight;
        await pause();
        since = performance.now();
      }
    }
  } finally {
    session.running = false;
    output.scrollTop = output.scrollHeight;
    tell(`${session.stopping ? "Stopped after " : ""}${count} tokens, ${rate().toFixed(0)} tokens per second`);
    show();
  }
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  write(false);
});
byId("more").addEventListener("click", () => write(true));
byId("stop").addEventListener("click", () => { session.stopping = true; });
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") session.stopping = true;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) write(false);
});
load().catch((error) => tell(`The weights in this page cannot be read: ${error.message}`, true));
