// The dashboard: follows the server's stream of samples and steps, and reads the latencies from /metrics.

import { call, events, json, ServerError } from "./api.js";
import { bars, lines } from "./charts.js";
import { $, count, duration, h, rate } from "./dom.js";
import { between, histograms, quantile } from "./prometheus.js";

const SPAN = 180; // seconds across a chart
const MAX_SAMPLES = 300;
const STEPS = 160; // bars across the timeline
const RECENT = 60; // seconds that the prefix hit rate is taken over
const METRICS_EVERY = 3000; // ms
const RETRY = 2000; // ms
const LATENCIES = [
  ["Time to first token", "vllm:time_to_first_token_seconds"],
  ["Time per output token", "vllm:request_time_per_output_token_seconds"],
  ["Between two tokens", "vllm:inter_token_latency_seconds"],
  ["Whole request", "vllm:e2e_request_latency_seconds"],
  ["In the queue", "vllm:request_queue_time_seconds"],
];
const TILES = ["generated", "prompt", "running", "waiting", "KV cache", "prefix hits", "first token p50", "per token p50"];

const percent = (part) => `${(part * 100).toFixed(part < 0.0995 ? 1 : 0)} %`;
const draw = {
  throughput: lines($("throughput"), [{ name: "generated", format: rate }, { name: "prompt", format: rate }]),
  requests: lines($("requests"), [{ name: "running", format: count }, { name: "waiting", format: count }]),
  cache: lines($("cache"), [{ name: "in use", format: percent }]),
  prefix: lines($("prefix"), [{ name: "last minute", format: percent }]),
  steps: bars($("steps"), STEPS),
};
const tiles = Object.fromEntries(TILES.map((name) => [name, h("b", {}, "–")]));
let facts = null;
let samples = [];
let steps = [];
let readings = []; // of /metrics: {time (ms), histograms}, the first one since the start

// -- the stream ------------------------------------------------------------------------------------------------------

function take(report) {
  samples = [...samples, ...report.samples].slice(-MAX_SAMPLES);
  steps = [...steps, ...report.steps].slice(-STEPS);
  if (report.steps.length) draw.steps(steps);
  if (report.samples.length) show(samples);
}

function show(samples) {
  const now = samples.at(-1);
  const column = (value) => samples.map(value);
  const times = column(({ time }) => time);
  const speed = (field) => column((sample) => sample[field] / sample.seconds);
  const hits = column((sample) => hitRate(samples, sample.time));
  draw.throughput(times, [speed("generation_tokens"), speed("prompt_tokens")], SPAN, 1);
  draw.requests(times, [column(({ running }) => running), column(({ waiting }) => waiting)], SPAN, 1);
  draw.cache(times, [column((sample) => sample.kv_cache_usage)], SPAN, 0.01);
  draw.prefix(times, [hits], SPAN, 1);
  tile("generated", `${rate(now.generation_tokens / now.seconds)} tok/s`);
  tile("prompt", `${rate(now.prompt_tokens / now.seconds)} tok/s`);
  tile("running", count(now.running));
  tile("waiting", count(now.waiting));
  tile("KV cache", percent(now.kv_cache_usage));
  tile("prefix hits", hits.at(-1) === null ? "–" : percent(hits.at(-1)));
}

/** Which part of the prompt tokens that were looked up in the last minute before `time` was found; null if none were. */
function hitRate(samples, time) {
  const recent = samples.filter((sample) => sample.time <= time && time - sample.time < RECENT);
  const sum = (field) => recent.reduce((total, sample) => total + sample[field], 0);
  const queries = sum("prefix_cache_queries");
  return queries ? sum("prefix_cache_hits") / queries : null;
}

function tile(name, text) {
  tiles[name].textContent = text;
}

// -- latencies -------------------------------------------------------------------------------------------------------

async function readMetrics() {
  if (document.hidden) return; // nobody is looking
  const now = performance.now();
  readings.push({ time: now, histograms: histograms(await (await call("metrics")).text()) });
  readings = readings.filter(({ time }) => now - time < 301_000);
  showLatencies();
}

function showLatencies() {
  if (!readings.length) return;
  const last = readings.at(-1);
  const window = Number($("window").value) * 1000;
  const from = window === Infinity ? null : readings.find(({ time }) => last.time - time <= window);
  const rows = LATENCIES.map(([label, name]) => {
    const histogram = between(from?.histograms[name], last.histograms[name]);
    const cells = [0.5, 0.9, 0.99].map((q) => bounded(quantile(histogram, q)));
    const mean = histogram.count ? duration(histogram.sum / histogram.count) : "–";
    return h("tr", {}, h("th", { scope: "row" }, label), ...[mean, ...cells, count(histogram.count)].map((text) => h("td", {}, text)));
  });
  $("latency").tBodies[0].replaceChildren(...rows);
  tile("first token p50", rows[0].cells[2].textContent);
  tile("per token p50", rows[1].cells[2].textContent);
}

/** A quantile as text, no more exact than its bucket lets it be known. */
function bounded(found) {
  if (found === null) return "–";
  if (found.low === 0) return `< ${duration(found.high)}`;
  return found.high === Infinity ? `> ${duration(found.low)}` : duration(Number(found.value.toPrecision(2)));
}

// -- what does not change --------------------------------------------------------------------------------------------

function showFacts() {
  const names = facts.models.join(", ");
  $("model").textContent = names;
  document.title = `${names} · Headrace`;
  const longest = Math.max(...facts.ledger.map(([, seconds]) => seconds), 1e-9);
  const rows = facts.ledger.map(([stage, seconds, bytes]) =>
    h("tr", {},
      h("th", { scope: "row" }, stage),
      h("td", {}, h("meter", { max: longest, value: seconds, ariaLabel: `${stage}: share of the longest stage` })),
      h("td", {}, seconds.toFixed(2)),
      h("td", {}, bytes ? (bytes / 2 ** 30).toFixed(2) : "")));
  $("ledger").tBodies[0].replaceChildren(...rows);
  const entries = {
    Model: `${facts.architecture}, ${facts.dtype}`,
    Device: facts.device,
    Context: `${count(facts.max_model_len)} tokens`,
    "KV cache": `${count(facts.kv_cache_tokens)} tokens in blocks of ${facts.block_size}; ${facts.max_concurrency.toFixed(1)} requests of full length`,
    Version: facts.version,
    "Up for": duration(facts.uptime),
  };
  $("facts").replaceChildren(...Object.entries(entries).flatMap(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]));
}

// -- start -----------------------------------------------------------------------------------------------------------

function state(text, kind) {
  $("state").textContent = text;
  $("state").className = kind;
}

function problem(text) {
  $("problem").textContent = text ?? "";
  $("problem").hidden = !text;
}

/** Follow the stream until it ends, which it does with an error. */
async function follow() {
  facts = await json("dashboard/facts");
  showFacts();
  if (!facts.statistics) {
    state("no statistics", "off");
    problem("This server keeps no statistics: it was started with --disable-log-stats.");
    return true;
  }
  samples = [];
  steps = [];
  for await (const report of events(await call("dashboard/stream"))) {
    state("live", "live");
    problem(null);
    take(report);
  }
  throw new ServerError("The server stopped.");
}

async function start() {
  $("tiles").append(...Object.entries(tiles).map(([name, value]) => h("div", { className: "tile" }, h("span", {}, name), value)));
  $("window").onchange = showLatencies;
  setInterval(() => facts?.statistics && readMetrics().catch((error) => error instanceof ServerError || Promise.reject(error)), METRICS_EVERY);
  for (let ended = false; !ended; ) {
    try {
      ended = await follow();
    } catch (error) {
      if (!(error instanceof ServerError)) throw error;
      state("not connected", "off");
      problem(error.message);
      await new Promise((resolve) => setTimeout(resolve, RETRY));
    }
  }
}

start();
