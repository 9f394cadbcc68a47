// A map of layers x experts: a canvas for the cells, SVG above it for axes, rings and the cursor. It is one stop of the Tab
// key; arrow keys move its cursor, whose numbers stand in a line below, and + and - zoom.
const margin = { left: 46, top: 6, right: 14, bottom: 34 };
const mostCell = 26, leastHeight = 4, wantedHeight = 480, mostZoom = 16;
// However far one zooms in, so many stay in sight.
const fewestLayers = 2, fewestExperts = 4;

function between(low, value, high) { return Math.min(high, Math.max(low, value)); }

function firstStep(steps, least) {
  for (const step of steps) if (step >= least) return step;
  return steps[steps.length - 1];
}

// rings: [[row, expert, label], ...]; onEnter(row, expert) is what the Enter key does.
function makeGrid(host, describe, rings, onEnter) {
  const tools = element(host, "div", { class: "tools" });
  const button = (text, name, act) => {
    const made = element(tools, "button", { type: "button", "aria-label": name, title: name }, text);
    made.addEventListener("click", act);
    return made;
  };
  const closer = button("+", "zoom in", () => zoomBy(2)), wider = button("\u2212", "zoom out", () => zoomBy(0.5));
  const all = button("whole map", "show the whole map", () => zoomBy(0));
  const readout = element(tools, "output", { class: "readout", "aria-live": "polite" }, "point at a cell, or press Tab until the map is framed and use the arrow keys");
  const plot = element(host, "div", { class: "plot", tabindex: 0, role: "application", "aria-label": host.dataset.label, "aria-describedby": "map-keys" });
  const canvas = element(plot, "canvas", { "aria-hidden": "true" });
  const over = element(plot, "svg", { "aria-hidden": "true" });
  const picture = document.createElement("canvas");
  picture.width = numExperts;
  picture.height = numLayers;

  const view = { zoom: 1, left: 0, top: 0 };
  const cursor = { row: 0, expert: 0, shown: false };
  let width = 0, height = 0;
  const cellWidth = () => (width * view.zoom) / numExperts, cellHeight = () => (height * view.zoom) / numLayers;
  const zoomLimit = between(1, Math.floor(Math.min(numExperts / fewestExperts, numLayers / fewestLayers)), mostZoom);

  function fit() {
    const room = (host.clientWidth - margin.left - margin.right) / numExperts;
    width = numExperts * Math.min(mostCell, room >= 2 ? Math.floor(room) : room);
    height = numLayers * between(leastHeight, Math.floor(wantedHeight / numLayers), mostCell);
    const density = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * density);
    canvas.height = Math.round(height * density);
    canvas.style.width = over.style.width = width + "px";
    canvas.style.height = height + "px";
    plot.style.width = margin.left + width + margin.right + "px";
    plot.style.height = margin.top + height + margin.bottom + "px";
    over.style.width = plot.style.width;
    over.style.height = plot.style.height;
    draw();
  }

  function draw() {
    // Whole cells, but at the far ends, where a part of one may be left over.
    view.left = between(0, Math.round(view.left), numExperts - numExperts / view.zoom);
    view.top = between(0, Math.round(view.top), numLayers - numLayers / view.zoom);
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(picture, view.left, view.top, numExperts / view.zoom, numLayers / view.zoom, 0, 0, canvas.width, canvas.height);
    over.textContent = "";
    const x = (expert) => margin.left + (expert + 0.5 - view.left) * cellWidth();
    const y = (row) => margin.top + (row + 0.5 - view.top) * cellHeight();
    const isSeen = (row, expert) =>
      x(expert) >= margin.left && x(expert) <= margin.left + width && y(row) >= margin.top && y(row) <= margin.top + height;
    const everyLayer = firstStep([1, 2, 4, 5, 10, 20], 13 / cellHeight());
    const everyExpert = firstStep([1, 2, 4, 8, 16, 32, 64], 34 / cellWidth());
    for (let row = 0; row < numLayers; row += everyLayer)
      if (isSeen(row, Math.round(view.left))) element(over, "text", { x: margin.left - 7, y: y(row) + 4, "text-anchor": "end" }, data.layers[row]);
    for (let expert = 0; expert < numExperts; expert += everyExpert)
      if (isSeen(Math.round(view.top), expert)) element(over, "text", { x: x(expert), y: margin.top + height + 14, "text-anchor": "middle" }, expert);
    element(over, "text", { x: margin.left + width / 2, y: margin.top + height + 30, "text-anchor": "middle" }, "expert");
    const middle = margin.top + height / 2;
    element(over, "text", { x: 12, y: middle, "text-anchor": "middle", transform: "rotate(-90 12 " + middle + ")" }, height < 110 ? "layer" : "layer of the model");
    const radius = between(7, 3 + 0.75 * Math.min(cellWidth(), cellHeight()), 22);
    for (const [row, expert, label] of rings) {
      if (!isSeen(row, expert)) continue;
      element(over, "circle", { class: "halo", cx: x(expert), cy: y(row), r: radius });
      element(over, "circle", { class: "ring", cx: x(expert), cy: y(row), r: radius });
    }
    // Above the rings of neighbours.
    for (const [row, expert, label] of rings) {
      if (!label || !isSeen(row, expert)) continue;
      // Beside the ring; at the map's right edge on its other side.
      const isLast = x(expert) + radius + 18 > margin.left + width;
      element(over, "text", { class: "rank", x: x(expert) + (isLast ? -1 - radius : radius + 1), y: Math.max(11, y(row) - radius + 6), "text-anchor": isLast ? "end" : "start" }, label);
    }
    if (cursor.shown && isSeen(cursor.row, cursor.expert)) {
      const size = { width: Math.max(9, cellWidth() + 3), height: Math.max(9, cellHeight() + 3) };
      const corner = { x: x(cursor.expert) - size.width / 2, y: y(cursor.row) - size.height / 2 };
      element(over, "rect", Object.assign({ class: "cursor-halo" }, size, corner));
      element(over, "rect", Object.assign({ class: "cursor" }, size, corner));
    }
    closer.disabled = view.zoom >= zoomLimit;
    wider.disabled = all.disabled = view.zoom <= 1;
  }

  function keepSeen(row, expert) {
    view.left = between(Math.ceil(expert + 1 - numExperts / view.zoom), view.left, expert);
    view.top = between(Math.ceil(row + 1 - numLayers / view.zoom), view.top, row);
  }

  function moveTo(row, expert) {
    cursor.row = between(0, row, numLayers - 1);
    cursor.expert = between(0, expert, numExperts - 1);
    cursor.shown = true;
    keepSeen(cursor.row, cursor.expert);
    readout.textContent = describe(cursor.row, cursor.expert).replaceAll("\n", " \u00b7 ");
    draw();
  }

  // Keeps a cell where it is on the screen: the cursor's if there is one, else the middle one. A factor of 0 shows all.
  function zoomBy(factor, row, expert) {
    const before = view.zoom;
    view.zoom = factor ? between(1, before * factor, zoomLimit) : 1;
    const middle = { row: Math.floor(view.top + numLayers / before / 2), expert: Math.floor(view.left + numExperts / before / 2) };
    const at = row !== undefined ? { row: row, expert: expert } : cursor.shown ? cursor : middle;
    view.left = at.expert + 0.5 - ((at.expert + 0.5 - view.left) * before) / view.zoom;
    view.top = at.row + 0.5 - ((at.row + 0.5 - view.top) * before) / view.zoom;
    keepSeen(at.row, at.expert);
    draw();
  }

  let ringed = -1;
  function toRing(step) {
    if (!rings.length) return;
    ringed = ringed < 0 && step < 0 ? rings.length - 1 : (ringed + step + rings.length) % rings.length;
    moveTo(rings[ringed][0], rings[ringed][1]);
  }

  const keys = {
    ArrowLeft: (far) => moveTo(cursor.row, cursor.expert - far),
    ArrowRight: (far) => moveTo(cursor.row, cursor.expert + far),
    ArrowUp: (far) => moveTo(cursor.row - far, cursor.expert),
    ArrowDown: (far) => moveTo(cursor.row + far, cursor.expert),
    PageUp: () => moveTo(cursor.row - 10, cursor.expert),
    PageDown: () => moveTo(cursor.row + 10, cursor.expert),
    Home: (far, control) => moveTo(control ? 0 : cursor.row, 0),
    End: (far, control) => moveTo(control ? numLayers - 1 : cursor.row, numExperts - 1),
    "+": () => zoomBy(2),
    "=": () => zoomBy(2),
    "-": () => zoomBy(0.5),
    0: () => zoomBy(0),
    n: () => toRing(1),
    p: () => toRing(-1),
    Enter: () => onEnter && onEnter(cursor.row, cursor.expert),
  };
  plot.addEventListener("keydown", function (event) {
    const isEdge = event.key === "Home" || event.key === "End";
    // What goes with these is the browser's own, as its zoom is.
    if (event.altKey || event.metaKey || (event.ctrlKey && !isEdge) || !Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    keys[event.key](event.shiftKey ? 8 : 1, event.ctrlKey);
  });
  plot.addEventListener("focus", () => { if (!cursor.shown) { if (rings.length) toRing(1); else moveTo(0, 0); } });

  function cellAt(event) {
    const box = canvas.getBoundingClientRect();
    const expert = Math.floor(view.left + (event.clientX - box.left) / cellWidth());
    const row = Math.floor(view.top + (event.clientY - box.top) / cellHeight());
    return expert >= 0 && row >= 0 && expert < numExperts && row < numLayers ? [row, expert] : null;
  }
  let drag = null;
  canvas.addEventListener("mousedown", function (event) {
    if (event.button === 0) drag = { x: event.clientX, y: event.clientY, left: view.left, top: view.top, moved: false };
  });
  window.addEventListener("mousemove", function (event) {
    if (!drag) return;
    const x = event.clientX - drag.x, y = event.clientY - drag.y;
    drag.moved = drag.moved || Math.abs(x) + Math.abs(y) > 4;
    if (!drag.moved || view.zoom === 1) return;
    view.left = drag.left - x / cellWidth();
    view.top = drag.top - y / cellHeight();
    draw();
  });
  window.addEventListener("mouseup", () => { setTimeout(() => { drag = null; }); });
  canvas.addEventListener("click", function (event) {
    const at = cellAt(event);
    if (at && !(drag && drag.moved)) moveTo(at[0], at[1]);
  });
  canvas.addEventListener("dblclick", function (event) {
    const at = cellAt(event);
    if (at) zoomBy(2, at[0], at[1]);
  });
  canvas.addEventListener("mousemove", function (event) {
    const at = cellAt(event);
    if (at && !(drag && drag.moved)) showTip(event, describe(at[0], at[1])); else hideTip();
  });
  canvas.addEventListener("mouseleave", hideTip);

  // values: one number a cell; toShare: from it to a place on the ramp, 0 to 1.
  function paint(values, ramp, toShare) {
    const pixels = new ImageData(numExperts, numLayers);
    values.forEach((value, at) => pixels.data.set([...colorAt(ramp, toShare(value)), 255], 4 * at));
    picture.getContext("2d").putImageData(pixels, 0, 0);
    if (cursor.shown) readout.textContent = describe(cursor.row, cursor.expert).replaceAll("\n", " \u00b7 ");
    draw();
  }

  new ResizeObserver(fit).observe(host);
  fit();
  return { paint: paint, show: (row, expert) => { plot.focus(); moveTo(row, expert); plot.scrollIntoView({ block: "center" }); } };
}
