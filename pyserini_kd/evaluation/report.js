
"use strict";
// All text of the data goes into the page as text nodes and attributes, never as markup.
const D = JSON.parse(document.getElementById("data").textContent);
// The order of figures.py: colours of Okabe and Ito, markers, line styles
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"];
const MARKERS = [
  "M5 0A5 5 0 1 1 -5 0A5 5 0 1 1 5 0Z", "M-4.5-4.5H4.5V4.5H-4.5Z", "M0-5.5L5.5 4.5H-5.5Z", "M0-6L5 0L0 6L-5 0Z", "M0 5.5L5.5-4.5H-5.5Z",
  "M0-6L1.5-2H5.7L2.4 .8L3.6 5L0 2.5L-3.6 5L-2.4 .8L-5.7-2H-1.5Z", "M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
  "M-5.5-3L-3-5.5L0-2.5L3-5.5L5.5-3L2.5 0L5.5 3L3 5.5L0 2.5L-3 5.5L-5.5 3L-2.5 0Z"];
const DASHES = ["", "7 3", "2 2.5", "8 3 2 3"];
const NAMES = D.systems.map(system => system.name);
const state = {};

// ------------------------------------------------------------------------------------------------------ small tools
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) node.append(child);
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const signed = (x, digits = 4) => x === null ? "–" : (x < 0 ? "−" : "+") + Math.abs(x).toFixed(digits);
const pValue = p => p === null ? "–" : p < 0.0001 ? "< 0.0001" : p.toFixed(4);
const brief = x => String(Number(x.toPrecision(3)));

const colourOf = number => COLOURS[number % COLOURS.length].replace("#000000", "var(--ink)");  // black on black says nothing
function marker(number, x, y, hollow) {
  return svg("path", {d: MARKERS[number % MARKERS.length], transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`, class: hollow ? "hollow" : "dot",
    style: `${hollow ? "stroke" : "fill"}: ${colourOf(number)}`});
}
function line(points, number) {
  return svg("polyline", {points: points.map(p => p.map(c => c.toFixed(1)).join()).join(" "), style: `stroke: ${colourOf(number)}`, fill: "none",
    "stroke-width": 1.8, "stroke-dasharray": DASHES[number % DASHES.length]});
}
function swatch(number, withLine, hollow) {
  return svg("svg", {width: withLine ? 34 : 16, height: 16, "aria-hidden": "true"},
    withLine ? line([[0, 8], [34, 8]], number) : null, marker(number, withLine ? 17 : 8, 8, hollow));
}
const legend = (names, withLine, hollow, systems = true) => el("ul", {class: "legend"},
  names.map(([number, name]) => el("li", {"data-system": systems ? number : null}, swatch(number, withLine, hollow && hollow(number)), name)));

// ---------------------------------------------------------------------------------------------------------- state
// The address behind # holds what is chosen, so that a view can be linked to: #sort=1&dir=down&m=0&s=1&q=4&a=0&b=2
function readState() {
  const given = new URLSearchParams(location.hash.slice(1));
  const whole = (name, least, end, otherwise) => {
    const text = given.get(name);
    return /^-?\d+$/.test(text || "") && +text >= least && +text < end ? +text : otherwise;
  };
  const count = D.systems.length, base = D.baseline === null ? 0 : D.baseline;
  const other = count > 1 ? (base === 0 ? 1 : 0) : 0;
  state.sort = whole("sort", -1, D.measures.length + 1, null);  // -1: the name; one past the measures: time
  state.dir = given.get("dir") === "up" ? "up" : "down";
  state.m = whole("m", 0, D.measures.length, 0);
  state.s = whole("s", 0, count, other);
  state.q = whole("q", 0, D.rankings.length, 0);
  state.a = whole("a", 0, count, base);
  state.b = whole("b", 0, count, other);
}
function choose(changes) {
  Object.assign(state, changes);
  const chosen = Object.entries(state).filter(([name, value]) => value !== null && (name !== "dir" || state.sort !== null));
  location.replace("#" + new URLSearchParams(chosen));  // its hashchange draws
}
function select(id, label, options, value, change, long) {
  return el("label", {class: long ? "long" : null}, label, el("select", {id, onchange: event => change(+event.target.value)},
    options.map((text, n) => el("option", {value: n, selected: n === value ? "" : null}, text))));
}

// ---------------------------------------------------------------------------------------------------------- table
function results() {
  const time = D.measures.length;
  const value = (system, column) => column === -1 ? system.name : column === time ? system.ms : system.means[column];
  const order = D.systems.map((_, n) => n);
  if (state.sort !== null) {
    const sign = state.dir === "up" ? 1 : -1;
    order.sort((i, j) => {
      const x = value(D.systems[i], state.sort), y = value(D.systems[j], state.sort);
      if (x === null || y === null) return (x === null) - (y === null);  // unknown ones last, either way
      return x < y ? -sign : x > y ? sign : i - j;
    });
  }
  const heading = (text, column) => {
    const on = state.sort === column, first = column === -1 || column === time ? "up" : "down";
    const next = !on ? {sort: column, dir: first} : state.dir === first ? {sort: column, dir: first === "up" ? "down" : "up"} : {sort: null};
    return el("th", {scope: "col", "aria-sort": on ? (state.dir === "up" ? "ascending" : "descending") : "none"},
      el("button", {id: "sort" + column, type: "button", onclick: () => choose(next)}, text, on ? (state.dir === "up" ? " ↑" : " ↓") : ""));
  };
  const best = D.measures.map((_, m) => Math.max(...D.systems.map(system => +system.means[m].toFixed(4))));
  const cell = (system, m) => {
    const shown = system.means[m].toFixed(4), found = system.compared && system.compared[m];
    const sure = found && found.corrected !== null && found.corrected < 0.05 ? (found.difference > 0 ? "up" : "down") : null;
    const text = +shown === best[m] && D.systems.length > 1 ? el("b", {}, shown) : shown;
    const about = found ? `${signed(found.difference)} to the baseline, p = ${pValue(found.p_value)}, corrected ${pValue(found.corrected)}` : null;
    return el("td", {title: about}, text, D.baseline === null ? null
      : el("span", {class: "mark " + (sure || "")}, sure === "up" ? "▲" : sure === "down" ? "▼" : ""));
  };
  const rows = order.map(n => {
    const system = D.systems[n];
    const name = n === D.baseline ? [system.name, " ", el("span", {class: "soft"}, "(baseline)")] : [system.name];
    return el("tr", {"data-system": n}, el("td", {title: system.about || system.path}, swatch(n), ...name),
      D.measures.map((_, m) => cell(system, m)), el("td", {title: system.time}, system.ms === null ? "–" : brief(system.ms)));
  });
  const said = [`Means over ${D.count} judged queries; bold: the best. `];
  if (D.baseline !== null) said.push(`▲ ▼: better or worse than ${NAMES[D.baseline]}, p < 0.05 (${D.test}, ${D.correction}). `);
  said.push("ms/query: answering alone, without loading, reading and writing, by the records of the run and of those that it was made from; –: not known.");
  return [el("h2", {}, "Results"), el("div", {class: "wide", tabindex: 0, role: "region", "aria-label": "Results"}, el("table", {id: "results"},
    el("thead", {}, el("tr", {}, heading("system", -1), D.measures.map(heading), heading("ms/query", time))), el("tbody", {}, rows))),
    el("p", {class: "soft"}, said.join(""))];
}
function comparisons() {
  if (D.baseline === null || D.systems.length < 2) return [];
  const rows = D.systems.map((system, n) => [n, system.compared && system.compared[state.m]]).filter(([, found]) => found).map(([n, f]) => el("tr", {"data-compared": n},
    el("td", {}, swatch(n), NAMES[n]), el("td", {}, signed(f.difference)), el("td", {}, `[${signed(f.low)}, ${signed(f.high)}]`),
    el("td", {}, pValue(f.p_value)), el("td", {}, pValue(f.corrected)), el("td", {}, signed(f.effect_size, 2)), el("td", {}, `${f.wins} / ${f.ties} / ${f.losses}`),
    el("td", {}, `${f.zeros} / ${f.baseline_zeros}`)));
  return [el("div", {class: "wide", tabindex: 0, role: "region", "aria-label": "Comparisons"}, el("table", {id: "comparisons"},
    el("thead", {}, el("tr", {}, [`${D.measures[state.m]}, against ${NAMES[D.baseline]}`, "difference", "95% interval", "p", "p corrected", "d", "wins / ties / losses", "zeros"].map(text => el("th", {scope: "col"}, text)))),
    el("tbody", {}, rows))), el("p", {class: "soft"}, `p: ${D.test}, ${D.correction}; bootstrap interval; d: Cohen's d of the paired differences; zeros: queries on which it, and the baseline, get nothing.`)];
}

// ---------------------------------------------------------------------------------------------------------- charts
function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(f => f * power).find(s => s >= raw * 0.999);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(+(n * step).toPrecision(10));
  return found;
}
function logTicks(low, high, most) {
  for (const factors of [[1, 2, 5], [1, 3], [1]]) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const f of factors) { const t = +(f * 10 ** power).toPrecision(3); if (t >= low * 0.999 && t <= high * 1.001) found.push(t); }
    if (found.length <= most || factors.length === 1) return found;
  }
}
function spread(values, share) {
  const low = Math.min(...values), high = Math.max(...values), pad = (high - low) * share || Math.abs(high) * 0.1 || 0.1;
  return [low - pad, high + pad];
}
// Axes of a plot: the svg, and functions from data to pixels
function frame(width, {x, y, height = 300, about}) {
  const left = 58, right = 14, top = 12, bottom = 42, w = width - left - right, h = height - top - bottom;
  const scale = x.log ? Math.log10 : Number, [from, to] = x.range.map(scale);
  const px = value => left + w * (scale(value) - from) / ((to - from) || 1);
  const py = value => top + h * (y.range[1] - value) / ((y.range[1] - y.range[0]) || 1);
  const root = svg("svg", {width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": about});
  for (const t of ticks(...y.range, Math.max(2, Math.floor(h / 40)))) root.append(
    svg("line", {x1: left, x2: left + w, y1: py(t), y2: py(t), class: "grid"}),
    svg("text", {x: left - 7, y: py(t) + 4, "text-anchor": "end"}, brief(t)));
  for (const t of x.log ? logTicks(...x.range, Math.floor(w / 46)) : ticks(...x.range, Math.max(2, Math.floor(w / 80)))) root.append(
    svg("line", {x1: px(t), x2: px(t), y1: top, y2: top + h, class: "grid"}),
    svg("text", {x: px(t), y: top + h + 17, "text-anchor": "middle"}, x.log ? String(t) : brief(t)));
  root.append(svg("path", {d: `M${left} ${top}V${top + h}H${left + w}`, class: "axis"}),
    svg("text", {x: left + w / 2, y: height - 6, "text-anchor": "middle"}, x.label),
    svg("text", {transform: `translate(13 ${top + h / 2}) rotate(-90)`, "text-anchor": "middle"}, y.label));
  return {root, px, py, box: [left, top, left + w, top + h]};
}
// Labels beside points, each where it covers nothing; one that fits nowhere is left to the legend
function label(points, along, [left, top, right, bottom]) {
  const taken = points.map(([x, y]) => [x - 7, y - 7, x + 7, y + 7]), found = [];
  along.slice(1).forEach(([x1, y1], n) => {  // the line, as small boxes
    const [x0, y0] = along[n], steps = Math.ceil(Math.hypot(x1 - x0, y1 - y0) / 4) || 1;
    for (let k = 0; k <= steps; k++) { const x = x0 + (x1 - x0) * k / steps, y = y0 + (y1 - y0) * k / steps; taken.push([x - 1, y - 1, x + 1, y + 1]); }
  });
  points.forEach(([x, y, text]) => {
    const w = 6.6 * text.length + 4;
    for (const [dx, dy, anchor] of [[10, 4, "start"], [-10, 4, "end"], [0, -11, "middle"], [0, 20, "middle"], [8, -9, "start"], [8, 17, "start"], [-8, -9, "end"], [-8, 17, "end"]]) {
      const x0 = x + dx - (anchor === "end" ? w : anchor === "middle" ? w / 2 : 0), y1 = y + dy + 3;
      const box = [x0, y1 - 14, x0 + w, y1];
      if (box[0] < left + 2 || box[2] > right || box[1] < top || box[3] > bottom) continue;
      if (taken.some(o => box[0] < o[2] && o[0] < box[2] && box[1] < o[3] && o[1] < box[3])) continue;
      taken.push(box);
      found.push(svg("text", {x: x + dx, y: y + dy, "text-anchor": anchor}, text));
      return;
    }
  });
  return found;
}
function pareto(width) {
  const title = el("h2", {}, "Effectiveness against latency"), known = D.systems.map((_, n) => n).filter(n => D.systems[n].ms !== null);
  if (!known.length) return [title, el("p", {class: "empty"}, "No run has a record (.json) with its seconds beside it, so there is nothing to plot.")];
  const times = known.map(n => D.systems[n].ms), values = known.map(n => D.systems[n].means[state.m]), front = D.fronts[state.m];
  const measure = D.measures[state.m];
  const {root, px, py, box} = frame(width, {about: `${measure} against ms per query`,
    x: {log: true, range: [Math.min(...times) / 1.6, Math.max(...times) * 1.6], label: "ms per query (log scale)"}, y: {range: spread(values, 0.15), label: measure}});
  const at = n => [px(D.systems[n].ms), py(D.systems[n].means[state.m])];
  root.append(svg("polyline", {points: front.map(at).join(" "), class: "front"}));
  known.forEach(n => root.append(fill(marker(n, ...at(n), !front.includes(n)), {"data-system": n},
    [svg("title", {}, `${NAMES[n]}: ${measure} ${D.systems[n].means[state.m].toFixed(4)}, ${brief(D.systems[n].ms)} ms (${D.systems[n].time})`)])));
  root.append(...label(known.map(n => [...at(n), NAMES[n]]), front.map(at), box));
  const without = NAMES.filter((_, n) => !known.includes(n));
  return [title, el("figure", {id: "pareto"}, root, legend(known.map(n => [n, NAMES[n]]), false, n => !front.includes(n)), el("figcaption", {},
    "Filled, on the line: no other system is both as fast and better (the Pareto front).",
    without.length ? ` Time not recorded: ${without.join(", ")}.` : ""))];
}
function recall(width) {
  const depths = D.depths, lines = D.systems.map((system, n) => [n, depths.map((d, i) => [d, system.recall[i]]).filter(([, v]) => v !== null)]);
  const deepest = Math.max(2, ...lines.flatMap(([, points]) => points.map(([d]) => d)));
  const {root, px, py} = frame(width, {about: "Recall by depth", x: {log: true, range: [0.85, deepest * 1.15], label: "depth (log scale)"}, y: {range: [0, 1], label: "recall"}});
  for (const [n, points] of lines) {
    root.append(svg("g", {"data-system": n}, line(points.map(([d, v]) => [px(d), py(v)]), n),
      points.map(([d, v]) => fill(marker(n, px(d), py(v)), {}, [svg("title", {}, `${NAMES[n]}: ${v.toFixed(4)} at ${d}`)]))));
  }
  return [el("h2", {}, "Recall by depth"), el("figure", {id: "recall"}, root, legend(NAMES.map((name, n) => [n, name]), true),
    el("figcaption", {}, `Relevant means a relevance of ${D.level} or more. A line ends where the run does.`))];
}

// ------------------------------------------------------------------------------------------------- wins and losses
function wins(width) {
  const title = el("h2", {}, "Wins and losses, query by query");
  if (D.baseline === null) return [title, el("p", {class: "empty"}, "Name a run with --baseline to see on which queries the others win and lose.")];
  if (D.systems.length < 2) return [title, el("p", {class: "empty"}, "There is no other run than the baseline.")];
  const measure = D.measures[state.m], ours = D.values[state.s][state.m], theirs = D.values[D.baseline][state.m];
  const bars = ours.map((value, n) => [n, (value - theirs[n]) / 1e4]).sort((x, y) => y[1] - x[1] || x[0] - y[0]);
  const most = Math.max(0.01, ...bars.map(([, d]) => Math.abs(d)));
  const {root, px, py} = frame(width, {height: 230, about: "Differences by query", x: {range: [0, bars.length], label: "queries, by difference"}, y: {range: [-most, most], label: `Δ ${measure}`}});
  const gap = (px(1) - px(0)) > 4 ? 1 : 0;
  const path = wanted => bars.map(([, d], k) => wanted(d) ? `M${px(k).toFixed(2)} ${py(0).toFixed(1)}V${py(d).toFixed(1)}H${(px(k + 1) - gap).toFixed(2)}V${py(0).toFixed(1)}Z` : "").join("");
  const pointer = svg("path", {d: "", class: "pointer"});
  root.append(svg("path", {d: path(d => d > 0), fill: "#0072B2"}), svg("path", {d: path(d => d < 0), fill: "#D55E00"}),
    svg("line", {x1: px(0), x2: px(bars.length), y1: py(0), y2: py(0), class: "zero"}), pointer);
  const said = el("p", {id: "bar", "aria-live": "polite"});
  const show = k => {
    const [n, difference] = bars[k], [id, text] = D.queries[n], x = (px(k) + px(k + 1)) / 2, row = D.rankings.findIndex(r => r.query === n);
    pointer.setAttribute("d", `M${x} ${py(0)}m-4 ${difference > 0 ? 9 : -9}h8l-4 ${difference > 0 ? -8 : 8}z`);
    said.replaceChildren(el("b", {}, signed(difference)), ` (${(theirs[n] / 1e4).toFixed(4)} → ${(ours[n] / 1e4).toFixed(4)}) on query ${id}`, text ? `: ${text} ` : " ",
      row < 0 ? "" : el("button", {class: "go", type: "button", onclick: () => {
        choose({q: row, a: D.baseline, b: state.s});
        document.getElementById("rankings").scrollIntoView();
      }}, "read the rankings"));
  };
  const slider = el("input", {type: "range", id: "slider", min: 0, max: bars.length - 1, value: 0, step: 1, oninput: event => show(+event.target.value)});
  root.addEventListener("click", event => {
    const k = Math.floor((event.clientX - root.getBoundingClientRect().left - px(0)) / (px(1) - px(0)));
    if (k >= 0 && k < bars.length) { slider.value = k; show(k); }
  });
  show(0);
  const count = wanted => bars.filter(([, d]) => wanted(d)).length;
  return [title, el("div", {class: "controls"}, select("system", `Against ${NAMES[D.baseline]}`, NAMES, state.s, s => choose({s}))),
    el("figure", {id: "wins"}, root, el("label", {}, "Move through the queries, or click a bar", slider), said,
      el("figcaption", {}, `${measure}: ${count(d => d > 0)} wins (blue, up), ${count(d => d === 0)} ties, ${count(d => d < 0)} losses (orange, down) of ${NAMES[state.s]}.`))];
}

// -------------------------------------------------------------------------------------------------------- rankings
function marked(text, words, isName) {
  const pieces = text.split(/([\p{L}\p{N}]+)/u), may = isName && !/\s/.test(text);  // a long name may break between its words
  return pieces.flatMap((piece, n) => n % 2 ? (words.has(piece.toLowerCase()) ? el("mark", {}, piece) : piece) : may && n ? [piece, el("wbr")] : piece);
}
function ranking(number, other, row, words) {
  const hits = row.hits[number], others = number === other ? [] : row.hits[other];
  const items = hits.map((d, n) => {
    const [id, title, text] = D.docs[d], grade = row.judged[d], place = others.indexOf(d);
    const badge = grade === undefined ? el("span", {class: "grade"}, "not judged")
      : el("span", {class: grade >= D.level ? "grade relevant" : "grade"}, grade >= D.level ? `✓ relevance ${grade}` : `relevance ${grade}`);
    const also = number === other ? "" : place >= 0 ? `; ${NAMES[other]}: rank ${place + 1}` : `; ${NAMES[other]}: not in its top ${others.length}`;
    return el("li", {"data-doc": id}, el("div", {class: "head"}, el("span", {class: "rank"}, n + 1), el("span", {class: "title"}, marked(title || id, words, true)), badge),
      text ? el("div", {class: "body text"}, marked(text, words)) : null, el("div", {class: "body soft"}, (title ? id : "") + (title ? also : also.slice(2))));
  });
  const value = m => (D.values[number][m][row.query] / 1e4).toFixed(4);
  return el("div", {}, el("h3", {}, swatch(number), ` ${NAMES[number]}`), el("p", {class: "soft"}, D.measures.map((name, m) => `${name}\u00a0${value(m)}`).join(", ")),
    items.length ? el("ol", {class: "hits"}, items) : el("p", {class: "empty"}, "This run has no documents for the query."));
}
function rankings() {
  const title = el("h2", {id: "rankings"}, "Rankings side by side");
  if (!D.rankings.length) return [title, el("p", {class: "empty"}, "There is no query to show.")];
  const row = D.rankings[state.q], name = ([id, text]) => text ? `${id} · ${text}` : id;
  const text = D.queries[row.query][1];
  const stop = new Set("a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to was what will with".split(" "));
  const words = new Set((text.toLowerCase().match(/[\p{L}\p{N}]+/gu) || []).filter(word => !stop.has(word)));
  const hidden = D.docs.every(doc => doc.length < 2) ? el("p", {class: "empty"}, "Only ids are known; give --collection or --index to read the documents.") : null;
  return [title, el("div", {class: "controls"}, select("query", `Query (${D.rankings.length} of ${D.count})`, D.rankings.map(r => name(D.queries[r.query])), state.q, q => choose({q}), true),
    select("left", "Left", NAMES, state.a, a => choose({a})), select("right", "Right", NAMES, state.b, b => choose({b}))),
    el("h3", {id: "asked"}, name(D.queries[row.query])),
    el("p", {class: "soft"}, `${row.relevant} document${row.relevant === 1 ? "" : "s"} judged relevant${D.level > 1 ? ` (${D.level} or more)` : ""}; the first ${Math.max(...row.hits.map(h => h.length))} of each run. Texts are cut; words of the query are marked.`), hidden,
    el("div", {class: "two", id: "sides"}, ranking(state.a, state.b, row, words), ranking(state.b, state.a, row, words))];
}

// -------------------------------------------------------------------------------------------------------- training
function curves(width, found, yLabel, about) {
  const all = found.flatMap(([, points]) => points);
  const {root, px, py} = frame(width, {height: 260, about, x: {range: spread(all.map(p => p[0]), 0.03), label: "step"}, y: {range: spread(all.map(p => p[1]), 0.08), label: yLabel}});
  found.forEach(([, points], n) => {
    root.append(line(points.map(([s, v]) => [px(s), py(v)]), n));
    for (const [s, v] of points.length > 60 ? [] : points) root.append(fill(marker(n, px(s), py(v)), {}, [svg("title", {}, `step ${s}: ${v}`)]));
  });
  return el("figure", {}, root, legend(found.map(([name], n) => [n, name]), true, null, false));
}
function training(width) {
  const title = el("h2", {}, "Training");
  if (!D.training.length) return [title, el("p", {class: "empty"}, "Give --training models/NAME/training.json to see loss curves.")];
  const plots = D.training.flatMap(stage => [["losses", "loss"], ["dev", "measure on dev topics"]].map(([what, unit]) => [stage.name, Object.entries(stage[what]), unit]))
    .filter(([, found]) => found.length);
  if (!plots.length) return [title, el("p", {class: "empty"}, "The training logged no loss.")];
  return [title, el("div", {class: "two", id: "training"}, plots.map(([name, found, unit]) => el("div", {}, el("h3", {}, name), curves(width, found, unit, `${name}: ${unit} by step`))))];
}

// ------------------------------------------------------------------------------------------------------------ page
function opening() {
  const facts = Object.entries(D.names).map(([what, name]) => `${what} ${name}`).join(" · ");
  const notes = [...D.notes, ...D.systems.flatMap(system => system.notes.map(note => `${system.name}: ${note}`))];
  const qrels = D.names.qrels || "", short = qrels.includes(":") ? qrels : qrels.split("/").pop().replace(/\.(txt|tsv|qrels)$/, "").replace(/^qrels[._-]/, "");
  const named = short ? ` on ${short}` : "";
  return [el("h1", {}, `${D.systems.length} run${D.systems.length === 1 ? "" : "s"}${named}, ${D.count} queries`), el("p", {class: "soft"}, facts),
    notes.length ? el("details", {id: "notes", open: notes.length < 6 ? "" : null}, el("summary", {}, `Before you believe the numbers (${notes.length})`), el("ul", {}, notes.map(note => el("li", {}, note)))) : null];
}
function origins() {
  return [el("h2", {}, "Where it comes from"), el("p", {}, "This page: ", el("code", {}, D.command)), el("details", {id: "origins"}, el("summary", {}, "The runs: files, checksums, commands"),
    el("ul", {}, D.systems.map(system => el("li", {}, el("b", {}, system.name), system.about ? ` (${system.about})` : "", ": ", el("code", {}, system.path), ", sha256 ", el("code", {}, system.sha256),
      system.command ? [", by ", el("code", {}, system.command)] : "", system.commit ? [", commit ", el("code", {}, system.commit)] : "", `, time: ${system.ms === null ? "not known, " : ""}${system.time}`))))];
}
const unfolded = {};
function draw() {
  readState();
  const focused = document.activeElement && document.activeElement.id, main = document.getElementById("main");
  for (const details of main.querySelectorAll("details")) unfolded[details.id] = details.open;
  const width = Math.max(280, main.clientWidth), half = width > 728 ? Math.floor((width - 28) / 2) : width;
  main.replaceChildren(...[opening(), results(),
    el("div", {class: "controls"}, select("measure", "Measure of the following", D.measures, state.m, m => choose({m}))), comparisons(),
    el("div", {class: "two"}, el("section", {}, ...pareto(half)), el("section", {}, ...recall(half))),
    wins(width), rankings(), training(half), origins()].flat().filter(node => node !== null));
  for (const details of main.querySelectorAll("details")) if (details.id in unfolded) details.open = unfolded[details.id];
  if (focused && document.getElementById(focused)) document.getElementById(focused).focus({preventScroll: true});
}
// A system under the pointer stands out everywhere
addEventListener("mouseover", event => {
  const main = document.getElementById("main"), under = event.target.closest("[data-system]");
  for (const node of main.querySelectorAll(".picked")) node.classList.remove("picked");
  main.classList.toggle("picking", Boolean(under));
  if (under) for (const node of main.querySelectorAll(`[data-system="${under.dataset.system}"]`)) node.classList.add("picked");
});
addEventListener("hashchange", draw);
let drawn = 0;
addEventListener("resize", () => { if (innerWidth !== drawn) { drawn = innerWidth; draw(); } });
draw();
