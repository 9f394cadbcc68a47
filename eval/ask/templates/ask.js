"use strict";
// Everything that a model, a prompt or a file wrote gets onto the page as text alone (textContent, text nodes); the server's
// Content-Security-Policy refuses the rest.

const byId = (id) => document.getElementById(id);
const SIDES = ["base", "variant"];
let about = null;
let numAsked = 0;

/** An element with a class, text and children. */
function make(tag, className, text, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  element.append(...children);
  return element;
}

// Control characters, and those that turn the direction of what follows: shown as what they are.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069\ufeff]/g;
const visible = (text) => text.replace(UNSEEN, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);

const say = (text) => { byId("status").textContent = text; };
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const expertWords = ([layer, expert]) => `layer ${layer} expert ${expert}`;
const DID = { suppress: "suppressed", stimulate: "stimulated" };

/** What a marked token means, in one sentence. */
function markWords(side, positions) {
  const chosen = positions.map((position) => `${expertWords(about.experts[position])} (${DID[about.experts[position][2]]})`);
  return `Here the base ${side === "variant" ? "would have chosen" : "chose"} ${chosen.join(", ")}`;
}

/** Pieces of text into an element, marks as a group that is one stop of the Tab key: arrows go from one to the next. */
function showPieces(box, side, pieces) {
  const marks = [];
  const detail = make("p", "detail");
  const parts = pieces.map(([text, positions], number) => {
    if (!positions.length) return document.createTextNode(visible(text));
    const mark = make("mark", "", visible(text).replaceAll("\n", "\u21b5\n"));
    const words = markWords(side, positions);
    mark.title = words;
    mark.tabIndex = marks.length ? -1 : 0;
    mark.setAttribute("aria-description", words);
    mark.addEventListener("focus", () => {
      for (const one of marks) one.tabIndex = one === mark ? 0 : -1;
      detail.textContent = `Token ${number + 1}, \u201c${visible(text).replaceAll("\n", "\u21b5")}\u201d: ${words}.`;
    });
    mark.addEventListener("click", () => mark.focus());
    mark.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const next = step && marks[marks.indexOf(mark) + step];
      if (!next) return;
      event.preventDefault();
      next.focus();
    });
    marks.push(mark);
    return mark;
  });
  box.replaceChildren(...parts);
  box.after(detail);
  return marks.length;
}

/** How many tokens are marked, and by which experts how often. */
function countWords({ num_marked, num_tokens, counts }) {
  const named = counts.map(([position, count]) => `${expertWords(about.experts[position])} \u00d7${count}`).join(", ");
  return `${num_marked} of ${plural(num_tokens, "token")} marked${named ? `: ${named}` : ""}`;
}

/** One question on the page, with what becomes of it. */
class Question {
  constructor(asked) {
    numAsked += 1;
    this.asked = asked;
    this.name = `Question ${numAsked}`;
    this.number = null;
    this.abort = new AbortController();
    this.ended = false;
    this.stopButton = make("button", "", "Stop");
    this.stopButton.type = "button";
    this.stopButton.setAttribute("aria-label", `Stop ${this.name.toLowerCase()}`);
    this.stopButton.addEventListener("click", () => this.stop());
    const drawn = asked.temperature > 0 ? `temperature ${asked.temperature}, seed ${asked.seed}` : "the likeliest tokens";
    const how = `at most ${plural(asked.max_tokens, "token")}, ${drawn}`;
    this.prompt = make("div", "prompt", visible(asked.prompt));
    this.prompt.dir = "auto";
    this.note = make("p", "note");
    this.note.hidden = true;
    this.sides = Object.fromEntries(SIDES.map((side) => [side, this.makeSide(side)]));
    const title = make("h2", "", this.name);
    title.id = `question-${numAsked}`;
    this.article = make("article", "question", "",
      make("header", "", "", title, make("span", "soft", how), this.stopButton), this.prompt,
      this.note, make("div", "sides", "", ...SIDES.map((side) => this.sides[side].section)));
    this.article.setAttribute("aria-labelledby", title.id);
    byId("questions").prepend(this.article);
  }

  makeSide(side) {
    const answer = make("div", "answer");
    answer.dir = "auto";
    answer.setAttribute("aria-busy", "true");
    const label = make("span", "");
    const how = new Map(about.semantics).get(this.asked.semantics);
    const name = side === "variant" && how ? `Variant (${how})` : { base: "Base", variant: "Variant" }[side];
    const count = make("p", "count");
    const section = make("section", "side", "", make("header", "", "", make("h3", "", name), label), answer, count);
    section.setAttribute("aria-label", `${name}, ${this.name.toLowerCase()}`);
    return { section, answer, label, count, name, ending: "" };
  }

  stop() {
    if (this.number === null) {
      this.end("Stopped before it was answered.");
      this.abort.abort();
      return;
    }
    post("stop", { number: this.number }).catch(() => {});
  }

  end(sentence) {
    if (this.ended) return;
    this.ended = true;
    if (document.activeElement === this.stopButton) byId("prompt").focus();
    this.stopButton.remove();
    for (const side of SIDES) this.sides[side].answer.setAttribute("aria-busy", "false");
    say(`${this.name}: ${sentence}`);
  }

  fail(sentence) {
    this.note.textContent = visible(sentence);
    this.note.hidden = false;
    this.end(visible(sentence));
  }

  /** What comes, see eval/ask/events.py. */
  take(event) {
    const side = this.sides[event.side];
    switch (event.event) {
      case "waiting":
        say(`${this.name} waits: ${plural(event.ahead, "question")} before it, from this page or another.`);
        break;
      case "begin":
        this.number = event.number;
        say(`${this.name}: answering.`);
        break;
      case "text":
        side.answer.append(visible(event.text));
        break;
      case "end":
        this.showEnd(side, event);
        break;
      case "marks":
        if (side) side.count.textContent = `${countWords(event)}${side.ending}`;
        showPieces(side ? side.answer : this.prompt, event.side, event.pieces);
        break;
      case "unmarked":
        this.note.textContent = visible(event.why);
        this.note.hidden = false;
        break;
      case "error":
        this.fail(event.message);
        break;
      case "done":
        this.end(`${SIDES.map((one) => `${this.sides[one].name} ${this.sides[one].label.textContent}`).join("; ")}.`);
        break;
    }
  }

  showEnd(side, event) {
    const drawn = about.labels[event.label];
    side.label.textContent = drawn ? drawn.words : event.reason;
    side.label.className = drawn ? `label${drawn.pale ? " pale" : ""}` : "soft";
    if (drawn) side.label.style.backgroundColor = drawn.colour;
    side.answer.setAttribute("aria-busy", "false");
    const ends = { stopped: ", stopped", length: ", cut off at the most tokens" }[event.reason] || "";
    const count = event.num_tokens === null ? "" : plural(event.num_tokens, "token");
    side.ending = ends;
    side.count.textContent = `${count}${ends}`;
  }

  async ask() {
    try {
      const response = await post("ask", this.asked, this.abort.signal);
      if (!response.ok) return this.fail((await response.json()).error);
      const reader = response.body.getReader();
      const decoder = new TextDecoder();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
        rest = lines.pop();
        for (const line of lines) this.take(JSON.parse(line));
      }
    } catch (error) {
      if (error.name === "AbortError") return;
    }
    if (!this.ended) this.fail("The connection was lost. Does mote-eval ask still run?");
  }
}

const post = (path, body, signal) => fetch(path, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
});

function submit(event) {
  event.preventDefault();
  const prompt = byId("prompt").value;
  if (!byId("form").reportValidity()) return;
  if (!prompt.trim()) return say("The prompt is empty.");
  if ([...prompt].length > about.most_characters) {
    return say(`The prompt has ${[...prompt].length} characters, at most ${about.most_characters} are taken.`);
  }
  const asked = { prompt };
  for (const id of ["max-tokens", "temperature", "seed"]) asked[id.replace("-", "_")] = Number(byId(id).value);
  if (about.semantics.length) asked.semantics = byId("semantics").value;
  new Question(asked).ask();
}

async function begin() {
  const response = await fetch("about");
  if (!response.ok) return say((await response.json()).error);
  about = await response.json();
  byId("subject").textContent = visible(about.subject);
  document.title = visible(about.title);
  byId("max-tokens").max = about.most_tokens;
  for (const name of ["max_tokens", "temperature", "seed"]) byId(name.replace("_", "-")).value = about[name];
  for (const [name, words] of about.semantics) {
    const option = make("option", "", words);
    option.value = name;
    byId("semantics").append(option);
  }
  byId("semantics-field").hidden = !about.semantics.length;
  if (about.semantics.length) byId("semantics").value = about.chosen;
  if (about.unmarked) {
    byId("legend").textContent = visible(about.unmarked);
  } else {
    const legend = "underlined: while it read this token, the base chose an expert of the set. In the variant's answer: the base" +
      " would have chosen one, had it read that text. Point at a token to see which, or use Tab and the arrow keys.";
    byId("legend").append(make("mark", "", "token"), ` ${legend} Marks come when both answers are whole.`);
  }
  byId("experts-field").hidden = !about.experts.length;
  byId("experts-title").textContent = `The set: ${plural(about.experts.length, "expert")}`;
  byId("experts").textContent = about.experts.map((one) => `${expertWords(one)} (${DID[one[2]]})`).join(", ");
  byId("form").addEventListener("submit", submit);
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
  });
  byId("prompt").focus();
  document.documentElement.dataset.ready = "yes";
}

begin().catch(() => say("The connection was lost. Does mote-eval ask still run?"));
