// Prometheus' text format, as far as the dashboard reads it: histograms without regard to labels, and their quantiles.

const SAMPLE = /^([\w:]+?)_(bucket|sum|count)\{(.*)\} (\S+)$/;

/** The histograms in `text` by name: {bounds, counts (cumulative), sum, count}. */
export function histograms(text) {
  const found = {};
  for (const line of text.split("\n")) {
    const match = SAMPLE.exec(line);
    if (!match) continue;
    const [, name, part, labels, value] = match;
    const histogram = (found[name] ??= { bounds: [], counts: [], sum: 0, count: 0 });
    if (part === "bucket") {
      const bound = /le="([^"]*)"/.exec(labels)[1];
      histogram.bounds.push(bound === "+Inf" ? Infinity : Number(bound));
      histogram.counts.push(Number(value));
    } else {
      histogram[part] = Number(value);
    }
  }
  return found;
}

/** What was observed between two readings of a histogram. */
export function between(before, after) {
  if (!before) return after;
  return {
    bounds: after.bounds,
    counts: after.counts.map((count, i) => count - before.counts[i]),
    sum: after.sum - before.sum,
    count: after.count - before.count,
  };
}

/**
 * The `q` quantile as {low, high, value}: the bucket it lies in and, taking values as spread evenly there, where in it.
 * Nothing is known within the last bucket, whose `high` is Infinity. Null of an empty histogram.
 */
export function quantile({ bounds, counts, count }, q) {
  if (!count) return null;
  const rank = q * count;
  const index = counts.findIndex((below) => below >= rank);
  const low = index ? bounds[index - 1] : 0;
  const before = index ? counts[index - 1] : 0;
  const share = (rank - before) / (counts[index] - before);
  return { low, high: bounds[index], value: low + (bounds[index] - low) * share };
}
