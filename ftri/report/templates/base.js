// What all parts of the page draw with. The parts are put together into one function, in the order base, map, cells, report.
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

function legend(host, ramp, low, high, note) {
  host.textContent = "";
  element(host, "span", {}, low);
  const stops = ramp.map((color) => "rgb(" + color.join(",") + ")").join(",");
  element(host, "span", { class: "bar", style: "background:linear-gradient(to right," + stops + ")" });
  element(host, "span", {}, high);
  element(host, "span", {}, note);
}
