document.querySelectorAll("[data-live]").forEach((one) => { one.hidden = false; });

// The fTRI map (Fig. 5).
const maps = {};
for (const name in data.maps) maps[name] = new Float32Array(bytesOf(data.maps[name]));
const rankOf = new Map(data.top.map(([row, expert], index) => [row * numExperts + expert, index + 1]));
const main = makeGrid(document.getElementById("map"), function (row, expert) {
  const at = row * numExperts + expert, rank = rankOf.get(at);
  return "layer " + data.layers[row] + ", expert " + expert + (rank ? "  (rank " + rank + ")" : "") +
    "\n" + data.quantity + ": " + number(maps.score[at]) + ", max-T p " + number(maps.chance[at]) +
    "\ntokens per prompt: " + number(maps.class[at]) + " in the class, " + number(maps.others[at]) + " in the others";
}, data.top.map(([row, expert], index) => [row, expert, index + 1]), function (row, expert) {
  const card = document.getElementById("expert-" + data.layers[row] + "-" + expert);
  if (card) card.focus();
});
const mapChoice = document.getElementById("map-choice");
let highest = 0;
for (const name of ["class", "others", ...data.labelMaps]) for (const value of maps[name]) highest = Math.max(highest, value);
function drawMain() {
  const name = mapChoice.value, host = document.getElementById("map-legend");
  if (name === "score") {
    main.paint(maps.score, ramps.diverging, (value) => 0.5 + value / (2 * data.limit));
    legend(host, ramps.diverging, number(-data.limit), number(data.limit), data.scale + "; stronger values share the end colours");
  } else {
    main.paint(maps[name], ramps.sequential, (value) => Math.sqrt(value / (highest || 1)));
    legend(host, ramps.sequential, "0", number(highest), "tokens per prompt, colours by square root");
  }
}
mapChoice.addEventListener("change", drawMain);
drawMain();
makeCells(document.getElementById("cells"), main.show);

// One prompt's map (Fig. 2) and one token's pattern (Fig. 3).
if (data.examples.length) {
  const choice = document.getElementById("example-choice");
  data.examples.forEach((example, index) => element(choice, "option", { value: index }, example.label + ": " + example.prompt.slice(0, 90)));
  let counts = new Float32Array(numLayers * numExperts), pattern = new Float32Array(numLayers * numExperts);
  let experts = null, token = data.token;
  const rings = data.top.map(([row, expert]) => [row, expert, ""]);
  const describe = (values, unit) => (row, expert) =>
    "layer " + data.layers[row] + ", expert " + expert + "\n" + unit(values()[row * numExperts + expert]);
  const promptGrid = makeGrid(document.getElementById("prompt-map"), describe(() => counts, (value) => value + " tokens of this prompt"), rings);
  const tokenGrid = makeGrid(document.getElementById("token-map"), describe(() => pattern, (value) => (value ? "selected by this token" : "not selected")), rings);
  const chips = document.getElementById("tokens");

  // Ids behind the experts are a router's further choices (experts that compute nothing), which have no place on a map.
  const perToken = numLayers * data.topK;
  const selects = (position, row, expert) => {
    const start = position * perToken + row * data.topK;
    for (let slot = 0; slot < data.topK; slot++) if (experts[start + slot] === expert) return true;
    return false;
  };
  function drawToken() {
    pattern.fill(0);
    for (let row = 0; row < numLayers; row++)
      for (let slot = 0; slot < data.topK; slot++) {
        const expert = experts[token * perToken + row * data.topK + slot];
        if (expert < numExperts) pattern[row * numExperts + expert] = 1;
      }
    tokenGrid.paint(pattern, ramps.sequential, (value) => 0.85 * value);
    chips.querySelectorAll("button").forEach((chip, index) => chip.classList.toggle("on", index === token));
  }
  function drawExample() {
    const example = data.examples[choice.value];
    experts = new Uint16Array(bytesOf(example.experts));
    token = Math.min(token, example.tokens.length - 1);
    counts.fill(0);
    for (let position = 0; position < example.numPrompt; position++)
      for (let row = 0; row < numLayers; row++)
        for (let slot = 0; slot < data.topK; slot++) {
          const expert = experts[position * perToken + row * data.topK + slot];
          if (expert < numExperts) counts[row * numExperts + expert] += 1;
        }
    const highest = counts.reduce((a, b) => Math.max(a, b), 1);
    promptGrid.paint(counts, ramps.sequential, (value) => value / highest);
    legend(document.getElementById("prompt-legend"), ramps.sequential, "0", highest, example.isCut ? "of the prompt's first " + example.numPrompt + " tokens" : "tokens of the prompt");
    chips.textContent = "";
    example.tokens.forEach(function (text, position) {
      const hits = data.top.filter(([row, expert]) => selects(position, row, expert)).length;
      const kind = (position >= example.numPrompt ? "made " : "") + (hits ? "hit" : "");
      const chip = element(chips, "button", { type: "button", class: kind }, text);
      chip.addEventListener("click", function () { token = position; drawToken(); });
      chip.addEventListener("mousemove", (event) => showTip(event, "token " + position + ": selects " + hits + " of the top " + data.k + " experts"));
      chip.addEventListener("mouseleave", hideTip);
    });
    drawToken();
  }
  choice.addEventListener("change", drawExample);
  drawExample();
}

// All prompts in a plane (Fig. 4).
const marks = {
  circle: (x, y) => ["circle", { cx: x, cy: y, r: 4.2 }],
  square: (x, y) => ["rect", { x: x - 3.8, y: y - 3.8, width: 7.6, height: 7.6 }],
  triangle: (x, y) => ["path", { d: "M" + x + " " + (y - 5) + "l4.8 8.4h-9.6z" }],
  diamond: (x, y) => ["path", { d: "M" + x + " " + (y - 5.4) + "l5 5.4l-5 5.4l-5 -5.4z" }],
  cross: (x, y) => ["path", { d: "M" + (x - 4) + " " + (y - 4) + "l8 8m0 -8l-8 8", "stroke-width": 2.2 }],
  plus: (x, y) => ["path", { d: "M" + (x - 5) + " " + y + "h10m-5 -5v10", "stroke-width": 2.2 }],
  ring: (x, y) => ["circle", { cx: x, cy: y, r: 4, "fill-opacity": 0, "stroke-width": 2 }],
};
function drawMark(parent, label, x, y) {
  const [color, mark] = data.styles[label];
  const [name, attributes] = marks[mark](x, y);
  return element(parent, name, Object.assign({ fill: color, stroke: color, "fill-opacity": 0.8 }, attributes));
}
document.querySelectorAll("svg.mark").forEach((host) => drawMark(host, host.dataset.label, 7, 7));
const plane = document.getElementById("plane");
if (data.plane && plane) {
  const width = 960, height = 560, edge = 24;
  const range = (values) => { let low = Infinity, high = -Infinity; for (const v of values) { low = Math.min(low, v); high = Math.max(high, v); } return [low, high - low || 1]; };
  const [x0, dx] = range(data.plane.x), [y0, dy] = range(data.plane.y);
  const points = data.plane.x.map((x, i) => [edge + ((x - x0) / dx) * (width - 2 * edge), edge + ((data.plane.y[i] - y0) / dy) * (height - 2 * edge)]);
  points.forEach(([x, y], i) => drawMark(plane, data.labels[data.plane.label[i]], x, y));
  const cursor = element(plane, "circle", { r: 9, fill: "none", stroke: "#000", "stroke-width": 1.6, visibility: "hidden" });
  plane.addEventListener("mousemove", function (event) {
    const box = plane.getBoundingClientRect();
    const x = ((event.clientX - box.left) * width) / box.width, y = ((event.clientY - box.top) * height) / box.height;
    let nearest = -1, least = 196;
    points.forEach(([px, py], i) => { const far = (px - x) ** 2 + (py - y) ** 2; if (far < least) { least = far; nearest = i; } });
    if (nearest < 0) { hideTip(); cursor.setAttribute("visibility", "hidden"); return; }
    cursor.setAttribute("cx", points[nearest][0]);
    cursor.setAttribute("cy", points[nearest][1]);
    cursor.setAttribute("visibility", "visible");
    showTip(event, data.labels[data.plane.label[nearest]] + "\n" + data.plane.prompt[nearest] + "\n\u2192 " + data.plane.answer[nearest]);
  });
  plane.addEventListener("mouseleave", function () { hideTip(); cursor.setAttribute("visibility", "hidden"); });
}
document.body.dataset.ready = "yes";
