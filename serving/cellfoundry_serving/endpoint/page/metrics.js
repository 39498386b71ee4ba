// Prometheus' text format: samples, and what the differences between two readings say.

const SAMPLE = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?$/;
const LABEL = /([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"/g;

// A reading: declared names, and samples as {name, labels, value}.
export function parse(text) {
  const declared = new Set();
  const samples = [];
  for (const line of text.split("\n")) {
    if (line.startsWith("# TYPE ")) declared.add(line.split(" ")[2]);
    const found = line.startsWith("#") ? null : SAMPLE.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, name, value] of (found[2] || "").matchAll(LABEL)) labels[name] = value;
    samples.push({ name: found[1], labels, value: Number(found[3].replace("Inf", "Infinity")) });
  }
  return { declared, samples };
}

function matching(reading, name, labels) {
  return reading.samples.filter(
    (sample) =>
      sample.name === name && Object.entries(labels).every(([label, value]) => sample.labels[label] === value),
  );
}

// Over all other labels; 0 where the name is declared and has counted nothing yet, null where it is unknown.
export function total(reading, name, labels = {}) {
  const found = matching(reading, name, labels);
  if (found.length) return found.reduce((sum, sample) => sum + sample.value, 0);
  const family = name.replace(/_(bucket|sum|count)$/, "");
  return reading.declared.has(name) || reading.declared.has(family) ? 0 : null;
}

// How far a counter rose; null where it is unknown, or fell because the endpoint began anew.
export function rise(before, after, name, labels = {}) {
  const [from, to] = [total(before, name, labels), total(after, name, labels)];
  return from === null || to === null || to < from ? null : to - from;
}

// The quantile of what a histogram has observed between two readings, linear inside a bucket as Prometheus has it;
// null where nothing was. Beyond the last finite bound it is that bound.
export function quantile(before, after, name, share, labels = {}) {
  const bucket = `${name}_bucket`;
  const bounds = [...new Set(matching(after, bucket, labels).map((sample) => sample.labels.le))];
  const buckets = bounds
    .map((le) => {
      const count = rise(before, after, bucket, { ...labels, le });
      return { bound: Number(le.replace("Inf", "Infinity")), count };
    })
    .sort((a, b) => a.bound - b.bound);
  const count = buckets.length ? buckets[buckets.length - 1].count : null;
  if (!count || buckets.some((each) => each.count === null)) return null;
  const rank = share * count;
  const at = buckets.findIndex((each) => each.count >= rank);
  const low = at ? buckets[at - 1] : { bound: 0, count: 0 };
  if (buckets[at].bound === Infinity) return low.bound;
  return low.bound + ((buckets[at].bound - low.bound) * (rank - low.count)) / (buckets[at].count - low.count);
}
