"use strict";
// Four curves over one step axis: hover reads all of them, a drag zooms all of them, a double click zooms out.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const PAD = { left: 52, right: 10, top: 8, bottom: 22 };
  const data = JSON.parse(document.getElementById("series").textContent);
  const beside = JSON.parse(document.getElementById("others").textContent);
  const slider = document.getElementById("smoothing");
  const logarithmic = document.getElementById("logarithmic");
  const reset = document.getElementById("reset");
  const whole = [Math.min(...ends(0)), Math.max(...ends(-1))];
  let view = whole;
  let hover = null;

  function ends(at) {
    const all = [data, ...beside.runs.map((run) => run.series)];
    return all.flatMap((series) => Object.values(series)).map(([steps]) => steps.at(at)).filter((step) => step !== undefined);
  }

  function element(name, attributes, parent, text) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return parent.appendChild(node);
  }

  // An exponential average over the points, without the pull of its starting value; gaps stay gaps, and what lies off the axis does not pull.
  function smoothed(values, weight, [low, high]) {
    let sum = 0, mass = 0;
    return values.map((value) => {
      if (value === null || weight === 0) return value;
      if (value < low || value > high) return mass ? sum / mass : null;
      sum = weight * sum + (1 - weight) * value;
      mass = weight * mass + (1 - weight);
      return sum / mass;
    });
  }

  // The ends of an axis: of all values, unless a few of them (one in a hundred, or one) lie so far off that the rest would be flat.
  function limits(values) {
    if (!values.length) return [0, 1];
    const sorted = Float64Array.from(values).sort();
    if (sorted.length < 10) return [sorted[0], sorted.at(-1)];
    const few = Math.max(1, Math.floor(sorted.length / 100));
    const bottom = sorted[few], top = sorted.at(-1 - few), far = 4 * ((top - bottom) || Math.abs(top) * 0.1);
    return [sorted.find((value) => value >= bottom - far), sorted.findLast((value) => value <= top + far)];
  }

  function ticks(low, high, count) {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const unit = [1, 2, 5, 10].find((step) => step * power >= rough) * power;
    const first = Math.ceil(low / unit), number = Math.floor(high / unit + 1e-9) - first + 1;
    // Where numbers are so large that a step changes nothing, there would be no end.
    if (!(number >= 0 && number <= 100)) return [];
    return Array.from({ length: number }, (_, i) => (first + i) * unit);
  }

  // On a logarithmic axis: round values, which are 1, 2, 5 … when they span more than a decade.
  function logTicks(low, high, count) {
    if (high - low < 1) return ticks(10 ** low, 10 ** high, count).filter((value) => value > 0).map(Math.log10);
    const found = [];
    for (let power = Math.floor(low); power <= high; power++) {
      for (const digit of high - low > 3 ? [1] : [1, 2, 5]) found.push(Math.log10(digit) + power);
    }
    return found.filter((tick) => tick >= low && tick <= high);
  }

  function shown(value) {
    if (value === null || value === undefined) return "not finite";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(2).replace(/\.?0+e/, "e");
    return String(Number(value.toPrecision(4)));
  }

  function within(steps) {
    return steps.map((step, i) => i).filter((i) => steps[i] >= view[0] && steps[i] <= view[1]);
  }

  // The points just outside, so that a zoomed line runs to the edges.
  function withNeighbours(inside, steps) {
    if (!inside.length) return [];
    const first = Math.max(0, inside[0] - 1), last = Math.min(steps.length - 1, inside.at(-1) + 1);
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  }

  function nearest(steps, step) {
    let best = -1;
    steps.forEach((candidate, i) => { if (best < 0 || Math.abs(candidate - step) < Math.abs(steps[best] - step)) best = i; });
    return best;
  }

  class Chart {
    constructor(figure) {
      [this.steps, this.raw] = data[figure.dataset.series];
      this.others = beside.runs.map((run, i) => {
        const [steps, raw] = run.series[figure.dataset.series];
        return { name: run.name, steps, raw, colour: `var(--r${i + 1})` };
      });
      this.expected = "expected" in figure.dataset ? Number(figure.dataset.expected) : null;
      this.svg = figure.querySelector("svg");
      this.output = figure.querySelector("output");
      this.exact = "exact" in figure.dataset; // a schedule has no noise to smooth away
      this.svg.addEventListener("pointermove", (event) => this.move(event));
      this.svg.addEventListener("pointerleave", () => { if (this.start === undefined) { hover = null; drawMarks(); } });
      this.svg.addEventListener("pointerdown", (event) => {
        if (event.button !== 0) return;
        this.start = this.stepAt(event);
        this.svg.setPointerCapture(event.pointerId);
      });
      this.svg.addEventListener("pointerup", (event) => this.release(event));
      this.svg.addEventListener("pointercancel", () => { this.start = undefined; hover = null; drawMarks(); });
      this.svg.addEventListener("dblclick", () => zoom(whole));
    }

    draw() {
      const box = this.svg.getBoundingClientRect();
      this.width = box.width;
      this.height = box.height;
      this.svg.replaceChildren();
      this.weight = this.exact ? 0 : Number(slider.value);
      const inside = within(this.steps);
      const seen = inside.map((i) => this.raw[i]);
      for (const other of this.others) for (const i of within(other.steps)) seen.push(other.raw[i]);
      if (this.expected !== null) seen.push(this.expected);
      const positive = logarithmic.checked && seen.every((value) => value === null || value > 0);
      this.scale = positive ? Math.log10 : (value) => value;
      const [low, high] = limits(seen.filter((value) => value !== null).map(this.scale));
      const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 0.5;
      [this.low, this.high] = [low >= 0 && low - room < 0 && !positive ? 0 : low - room, high + room];
      const range = [this.low, this.high].map((end) => (positive ? 10 ** end : end));
      const line = smoothed(this.raw, this.weight, range);
      this.line = line;
      for (const other of this.others) other.line = smoothed(other.raw, this.weight, range);
      for (const tick of (positive ? logTicks : ticks)(this.low, this.high, 5)) {
        const y = this.y(tick);
        element("line", { class: "grid", x1: PAD.left, x2: this.width - PAD.right, y1: y, y2: y }, this.svg);
        element("text", { x: PAD.left - 6, y: y + 4, "text-anchor": "end" }, this.svg, shown(positive ? 10 ** tick : tick));
      }
      for (const tick of ticks(view[0], view[1], Math.max(2, Math.floor(this.width / 110)))) {
        if (!Number.isInteger(tick)) continue;
        const x = this.x(tick);
        const anchor = x < PAD.left + 12 ? "start" : x > this.width - 26 ? "end" : "middle";
        element("text", { x, y: this.height - 6, "text-anchor": anchor }, this.svg, tick.toLocaleString("en"));
      }
      for (const mark of beside.marks.filter((mark) => mark.step >= view[0] && mark.step <= view[1])) {
        const x = this.x(mark.step);
        const tick = element("line", { class: "mark", x1: x, x2: x, y1: this.height - PAD.bottom - 9, y2: this.height - PAD.bottom }, this.svg);
        element("title", {}, tick, `step ${mark.step.toLocaleString("en")}: ${mark.text}`);
      }
      const near = withNeighbours(inside, this.steps);
      if (this.weight > 0) this.path("raw", near, this.steps, this.raw);
      for (const other of this.others) this.path("other", withNeighbours(within(other.steps), other.steps), other.steps, other.line, `stroke: ${other.colour}; `);
      this.path("smooth", near, this.steps, line);
      if (this.expected !== null) {
        const y = this.y(this.scale(this.expected));
        element("line", { class: "expected", x1: PAD.left, x2: this.width - PAD.right, y1: y, y2: y }, this.svg);
        element("text", { x: this.width - PAD.right - 4, y: y - 4, "text-anchor": "end", class: "said" }, this.svg, "the plan's expectation");
      }
      for (const i of inside.filter((i) => this.raw[i] === null)) {
        const x = this.x(this.steps[i]);
        element("line", { class: "nan", x1: x, x2: x, y1: PAD.top, y2: PAD.top + 12 }, this.svg);
      }
      this.drawOff(this.steps, this.raw, "var(--accent)");
      for (const other of this.others) this.drawOff(other.steps, other.raw, other.colour);
      this.marks = element("g", {}, this.svg);
    }

    // Arrows at the edge for the points that lie off the axis, one for neighbours, with the farthest value beside it.
    drawOff(steps, raw, colour) {
      let group = [];
      const arrow = () => {
        if (!group.length) return;
        const above = this.scale(raw[group[0]]) > this.high;
        const farthest = group.reduce((a, b) => (Math.abs(raw[b]) > Math.abs(raw[a]) ? b : a));
        const x = this.x(steps[farthest]), y = above ? PAD.top : this.height - PAD.bottom, back = above ? 7 : -7;
        const mark = element("path", { class: "off", style: `fill: ${colour}`, d: `M${x} ${y}l4.5 ${back}h-9z` }, this.svg);
        element("title", {}, mark, `step ${steps[farthest].toLocaleString("en")}: ${shown(raw[farthest])}, off the axis`);
        const left = x > this.width / 2;
        element("text", { x: x + (left ? -8 : 8), y: y + (above ? 8 : -2), "text-anchor": left ? "end" : "start", class: "said" }, this.svg, shown(raw[farthest]));
        group = [];
      };
      for (const i of within(steps)) {
        const value = raw[i] === null ? null : this.scale(raw[i]);
        const off = value !== null && (value > this.high || value < this.low);
        if (!off || (group.length && (value > this.high) !== (this.scale(raw[group[0]]) > this.high))) arrow();
        if (off) group.push(i);
      }
      arrow();
    }

    path(name, indices, steps, values, style = "") {
      const parts = [];
      // A point with a gap on either side has no line: a short one with round ends shows it.
      let alone = false;
      const end = () => { if (alone) parts.push("h0.1"); alone = false; };
      let pen = "M";
      for (const i of indices) {
        if (values[i] === null) { end(); pen = "M"; continue; }
        parts.push(`${pen}${this.x(steps[i]).toFixed(1)} ${this.y(this.scale(values[i])).toFixed(1)}`);
        alone = pen === "M";
        pen = "L";
      }
      end();
      if (!parts.length) return;
      const clip = `inset(0 ${PAD.right}px ${PAD.bottom}px ${PAD.left}px)`;
      const width = parts.length === 2 && parts[1] === "h0.1" ? "stroke-width: 5; " : "";
      element("path", { class: name, d: parts.join(""), "stroke-linecap": "round", style: `${style}${width}clip-path: ${clip} view-box` }, this.svg);
    }

    x(step) {
      const span = view[1] - view[0];
      // The one step of a run lies in the middle.
      if (!span) return (PAD.left + this.width - PAD.right) / 2;
      return PAD.left + ((step - view[0]) / span) * (this.width - PAD.left - PAD.right);
    }

    y(scaled) {
      return PAD.top + ((this.high - scaled) / (this.high - this.low)) * (this.height - PAD.top - PAD.bottom);
    }

    stepAt(event) {
      const x = event.clientX - this.svg.getBoundingClientRect().left;
      const part = (x - PAD.left) / (this.width - PAD.left - PAD.right);
      return view[0] + Math.min(1, Math.max(0, part)) * (view[1] - view[0]);
    }

    move(event) {
      hover = this.stepAt(event);
      drawMarks();
      if (this.start === undefined) return;
      const [from, to] = [this.start, hover].sort((a, b) => a - b).map((step) => this.x(step));
      element("rect", { class: "drag", x: from, width: to - from, y: PAD.top, height: this.height - PAD.top - PAD.bottom }, this.marks);
    }

    release(event) {
      if (this.start === undefined) return;
      const [from, to] = [this.start, this.stepAt(event)].sort((a, b) => a - b);
      this.start = undefined;
      if (this.x(to) - this.x(from) > 8) zoom([from, to]);
    }

    drawMarks() {
      this.marks.replaceChildren();
      const at = hover === null ? this.steps.length - 1 : nearest(this.steps, hover);
      if (at < 0) return;
      const raw = this.raw[at], line = this.line[at];
      const both = this.weight > 0 && raw !== null;
      const found = this.others.map((other) => [other, hover === null ? other.steps.length - 1 : nearest(other.steps, hover)]).filter(([, i]) => i >= 0);
      const told = found.length
        ? [shown(line ?? raw), ...found.map(([other, i]) => shown(other.line[i] ?? other.raw[i]))].join(" · ")
        : shown(raw) + (both && line !== null ? ` (smoothed ${shown(line)})` : "");
      this.output.textContent = `step ${this.steps[at].toLocaleString("en")}: ${told}`;
      if (hover === null) return;
      const x = this.x(this.steps[at]);
      if (x < PAD.left || x > this.width - PAD.right) return;
      element("line", { class: "cross", x1: x, x2: x, y1: PAD.top, y2: this.height - PAD.bottom }, this.marks);
      for (const [other, i] of found) {
        if (other.line[i] === null || Math.abs(this.x(other.steps[i]) - x) > 30) continue;
        const style = `fill: ${other.colour}`;
        element("circle", { class: "dot", style, cx: this.x(other.steps[i]), cy: this.y(this.scale(other.line[i])), r: 3.5 }, this.marks);
      }
      if (line !== null) element("circle", { class: "dot", cx: x, cy: this.y(this.scale(line)), r: 4 }, this.marks);
    }
  }

  const charts = [...document.querySelectorAll(".chart")].map((figure) => new Chart(figure));
  function drawMarks() { charts.forEach((chart) => chart.drawMarks()); }
  function draw() { charts.forEach((chart) => chart.draw()); drawMarks(); }
  function zoom(range) {
    view = range;
    reset.hidden = view === whole;
    hover = null;
    draw();
  }
  slider.addEventListener("input", draw);
  logarithmic.addEventListener("change", draw);
  reset.addEventListener("click", () => zoom(whole));
  window.addEventListener("resize", draw);
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details[data-print]")) details.open = true;
    draw();
  });
  draw();
})();
