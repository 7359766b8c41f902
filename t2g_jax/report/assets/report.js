// Draws the token heat maps page by page and reads values out under the pointer or the arrow keys.
// Model text is only ever put into text nodes.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip");
  const PER_PAGE = 5;
  const MANY = 3, LONG = 1200;  // attempts, and tokens of a conversation, that are shown at once

  function make(tag, className, ...children) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.append(...children);
    return element;
  }

  // ---- Numbers and invisible characters, written so that a person can read them
  const signed = (value, digits = 3) =>
    value === null ? "–" : (value < 0 ? "−" : value > 0 ? "+" : "") + Math.abs(value).toFixed(digits);
  const plain = (value, range) => {  // so that a thousandth of the range shows, of six digits
    const size = Math.abs(value), power = (x) => Math.floor(Math.log10(x || 1));
    const digits = Math.max(0, Math.min(3 - power(range), 5 - power(size)));
    const text = value === 0 || (size >= 0.001 && size < 1e6) ? size.toFixed(digits) : size.toExponential(2);
    return (value < 0 ? "−" : "") + text.replace("-", "−");
  };
  const code = (c) => `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
  const harmless = (text) =>  // without controls, and without what would reorder the text around it
    text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, code);
  const visible = (text) => text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu,
    (c) => ({ "\n": "↵", "\t": "⇥", "\r": "␍" })[c] ?? code(c));

  // ---- The read-out, kept beside whatever it reads while the page scrolls; one at a time.
  // A mouse ends it by leaving, a finger by touching something else, the keyboard by moving on.
  let reading = null;  // { element, measure, close }
  function readout(element, clear) {
    function close() {
      clear();
      if (reading?.element !== element) return;
      reading = null;
      tip.hidden = true;
    }
    function open(measure, heading, pairs) {
      if (reading?.element !== element) reading?.close();
      reading = { element, measure, close };
      tip.replaceChildren(make("div", "head", heading),
        ...pairs.map(([name, value]) => make("div", "pair", make("span", "", name), make("span", "", value))));
      tip.hidden = false;
      placeTip();
    }
    element.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") close(); });
    element.addEventListener("pointercancel", close);  // the finger scrolls
    element.addEventListener("blur", close);
    return [open, close];
  }
  addEventListener("pointerdown", (event) => {
    if (!reading?.element.contains(event.target)) reading?.close();
  });
  addEventListener("keydown", (event) => { if (event.key === "Escape") reading?.close(); });
  function placeTip() {
    if (!reading) return;
    const box = reading.measure(), { width, height } = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, box.left + box.width / 2 - width / 2), innerWidth - width - 8);
    const top = box.top - height - 8 > 4 ? box.top - height - 8 : box.bottom + 8;
    tip.style.transform = `translate(${left}px, ${top}px)`;
  }
  addEventListener("scroll", placeTip, { passive: true, capture: true });

  // ---- Tables wider than the screen say so, for as long as there is more to see
  for (const box of document.querySelectorAll(".scroll")) {
    const hint = make("p", "more", "More columns: scroll sideways →");
    hint.setAttribute("aria-hidden", "true");
    box.before(hint);
    const look = () => {
      const hidden = box.scrollWidth - box.clientWidth;
      hint.hidden = hidden < 2;
      hint.classList.toggle("seen", box.scrollLeft >= hidden - 2);
      box.classList.toggle("further", box.scrollLeft < hidden - 2);
    };
    box.addEventListener("scroll", look, { passive: true });
    new ResizeObserver(look).observe(box);
    look();
  }

  // ---- Charts
  function chartReader(svg, chart) {
    const box = svg.querySelector(".axis");
    const left = +box.getAttribute("x1"), right = +box.getAttribute("x2"), bottom = +box.getAttribute("y1");
    const top = 12;
    const steps = [...new Set(chart.lines.flatMap((line) => line.steps))]
      .filter((x) => x !== null).sort((a, b) => a - b);
    if (!steps.length) return;
    const [x0, x1] = chart.xRange, [y0, y1] = chart.yRange;
    const px = (x) => left + (x - x0) / (x1 - x0) * (right - left);
    const py = (y) => bottom - (y - y0) / (y1 - y0) * (bottom - top);
    const overlay = document.createElementNS(svg.namespaceURI, "g");
    svg.append(overlay);
    const [open] = readout(svg, () => overlay.replaceChildren());
    let at = steps.length - 1;

    function nearest(line, x) {
      let best = -1;
      line.steps.forEach((s, i) => {
        if (s !== null && line.values[i] !== null
            && (best < 0 || Math.abs(s - x) < Math.abs(line.steps[best] - x))) best = i;
      });
      return best;
    }
    function add(tag, className, attributes) {
      const element = document.createElementNS(svg.namespaceURI, tag);
      element.setAttribute("class", className);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
      overlay.append(element);
    }
    function show(index) {
      at = Math.max(0, Math.min(steps.length - 1, index));
      const x = steps[at], pairs = [];
      overlay.replaceChildren();
      add("line", "cross", { x1: px(x), x2: px(x), y1: top, y2: bottom });
      for (const line of chart.lines) {
        const i = nearest(line, x);
        if (i < 0) continue;
        const value = line.values[i];
        const away = line.steps[i] === x ? "" : ` (at ${line.steps[i].toLocaleString("en")})`;
        pairs.push([line.label + away, chart.percent ? `${(100 * value).toFixed(1)} %` : plain(value, y1 - y0)]);
        add("circle", `after c${line.color}`, { cx: px(line.steps[i]), cy: py(value), r: 3.5 });
      }
      open(() => {
        const { left, top, bottom, width } = svg.getBoundingClientRect();
        return { left: left + px(x) * width / svg.viewBox.baseVal.width, width: 0, top, bottom };
      }, `${chart.x} ${x.toLocaleString("en")}`, pairs);
    }
    function point(event) {
      const frame = svg.getBoundingClientRect();
      const x = x0 + ((event.clientX - frame.left) * svg.viewBox.baseVal.width / frame.width - left)
        / (right - left) * (x1 - x0);
      let best = 0;
      steps.forEach((s, i) => { if (Math.abs(s - x) < Math.abs(steps[best] - x)) best = i; });
      show(best);
    }
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1 }[event.key];
      if (move === undefined) return;
      event.preventDefault();
      show(tip.hidden && event.key.startsWith("Arrow") ? at : move);
    });
  }
  document.querySelectorAll("[data-chart]").forEach((svg) => chartReader(svg, data.charts[svg.dataset.chart]));

  // ---- Token heat maps
  const cards = document.getElementById("cards");
  if (!cards) return;
  const samples = data.samples.map((sample, index) => ({ ...sample, index }));
  const NAMES = { predicted: "Predicted span reward", true: "True label", advantage: "Advantage" };
  const has = (which) => samples.some((sample) => sample.attempts.some(
    (attempt) => attempt[which].some((value) => value !== null)));
  const views = [
    ["both", "Predicted and true", has("predicted") && has("true") ? ["predicted", "true"] : null],
    ...["predicted", "true", "advantage"].map((which) => [which, NAMES[which], has(which) ? [which] : null]),
  ].filter(([, , panes]) => panes);
  if (!views.length) views.push(["true", NAMES.true, ["true"]]);
  let shown = views[0][2], order = samples, page = 0;

  const scaleOf = (which) => (which === "advantage" ? data.advantageScale : 1);

  function token(text, index, value, scale) {
    const element = make("span", "t", text);
    element.dataset.i = index;
    if (value === null) element.classList.add("none");
    else {
      const strength = Math.min(1, Math.abs(value) / scale);
      if (strength >= 0.02) {
        element.classList.add(value > 0 ? "good" : "poor");
        element.style.setProperty("--a", strength.toFixed(3));
        if (strength >= 0.5) element.classList.add("firm");
      }
    }
    return element;
  }

  // One block a line of text, so that a row of a matrix never wraps and a sentence does.
  const GRID = /^\s*\S{1,4}(\s+\S{1,4})+\s*$/;
  function lines(attempt, which) {
    const rows = [];
    let row;
    const begin = () => { row = make("div", "row"); row.dir = "auto"; rows.push(row); };
    const close = () => { if (GRID.test(row.textContent)) row.classList.add("grid-row"); };
    begin();
    attempt.text.forEach((text, index) => {
      text.split("\n").forEach((piece, k) => {
        if (k > 0) {
          const end = token("", index, attempt[which][index], scaleOf(which));
          end.classList.add("nl");
          row.append(end);
          close();
          begin();
        }
        if (piece) row.append(token(harmless(piece), index, attempt[which][index], scaleOf(which)));
      });
    });
    close();
    if (rows.length > 1 && !row.hasChildNodes()) rows.pop();
    return rows;
  }

  // What of a text matches what is looked for, across the elements that it is split into.
  function mark(element, wanted) {
    if (!wanted) return 0;
    const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT), nodes = [];
    let text = "";
    while (walker.nextNode()) {
      nodes.push([text.length, walker.currentNode]);
      text += walker.currentNode.data;
    }
    const folded = text.toLowerCase();
    if (folded.length !== text.length) return 0;  // letters that become two: places do not agree
    const hits = [];
    for (let at = folded.indexOf(wanted); at >= 0; at = folded.indexOf(wanted, at + wanted.length)) {
      hits.push([at, at + wanted.length]);
    }
    for (const [start, node] of nodes) {
      for (const [from, to] of hits.toReversed?.() ?? [...hits].reverse()) {
        const a = Math.max(from - start, 0), b = Math.min(to - start, node.data.length);
        if (a >= b) continue;
        const piece = node.splitText(a);
        piece.splitText(b - a);
        const hit = make("mark", "");
        piece.replaceWith(hit);
        hit.append(piece);
      }
    }
    return hits.length;
  }

  // Which end of a measure's colors is which; `named` where another key stands beside it.
  function colorKey(which, named) {
    const top = scaleOf(which), digits = top === 1 ? 0 : 2;
    const [down, up] = which === "advantage" ? ["discouraged", "encouraged"] : ["poor", "good"];
    const name = which === "advantage" ? NAMES.advantage : "Labels";
    return [...(named ? [make("span", "key-name", `${name}:`)] : []),
      make("span", "", `${down} ${signed(-top, digits)}`), make("span", "ramp"),
      make("span", "", `${signed(top, digits)} ${up}`)];
  }

  function pane(attempt, which, readers) {
    const box = make("div", "tokens", ...lines(attempt, which));
    box.tabIndex = 0;
    box.setAttribute("role", "group");
    box.setAttribute("aria-label",
      `${NAMES[which]}, ${attempt.text.length} tokens; left and right arrow keys read them`);
    let at = -1;
    const spans = (i) => box.querySelectorAll(`[data-i="${i}"]`);
    const light = (i, on) => readers.forEach((reader) => reader(i, on));
    readers.push((i, on) => spans(i).forEach((span) => span.classList.toggle("on", on)));
    const [open, leave] = readout(box, () => { if (at >= 0) light(at, false); at = -1; });
    function read(i) {
      leave();
      at = Math.max(0, Math.min(attempt.text.length - 1, i));
      light(at, true);
      const span = spans(at)[0];
      if (!span) return;
      const pairs = [];
      for (const key of ["predicted", "true", "advantage"]) {
        const value = attempt[key][at];
        if (value !== null) pairs.push([NAMES[key], signed(value, Number.isInteger(value) ? 0 : 3)]);
      }
      const name = make("code", "", `“${visible(attempt.text[at])}”`);
      open(() => span.getBoundingClientRect(), name,
        [[`token ${at + 1} of ${attempt.text.length}`, pairs.length ? "" : "no value"], ...pairs]);
    }
    box.addEventListener("pointerover", (event) => {
      const span = event.target.closest("[data-i]");
      if (span) read(+span.dataset.i); else leave();
    });
    let last = -1;
    box.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: last - 1, ArrowRight: last + 1, Home: 0, End: attempt.text.length - 1 }[event.key];
      if (move === undefined) return;
      event.preventDefault();
      const target = Math.max(0, Math.min(attempt.text.length - 1, move));
      spans(target)[0]?.scrollIntoView({ block: "nearest", inline: "nearest" });
      read(target);
      last = target;
    });
    // Without colors it would look like one that nothing is known of.
    const level = attempt[which].includes(0) && !attempt[which].some(Boolean);
    const heading = make("h4", "", NAMES[which] + (level ? ", 0 on every token" : ""));
    // Not what was asked for, and not on its scale: with a key of its own.
    const other = (which === "advantage") !== (shown[0] === "advantage");
    return make("div", "pane", heading,
      ...(other ? [make("p", "pane-key", ...colorKey(which, false))] : []), box);
  }

  function gap(sample) {
    let sum = 0, n = 0;
    for (const attempt of sample.attempts) attempt.predicted.forEach((value, i) => {
      if (value !== null && attempt.true[i] !== null) { sum += Math.abs(value - attempt.true[i]); n += 1; }
    });
    return n ? sum / n : null;
  }

  function words(title, text) {
    const body = make("p", "text" + (text ? "" : " absent"), harmless(text) || "(empty)");
    body.dir = "auto";
    return [make("h4", "", title), body];
  }

  // An attempt and what was said of it; in a conversation the critique stands before the next one.
  function turn(attempt, number, of) {
    const readers = [];  // of this attempt: reading a token marks it in every pane
    const known = (which) => attempt[which].some((value) => value !== null);
    // Where there is nothing of what is asked for, what there is.
    const [best = shown[0]] = [...shown, "advantage", "predicted", "true"].filter(known);
    const panes = shown.some(known) ? shown.filter(known) : [best];
    const body = make("div", "body",
      make("div", "panes", ...panes.map((which) => pane(attempt, which, readers))));
    const critique = make("div", "critique");
    if (attempt.critique) critique.append(...words("Judge’s critique", attempt.critique));
    if (attempt.predictedCritique !== null) {
      critique.append(...words("Reward model’s critique", attempt.predictedCritique));
    }
    if (critique.hasChildNodes()) body.append(critique);
    if (of === 1) return body;
    const heading = make("h4", "attempt", `Attempt ${number} of ${of}`);
    heading.append(...facts(attempt));
    const folding = make("details", "turn", make("summary", "", heading), body);
    folding.open = true;
    return folding;
  }

  // Of a long conversation the first attempt and the last are open, of a very long one the last.
  function fold(turns, attempts) {
    const length = attempts.reduce((sum, attempt) => sum + attempt.text.length, 0);
    turns.slice(0, -1).forEach((turn, k) => {
      turn.open = k === 0 ? length <= 2 * LONG : turns.length <= MANY && length <= LONG;
    });
  }

  function facts(attempt) {
    const fact = (name, value) => make("span", "", `${name} `, make("b", "", value));
    const all = [fact("reward", signed(attempt.reward, 2)), fact("tokens", String(attempt.text.length))];
    if (attempt.distillation !== null) {
      all.push(fact("distilled into the first with weight", signed(attempt.distillation)));
    }
    if (attempt.correct !== null) all.unshift(make("span", "", make("b", "", attempt.correct ? "right" : "wrong")));
    return all;
  }

  function card(sample) {
    const { attempts } = sample;
    const anchor = make("a", "anchor", `#${sample.index + 1}`);
    anchor.href = `#sample-${sample.index + 1}`;
    const header = make("header", "", make("h3", "", anchor, harmless(sample.title)));
    if (attempts.length === 1) header.append(...facts(attempts[0]));
    else header.append(make("span", "", "attempts ", make("b", "", String(attempts.length))));
    const distance = gap(sample);
    if (distance !== null) {
      header.append(make("span", "", "mean |predicted − true| ", make("b", "", distance.toFixed(3))));
    }
    const prompt = make("div", "prompt text", harmless(sample.prompt));
    prompt.dir = "auto";
    prompt.tabIndex = 0;
    const details = make("details", "", make("summary", "", "Prompt"), prompt);
    details.open = sample.prompt.length <= 700;
    const turns = attempts.map((attempt, k) => turn(attempt, k + 1, attempts.length));
    if (turns.length > 1) fold(turns, attempts);
    const article = make("article", attempts.length > 1 ? "card conversation" : "card", header, details,
      ...turns);
    article.id = `sample-${sample.index + 1}`;
    const wanted = find.value.trim().toLowerCase();
    for (const text of article.querySelectorAll("h3, .text, .row")) {
      // What holds a hit is not left folded.
      if (mark(text, wanted)) text.closest("details")?.setAttribute("open", "");
    }
    return article;
  }

  // ---- Toolbar
  const toolbar = document.getElementById("toolbar");
  const [sort, find, where, previous, next] =
    ["sort", "find", "where", "previous", "next"].map((id) => document.getElementById(id));

  function draw() {
    reading?.close();
    const first = page * PER_PAGE, slice = order.slice(first, first + PER_PAGE);
    cards.replaceChildren(...(slice.length ? slice.map(card) : [make("p", "empty", "No sample matches.")]));
    where.textContent = order.length
      ? `${first + 1}–${first + slice.length} of ${order.length}`
        + (order.length < samples.length ? ` (${samples.length} in all)` : "")
      : `0 of ${samples.length}`;
    previous.disabled = page === 0;
    next.disabled = first + PER_PAGE >= order.length;
    const [down, up] = shown[0] === "advantage" ? ["discouraged", "encouraged"] : ["poor", "good"];
    document.getElementById("color-key").replaceChildren(
      ...colorKey(shown[0], cards.querySelector(".pane-key") !== null),
      make("span", "t poor firm", `dotted: ${down}`), make("span", "t good firm", `solid: ${up}`),
      make("span", "", "from half of full strength. Exact values: hover or tap, or focus and use ← →"));
  }

  // ---- Filters: one choice each, shown where samples differ in it
  const first = (sample) => sample.attempts[0].correct, last = (sample) => sample.attempts.at(-1).correct;
  const ANSWERS = {
    "right at once": (sample) => first(sample) === true,
    "wrong at first": (sample) => first(sample) === false,
    "right after feedback": (sample) => first(sample) === false && last(sample) === true,
  };
  const filters = [
    ["method", (sample, value) => sample.method === value, [...new Set(samples.map((s) => s.method))]],
    ["step", (sample, value) => String(sample.step) === value,
      [...new Set(samples.map((s) => s.step))].sort((a, b) => a - b).map(String)],
    ["answer", (sample, value) => ANSWERS[value](sample),
      Object.keys(ANSWERS).filter((name) => samples.some(ANSWERS[name]))],
  ].map(([id, passes, options]) => {
    const select = document.getElementById(id);
    select.append(...["any", ...options].map((name, k) => {
      const option = make("option", "", harmless(name));
      option.value = k ? String(k) : "";
      return option;
    }));
    select.closest("label").hidden = options.length < 2;
    select.addEventListener("change", arrange);
    return { select, passes: (sample) => !select.value || passes(sample, options[select.value - 1]) };
  });

  function arrange() {
    const wanted = find.value.trim().toLowerCase();
    order = samples.filter((sample) => {
      if (!filters.every((filter) => filter.passes(sample))) return false;
      if (!wanted) return true;
      sample.haystack ??= [sample.title, sample.prompt, ...sample.attempts.flatMap(
        (attempt) => [attempt.text.join(""), attempt.critique, attempt.predictedCritique])]
        .join("\n").toLowerCase();
      return sample.haystack.includes(wanted);
    });
    const by = (key, sign) => order.sort((a, b) => {
      const [p, q] = [key(a), key(b)];
      return (p === null) - (q === null) || sign * (p - q) || a.index - b.index;
    });
    if (sort.value === "low") by((sample) => sample.attempts[0].reward, 1);
    if (sort.value === "high") by((sample) => sample.attempts[0].reward, -1);
    if (sort.value === "gap") by((sample) => (sample.gap ??= gap(sample)), -1);
    page = 0;
    draw();
  }

  function leaf(by) { page += by; draw(); toolbar.scrollIntoView({ block: "start" }); }

  function follow() {
    const match = /^#sample-(\d+)$/.exec(location.hash);
    const index = match ? +match[1] - 1 : -1;
    if (!samples[index]) return;
    let position = order.indexOf(samples[index]);
    if (position < 0) {
      find.value = "";
      for (const { select } of filters) select.value = "";
      arrange();
      position = order.indexOf(samples[index]);
    }
    if (Math.floor(position / PER_PAGE) !== page) { page = Math.floor(position / PER_PAGE); draw(); }
    document.getElementById(`sample-${index + 1}`)?.scrollIntoView();
  }

  const segments = toolbar.querySelector(".segments");
  for (const [name, label, panes] of views) {
    const radio = make("input");
    Object.assign(radio, { type: "radio", name: "view", value: name, checked: panes === shown });
    radio.addEventListener("change", () => { shown = panes; draw(); });
    segments.append(make("label", "", radio, label));
  }
  segments.hidden = views.length < 2;
  toolbar.addEventListener("submit", (event) => event.preventDefault());
  sort.addEventListener("change", arrange);
  find.addEventListener("input", arrange);
  previous.addEventListener("click", () => leaf(-1));
  next.addEventListener("click", () => leaf(1));
  addEventListener("hashchange", follow);
  toolbar.hidden = false;
  draw();
  follow();
})();
