"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const numLayers = data.layers.length;
  const numExperts = data.numExperts;
  const svgSpace = "http://www.w3.org/2000/svg";
  const tip = document.getElementById("tip");

  function bytesOf(packed) {
    const text = atob(packed);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes.buffer;
  }

  function element(parent, name, attributes, text) {
    const node = parent.namespaceURI === svgSpace || name === "svg" ? document.createElementNS(svgSpace, name) : document.createElement(name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (text !== undefined) node.textContent = text;
    parent.appendChild(node);
    return node;
  }

  function showTip(event, text) {
    tip.textContent = text;
    tip.style.display = "block";
    const width = tip.offsetWidth, height = tip.offsetHeight;
    let left = event.clientX + 16, top = event.clientY + 16;
    if (left + width > window.innerWidth - 8) left = event.clientX - width - 12;
    if (top + height > window.innerHeight - 8) top = event.clientY - height - 12;
    tip.style.left = Math.max(4, left) + "px";
    tip.style.top = Math.max(4, top) + "px";
  }
  function hideTip() { tip.style.display = "none"; }

  function rgb(hex) { return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)); }
  const ramps = { diverging: data.diverging.map(rgb), sequential: data.sequential.map(rgb) };
  function colorAt(ramp, share) {
    const place = Math.min(1, Math.max(0, share)) * (ramp.length - 1);
    const low = Math.min(ramp.length - 2, Math.floor(place));
    return ramp[low].map((from, channel) => Math.round(from + (ramp[low + 1][channel] - from) * (place - low)));
  }

  function number(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size >= 0.001 && size < 1e5 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
  }

  // A grid of layers x experts: canvas for the cells, SVG above it for axes and rings.
  const cell = {
    width: Math.max(2, Math.min(26, Math.floor(1080 / numExperts))),
    height: Math.max(4, Math.min(26, Math.floor(520 / numLayers))),
  };
  const margin = { left: 54, top: 6, bottom: 34 };

  function makeGrid(host, describe) {
    const width = numExperts * cell.width, height = numLayers * cell.height;
    host.style.paddingLeft = margin.left + "px";
    host.style.paddingTop = margin.top + "px";
    host.style.height = margin.top + height + margin.bottom + "px";
    const canvas = element(host, "canvas", { width: width, height: height, role: "img", "aria-label": host.dataset.label });
    canvas.style.width = width + "px";
    canvas.style.height = height + "px";
    const over = element(host, "svg", { width: margin.left + width + 40, height: margin.top + height + margin.bottom });
    const everyLayer = Math.max(1, Math.ceil(numLayers / 15)), everyExpert = niceStep(numExperts / 12);
    for (let row = 0; row < numLayers; row += everyLayer)
      element(over, "text", { x: margin.left - 7, y: margin.top + (row + 0.5) * cell.height + 4, "text-anchor": "end" }, data.layers[row]);
    for (let expert = 0; expert < numExperts; expert += everyExpert)
      element(over, "text", { x: margin.left + (expert + 0.5) * cell.width, y: margin.top + height + 14, "text-anchor": "middle" }, expert);
    element(over, "text", { x: margin.left + width / 2, y: margin.top + height + 30, "text-anchor": "middle" }, "expert");
    const middle = margin.top + height / 2;
    element(over, "text", { x: 12, y: middle, "text-anchor": "middle", transform: "rotate(-90 12 " + middle + ")" }, "layer of the model");
    canvas.addEventListener("mousemove", function (event) {
      const expert = Math.floor(event.offsetX / cell.width), row = Math.floor(event.offsetY / cell.height);
      if (expert >= 0 && row >= 0 && expert < numExperts && row < numLayers) showTip(event, describe(row, expert));
    });
    canvas.addEventListener("mouseleave", hideTip);
    return { canvas: canvas, over: over };
  }
  function niceStep(least) {
    for (const step of [1, 2, 4, 5, 8, 16, 32, 64]) if (step >= least) return step;
    return 128;
  }

  function paint(grid, values, ramp, toShare) {
    const context = grid.canvas.getContext("2d");
    for (let row = 0; row < numLayers; row++)
      for (let expert = 0; expert < numExperts; expert++) {
        context.fillStyle = "rgb(" + colorAt(ramp, toShare(values[row * numExperts + expert])).join(",") + ")";
        context.fillRect(expert * cell.width, row * cell.height, cell.width, cell.height);
      }
  }

  function ring(grid, row, expert, label) {
    const at = { cx: margin.left + (expert + 0.5) * cell.width, cy: margin.top + (row + 0.5) * cell.height };
    const radius = Math.max(7, 0.75 * Math.max(cell.width, cell.height));
    element(grid.over, "circle", { class: "halo", cx: at.cx, cy: at.cy, r: radius });
    element(grid.over, "circle", { class: "ring", cx: at.cx, cy: at.cy, r: radius });
    if (label) element(grid.over, "text", { class: "rank", x: at.cx + radius + 1, y: at.cy - radius + 4 }, label);
  }

  function legend(host, ramp, low, high, note) {
    host.textContent = "";
    element(host, "span", {}, low);
    const stops = ramp.map((color) => "rgb(" + color.join(",") + ")").join(",");
    element(host, "span", { class: "bar", style: "background:linear-gradient(to right," + stops + ")" });
    element(host, "span", {}, high);
    element(host, "span", {}, note);
  }

  // The fTRI map (Fig. 5).
  const maps = {};
  for (const name in data.maps) maps[name] = new Float32Array(bytesOf(data.maps[name]));
  const rankOf = new Map(data.top.map(([row, expert], index) => [row * numExperts + expert, index + 1]));
  const main = makeGrid(document.getElementById("map"), function (row, expert) {
    const at = row * numExperts + expert, rank = rankOf.get(at);
    return "layer " + data.layers[row] + ", expert " + expert + (rank ? "  (rank " + rank + ")" : "") +
      "\n" + data.statistic + ": " + number(maps.score[at]) +
      "\ntokens per prompt: " + number(maps.class[at]) + " in the class, " + number(maps.others[at]) + " in the others";
  });
  const mapChoice = document.getElementById("map-choice");
  function drawMain() {
    const name = mapChoice.value, host = document.getElementById("map-legend");
    if (name === "score") {
      paint(main, maps.score, ramps.diverging, (value) => 0.5 + value / (2 * data.limit));
      legend(host, ramps.diverging, number(-data.limit), number(data.limit), data.statistic + "; stronger values share the end colours");
    } else {
      let highest = 0;
      for (const value of maps.class) highest = Math.max(highest, value);
      for (const value of maps.others) highest = Math.max(highest, value);
      paint(main, maps[name], ramps.sequential, (value) => Math.sqrt(value / (highest || 1)));
      legend(host, ramps.sequential, "0", number(highest), "tokens per prompt, colours by square root");
    }
  }
  mapChoice.addEventListener("change", drawMain);
  drawMain();
  data.top.forEach(([row, expert], index) => ring(main, row, expert, index + 1));

  // One prompt's map (Fig. 2) and one token's pattern (Fig. 3).
  if (data.examples.length) {
    const choice = document.getElementById("example-choice");
    data.examples.forEach((example, index) => element(choice, "option", { value: index }, example.label + ": " + example.prompt.slice(0, 90)));
    let counts = new Float32Array(numLayers * numExperts), pattern = new Float32Array(numLayers * numExperts);
    let experts = null, token = data.token;
    const describe = (values, unit) => (row, expert) =>
      "layer " + data.layers[row] + ", expert " + expert + "\n" + unit(values()[row * numExperts + expert]);
    const promptGrid = makeGrid(document.getElementById("prompt-map"), describe(() => counts, (value) => value + " tokens of this prompt"));
    const tokenGrid = makeGrid(document.getElementById("token-map"), describe(() => pattern, (value) => (value ? "selected by this token" : "not selected")));
    const chips = document.getElementById("tokens");

    const perToken = numLayers * data.topK;
    const selects = (position, row, expert) => {
      const start = position * perToken + row * data.topK;
      for (let slot = 0; slot < data.topK; slot++) if (experts[start + slot] === expert) return true;
      return false;
    };
    function drawToken() {
      pattern.fill(0);
      for (let row = 0; row < numLayers; row++)
        for (let slot = 0; slot < data.topK; slot++) pattern[row * numExperts + experts[token * perToken + row * data.topK + slot]] = 1;
      paint(tokenGrid, pattern, ramps.sequential, (value) => 0.85 * value);
      chips.querySelectorAll("button").forEach((chip, index) => chip.classList.toggle("on", index === token));
    }
    function drawExample() {
      const example = data.examples[choice.value];
      experts = new Uint16Array(bytesOf(example.experts));
      token = Math.min(token, example.tokens.length - 1);
      counts.fill(0);
      for (let position = 0; position < example.numPrompt; position++)
        for (let row = 0; row < numLayers; row++)
          for (let slot = 0; slot < data.topK; slot++) counts[row * numExperts + experts[position * perToken + row * data.topK + slot]] += 1;
      const highest = counts.reduce((a, b) => Math.max(a, b), 1);
      paint(promptGrid, counts, ramps.sequential, (value) => value / highest);
      legend(document.getElementById("prompt-legend"), ramps.sequential, "0", highest, "tokens of the prompt");
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
    data.top.forEach(([row, expert]) => ring(tokenGrid, row, expert, ""));
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
})();
