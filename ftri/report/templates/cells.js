// All experts as a table that sorts and filters. The page brings the first rows; here every cell of the map takes their place.
const rowsShown = 25;

// "3, 10-20" -> a test of numbers; null where it cannot be read.
function numberFilter(text) {
  const parts = text.split(",").map((part) => part.trim()).filter((part) => part);
  const ranges = parts.map((part) => /^(\d+)(?:\s*[-\u2013]\s*(\d+))?$/.exec(part));
  if (ranges.some((found) => !found)) return null;
  const pairs = ranges.map((found) => [Number(found[1]), Number(found[2] === undefined ? found[1] : found[2])]);
  return (value) => !pairs.length || pairs.some(([low, high]) => value >= low && value <= high);
}

function makeCells(table, show) {
  const size = numLayers * numExperts;
  const order = Array.from(new Uint32Array(bytesOf(data.order)));
  const rank = new Int32Array(size);
  order.forEach((at, index) => { rank[at] = index + 1; });
  const columns = {
    rank: (at) => rank[at],
    layer: (at) => data.layers[Math.floor(at / numExperts)],
    expert: (at) => at % numExperts,
  };
  for (const name of table.dataset.maps.split(" ")) columns[name] = (at) => maps[name][at];
  const heads = Array.from(table.tHead.rows[0].cells).filter((head) => head.dataset.column);
  const fields = Object.fromEntries(["layer", "expert", "most", "chance"].map((name) => [name, document.getElementById("cells-" + name)]));
  const count = document.getElementById("cells-count");
  const back = document.getElementById("cells-back"), on = document.getElementById("cells-on");
  let sorted = "rank", falls = false, first = 0, found = order;

  for (const head of heads) {
    const name = head.dataset.column, text = head.textContent;
    head.textContent = "";
    element(head, "button", { type: "button" }, text).addEventListener("click", function () {
      // Ranks and places begin with the first, figures with the largest, chances with the smallest.
      falls = sorted === name ? !falls : !["rank", "layer", "expert", "chance"].includes(name);
      sorted = name;
      select();
    });
  }

  function select() {
    const tests = {};
    for (const name of ["layer", "expert"]) {
      tests[name] = numberFilter(fields[name].value);
      fields[name].setAttribute("aria-invalid", String(tests[name] === null));
      if (tests[name] === null) {
        count.textContent = name + " is \u201c" + fields[name].value + "\u201d, expected numbers and ranges such as 3, 10-20";
        return;
      }
    }
    const most = fields.most.value, chance = Number(fields.chance.value);
    const mostUsedBy = (at) => data.labelMaps.every((name) => maps[most][at] >= maps[name][at]) && maps[most][at] > 0;
    found = order.filter((at) =>
      tests.layer(columns.layer(at)) && tests.expert(columns.expert(at)) && (!most || mostUsedBy(at)) && maps.chance[at] <= chance);
    const value = columns[sorted], sign = falls ? -1 : 1;
    if (sorted !== "rank" || falls) found.sort((a, b) => sign * (value(a) - value(b)) || rank[a] - rank[b]);
    for (const head of heads) {
      if (head.dataset.column === sorted) head.setAttribute("aria-sort", falls ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    first = 0;
    fill();
  }

  function fill() {
    const body = table.tBodies[0], shown = found.slice(first, first + rowsShown);
    body.textContent = "";
    for (const at of shown) {
      const row = element(body, "tr", rank[at] <= data.k ? { class: "top" } : {});
      for (const head of heads) {
        const value = columns[head.dataset.column](at);
        element(row, "td", {}, Number.isInteger(value) ? value : number(value));
      }
      const place = [Math.floor(at / numExperts), at % numExperts];
      const name = "show layer " + data.layers[place[0]] + ", expert " + place[1] + " on the map";
      element(element(row, "td"), "button", { type: "button", "aria-label": name }, "on the map").addEventListener("click", () => show(place[0], place[1]));
    }
    const inAll = " of " + size.toLocaleString("en") + (found.length < size ? " in all" : "");
    count.textContent = found.length
      ? "experts " + (first + 1) + " to " + (first + shown.length) + (found.length < size ? " of " + found.length.toLocaleString("en") + " that fit," : "") + inAll
      : "no expert fits," + inAll;
    back.disabled = first === 0;
    on.disabled = first + rowsShown >= found.length;
  }

  for (const name in fields) fields[name].addEventListener("input", select);
  back.addEventListener("click", () => { first -= rowsShown; fill(); });
  on.addEventListener("click", () => { first += rowsShown; fill(); });
  select();
}
