// Two small charts as SVG: lines over the last minutes, and a bar for each engine step.

import { h, svg } from "./dom.js";

const WIDTH = 600;
const HEIGHT = 150;

/**
 * A chart of lines in `place`; `series` are {name, format}. Returns draw(times, columns, span, top): `times` in seconds
 * with the newest last, a column of values for each series (null where there is none), the seconds across the chart,
 * and the scale's least upper end.
 */
export function lines(place, series) {
  const { picture, high, legend, frame } = skeleton(place, series);
  const pointer = svg("line", { class: "pointer", y1: 0, y2: HEIGHT, visibility: "hidden" });
  let shown = null; // what was drawn last, for the pointer
  let at = null; // where the pointer is, 0-1

  function draw(times, columns, span, top) {
    const newest = times.at(-1);
    const highest = nice(Math.max(top, ...columns.flat().filter(Number.isFinite)));
    const x = (time) => WIDTH * (1 - (newest - time) / span);
    const y = (value) => HEIGHT * (1 - value / highest);
    const paths = columns.flatMap((column, i) => {
      const points = times.map((time, j) => [time, column[j]]).filter(([time, value]) => value !== null && newest - time <= span);
      if (!points.length) return [];
      const line = points.map(([time, value]) => `${x(time).toFixed(1)},${y(value).toFixed(1)}`).join("L");
      const area = `M${x(points[0][0]).toFixed(1)},${HEIGHT}L${line}L${x(points.at(-1)[0]).toFixed(1)},${HEIGHT}Z`;
      return [svg("path", { class: `area s${i}`, d: area }), svg("path", { class: `line s${i}`, d: `M${line}` })];
    });
    picture.replaceChildren(...grid(), ...paths, pointer);
    high.textContent = series[0].format(highest);
    shown = { times, columns, span };
    read();
  }

  /** Show the values under the pointer, or else the newest. */
  function read() {
    if (!shown) return;
    const { times, columns, span } = shown;
    let index = times.length - 1;
    if (at !== null) {
      const wanted = times.at(-1) - span * (1 - at);
      index = times.reduce((best, time, i) => (Math.abs(time - wanted) < Math.abs(times[best] - wanted) ? i : best), 0);
      const position = WIDTH * (1 - (times.at(-1) - times[index]) / span);
      pointer.setAttribute("x1", position);
      pointer.setAttribute("x2", position);
    }
    pointer.setAttribute("visibility", at === null ? "hidden" : "visible");
    const texts = columns.map((column, i) => (column[index] === null ? "–" : series[i].format(column[index])));
    texts.forEach((text, i) => {
      legend[i].textContent = text;
    });
    frame.ariaLabel = series.map(({ name }, i) => `${name} ${texts[i]}`).join(", ");
  }

  frame.onpointermove = (event) => {
    const box = frame.getBoundingClientRect();
    at = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    read();
  };
  frame.onpointerleave = () => {
    at = null;
    read();
  };
  return draw;
}

/**
 * A chart of steps in `place`. Returns draw(steps): of [seconds or null, num_steps, prompt tokens, generated tokens,
 * running requests], the newest last; `room` is how many fit.
 */
export function bars(place, room) {
  const series = [{ name: "prompt tokens" }, { name: "generated tokens" }];
  const { picture, high, legend, frame } = skeleton(place, series);
  return function draw(steps) {
    const shown = steps.slice(-room);
    const times = shown.map(([seconds, number]) => (seconds === null ? null : (seconds * 1000) / number));
    const highest = nice(Math.max(1, ...times.filter((time) => time !== null)));
    const width = WIDTH / room;
    const rects = shown.flatMap(([, number, prompt, generated, running], i) => {
      const height = times[i] === null ? HEIGHT / 20 : Math.max(1, (HEIGHT * times[i]) / highest);
      const share = prompt + generated ? prompt / (prompt + generated) : 0;
      const x = WIDTH - (shown.length - i) * width;
      const took = times[i] === null ? "began after a pause" : `${times[i].toFixed(1)} ms`;
      const what = `${took}: ${prompt} prompt and ${generated} generated tokens, ${running} requests`;
      const bar = (part, from, size) =>
        svg("rect", { class: `bar ${part}${times[i] === null ? " unknown" : ""}`, x: x.toFixed(2), width: (width * 0.8).toFixed(2), y: (HEIGHT - from - size).toFixed(2), height: size.toFixed(2) });
      return [svg("g", {}, svg("title", {}, what), bar("s1", 0, height * (1 - share)), bar("s0", height * (1 - share), height * share))];
    });
    picture.replaceChildren(...grid(), ...rects);
    high.textContent = `${highest} ms`;
    const last = shown.at(-1);
    if (!last) return;
    legend[0].textContent = last[2];
    legend[1].textContent = last[3];
    frame.ariaLabel = `The last step: ${last[2]} prompt and ${last[3]} generated tokens`;
  };
}

function skeleton(place, series) {
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  picture.append(...grid());
  const high = h("span", { className: "high" });
  const frame = h("div", { className: "frame", role: "img", ariaLabel: "no data yet" }, picture, high);
  const legend = series.map(() => h("b", {}, "–"));
  place.append(
    frame,
    h("div", { className: "legend", ariaHidden: "true" }, ...series.map(({ name }, i) => h("span", { className: `key s${i}` }, `${name} `, legend[i]))),
  );
  return { picture, high, legend, frame };
}

function grid() {
  return [0.25, 0.5, 0.75].map((part) => svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: HEIGHT * part, y2: HEIGHT * part }));
}

/** The next of 1, 2, 5, 10, 20, … from `value` on. */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((digit) => digit * power).find((candidate) => candidate >= value * 0.9999);
}
