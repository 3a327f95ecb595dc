"use strict";
// The moving parts of the report.  Text of a run reaches the page by textContent only, or escaped.
(async () => {
  const $ = (id) => document.getElementById(id);
  if (typeof DecompressionStream === "undefined") return;  // the tables are there without it
  const root = document.documentElement, opened = [...document.querySelectorAll("details[data-open]")];
  opened.forEach((d) => { d.open = false; });

  async function unpack(id) {
    const bytes = Uint8Array.from(atob($(id).textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }
  const data = JSON.parse(await unpack("data"));
  // wish: the op that somebody has chosen; op: the one that is shown, another where the step lacks that
  const state = { run: 0, at: 0, op: null, wish: null, phase: "all", worst: false, text: "", metric: "flushed" };

  // ---- text and colour ----
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const onPaper = () => root.classList.contains("paper"), night = () => dark.matches && !onPaper();
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const escape = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  function tint(hue) {  // as the style sheet's color-mix: lighter on dark paper
    if (!night()) return hue;
    const mixed = [1, 3, 5].map((i) => Math.round(0.55 * parseInt(hue.slice(i, i + 2), 16) + 0.45 * 244));
    return `rgb(${mixed.join(",")})`;
  }
  function share(part) {
    if (part > 0 && part < 0.001) return "<0.1%";
    if (part < 0.1) return part ? `${(100 * part).toFixed(1)}%` : "0%";
    return part >= 0.995 && part < 1 ? `${Math.min(99.9, 100 * part).toFixed(1)}%` : `${Math.round(100 * part)}%`;
  }
  const brief = (x, digits = 3) => (x === null || x === undefined ? "not finite" : Number(x.toPrecision(digits)).toString());
  const power = (e) => `2<sup>${e < 0 ? "\u2212" : ""}${Math.abs(e)}</sup>`;
  const isPower = (x) => x > 0 && Number.isInteger(Math.log2(x));
  const scaleText = (s) => (isPower(s) ? power(Math.log2(s)) : brief(s));
  function make(tag, text, className) {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  }
  function scaleElement(s) {  // 2^15 as it is written, and as it is read aloud
    const element = make("b", isPower(s) ? undefined : brief(s));
    if (isPower(s)) {
      const exponent = String(Math.log2(s)).replace("-", "\u2212"), sign = make("span", "2");
      sign.append(make("sup", exponent));
      sign.setAttribute("role", "img"); sign.setAttribute("aria-label", `2 to the power ${exponent}`);
      element.append(sign);
    }
    return element;
  }
  function breakable(text) {  // a path may go on in the next line after a slash or a dot
    return text.split(/(?<=[/.])/).flatMap((part) => [part, document.createElement("wbr")]).slice(0, -1);
  }

  // ---- one op of one step ----
  const run = () => data.runs[state.run];
  const step = () => run().player.steps[state.at];
  const phaseOf = (role) => data.phases[role] || "update";
  const short = { weight_gradients: "dW" };
  function look(columns, row) {
    const [path, call, format] = run().player.ops[columns.op[row]];
    const [role] = path.split("/", 1);
    const cut = path.lastIndexOf("/");
    const n = columns.n[row], zeros = columns.zeros[row], of = n ? 1 / n : 0;
    const parts = { zero: zeros * of, flushed: columns.flushed[row] * of, subnormal: columns.subnormal[row] * of,
      overflow: columns.overflow[row] * of, nan: columns.nan[row] * of };
    parts.normal = n ? Math.max(0, 1 - parts.zero - parts.flushed - parts.subnormal - parts.overflow - parts.nan) : 0;
    return { number: columns.op[row], row, path, call, format, role, phase: phaseOf(role),
      scope: path.slice(role.length + 1, Math.max(role.length + 1, cut)), kind: path.slice(cut + 1),
      n, parts, overflowed: columns.overflow[row] - columns.saturated[row], chance: columns.chance[row] > 0, err: columns.err[row], amax: columns.amax[row], hist: columns.hist[row],
      flushed: n > zeros ? columns.flushed[row] / (n - zeros) : 0, lost: columns.updates[row] ? columns.swamped[row] / columns.updates[row] : null };
  }
  const badness = (op) => (op.parts.nan > 0 ? 4 : 0) + (op.parts.overflow > 0 ? 2 : 0) + Math.max(op.flushed, op.lost || 0) + Math.min(0.1, (op.err || 0) / 1e3);
  const bad = (op) => op.overflowed > 0 || op.parts.nan > 0 || (!op.chance && (op.flushed > 0.5 || op.lost > 0.5));
  const aim = (number) => { state.op = state.wish = number; };
  function aimAt(path) {  // a path may be called several times: the first of them in trouble, if any is
    const columns = step(), ops = columns.op.map((_, row) => look(columns, row)).filter((op) => op.path === path);
    const op = ops.find(bad) || ops[0];
    aim(op ? op.number : null);
  }

  function chip(op) {
    const shown = data.kinds.filter((kind) => op.parts[kind] > 0);
    const wide = shown.map((kind) => Math.max(0.04, op.parts[kind]));
    const whole = wide.reduce((a, b) => a + b, 0);
    let at = 0;
    const stops = shown.map((kind, i) => {
      const from = at; at += 100 * wide[i] / whole;
      return `${data.colours[kind]} ${from.toFixed(1)}% ${at.toFixed(1)}%`;
    });
    const element = make("span", undefined, "chip");
    if (stops.length) element.style.background = `linear-gradient(90deg,${stops.join(",")})`;
    element.title = shown.map((kind) => `${kind} ${share(op.parts[kind])}`).join(", ") || "no values";
    element.setAttribute("role", "img"); element.setAttribute("aria-label", element.title);
    return element;
  }

  // ---- the list of ops ----
  function chosen() {
    const columns = step();
    let ops = columns.op.map((_, row) => look(columns, row));
    if (state.phase !== "all") ops = ops.filter((op) => op.phase === state.phase);
    if (state.text) ops = ops.filter((op) => `${op.path} ${op.format}`.includes(state.text));
    if (state.worst) ops.sort((a, b) => badness(b) - badness(a));
    return ops;
  }
  function list() {
    const ops = chosen(), rows = [];
    let phase = "";
    for (const op of ops) {
      if (!state.worst && op.phase !== phase) {
        phase = op.phase;
        const row = make("tr", undefined, "phase"), cell = make("td", phase);
        cell.colSpan = 7; row.append(cell); rows.push(row);
      }
      const row = make("tr"), name = make("td", undefined, "left"), format = make("td", undefined, "left");
      row.dataset.op = op.number;
      name.append(make("span", op.scope ? `${op.scope} ` : "", "op-scope"),
        make("span", op.kind + (op.call ? ` #${op.call}` : ""), bad(op) ? "bad" : "op-kind"), make("span", short[op.role] ? ` ${short[op.role]}` : "", "role"));
      name.title = op.path;
      const hue = make("span", op.format, "fmt");
      const own = (data.formats[op.format] || {}).hue || "#767676";
      hue.style.setProperty("--hue", own === "#000000" ? "var(--ink)" : own);
      hue.title = op.format;
      format.append(hue);
      const health = make("td", undefined, "left"); health.append(chip(op));
      row.append(name, format, health, make("td", share(op.flushed)),
        make("td", share(op.parts.overflow)), make("td", op.lost === null ? "" : share(op.lost)), make("td", op.err === null ? "" : brief(op.err, 2)));
      rows.push(row);
    }
    if (!ops.length) {
      const row = make("tr"), cell = make("td", state.text ? `no op has \u201c${state.text}\u201d in its name or format` : "no op of this phase ran in this step", "left");
      cell.colSpan = 7; row.append(cell); rows.push(row);
    }
    $("rows").replaceChildren(...rows);
    $("count").textContent = `${ops.length} of ${step().op.length} ops`;
    const shows = (number) => ops.some((op) => op.number === number);
    if (shows(state.wish)) state.op = state.wish;
    else if (!shows(state.op)) state.op = ops.length ? [...ops].sort((a, b) => badness(b) - badness(a))[0].number : null;
    mark();
  }
  function mark() {
    for (const row of $("rows").children) {
      if (row.dataset.op !== undefined && Number(row.dataset.op) === state.op) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
  }
  function reveal() {
    const row = [...$("rows").children].find((r) => Number(r.dataset.op) === state.op);
    const box = $("list");
    if (row && (row.offsetTop < box.scrollTop + 60 || row.offsetTop > box.scrollTop + box.clientHeight - 40))
      box.scrollTop = row.offsetTop - box.clientHeight / 2;
  }

  // ---- charts ----
  let Plotly = null;
  const config = { displayModeBar: false };
  const small = () => window.innerWidth < 620;
  function layout(more) {
    const axis = { gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: true, ticks: "", tickfont: { size: 12 } };
    const { axes = ["xaxis", "yaxis"], ...rest } = more;
    const base = { paper_bgcolor: css("--panel"), plot_bgcolor: css("--panel"), margin: { l: 54, r: 16, t: 34, b: 40 },
      font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", size: 13, color: css("--ink") },
      hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--line"), font: { color: css("--ink") }, align: "left" },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", xanchor: "left" }, showlegend: data.runs.length > 1 };
    for (const name of axes) rest[name] = { ...axis, ...(rest[name] || {}) };
    return { ...base, ...rest };
  }
  function paint(box, traces, more) {  // as wide as its box: Plotly's own resizing forgets the height
    const { paddingLeft, paddingRight } = getComputedStyle(box);
    const width = onPaper() ? 640 : box.clientWidth - parseFloat(paddingLeft) - parseFloat(paddingRight);
    Plotly.react(box, traces, layout({ ...more, width }), config);
  }
  function stepAxis() {  // the steps of all runs; a step is whole, and so is a tick
    const steps = data.runs.flatMap((r) => [r.curves.step[0], r.curves.step[r.curves.step.length - 1]]);
    const first = Math.min(...steps), last = Math.max(...steps), edge = 0.04 * (last - first) || 0.5;
    return { title: { text: "step" }, range: [first - edge, last + edge], ...(last - first < 10 ? { tick0: 0, dtick: 1 } : {}) };
  }
  const cursors = {};
  const cursor = (xref) => ({ name: "cursor", type: "line", xref, yref: "paper", x0: 0, x1: 0, y0: 0, y1: 1, visible: false, line: { color: css("--quiet"), width: 1, dash: "dot" } });
  const dashes = ["solid", "dash", "dot", "dashdot"];
  const symbols = ["circle", "diamond", "square", "triangle-up"];
  const same = (number) => data.runs.slice(0, number).filter((r) => r.hue === data.runs[number].hue).length % dashes.length;
  function styleOf(number) {  // runs of one colour differ in their dashes
    const hue = data.runs[number].hue;
    return { color: tint(hue === "#000000" && night() ? "#9aa5b1" : hue), dash: dashes[same(number)] };
  }
  const markOf = (number) => ({ size: 7, symbol: symbols[same(number)] });  // and in their points
  function mean(values, window) {
    const sums = [0], counts = [0];
    values.forEach((v, i) => { sums.push(sums[i] + (v ?? 0)); counts.push(counts[i] + (v === null ? 0 : 1)); });
    return values.map((v, i) => {
      const from = Math.max(0, i + 1 - window), count = counts[i + 1] - counts[from];
      return v === null || !count ? null : (sums[i + 1] - sums[from]) / count;
    });
  }
  function chart(id, traces, more) {
    const box = $(id);
    if (!box) return;
    box.hidden = false;
    const across = (more.axes || ["xaxis"]).filter((name) => name.startsWith("x")).map((name) => cursor(name.replace("axis", "")));
    paint(box, traces, { ...more, shapes: [...across, ...(more.shapes || [])] });
    if (!cursors[id]) box.on("plotly_click", (event) => go(event.points[0].x));
    cursors[id] = box;
  }
  function curves() {
    const losses = [], means = [];
    data.runs.forEach((r, i) => {
      const c = r.curves, style = styleOf(i), name = escape(r.name), window = Math.max(1, Math.ceil(c.step.length / 20));
      losses.push({ x: c.step, y: c.loss, mode: "lines", line: { color: style.color, width: 1 }, opacity: 0.3, hoverinfo: "skip", showlegend: false });
      means.push(mean(c.loss, window));
      const few = c.loss.filter((v) => v !== null).length < 3;  // a line needs two
      losses.push({ x: c.step, y: means[i], mode: few ? "lines+markers" : "lines", name, line: { ...style, width: 2.5 }, marker: markOf(i), hovertemplate: `%{y:.3f}` });
      losses.push({ x: c.step, y: c.valid_loss, mode: "markers", name: `${name}, validation`, showlegend: false,
        marker: { color: css("--panel"), size: 8, line: { color: style.color, width: 2 } }, hovertemplate: `%{y:.3f}` });
    });
    // As high as the curves are, but where one explodes: what is worse than guessing by far leaves at the top.
    const guess = Math.max(...data.runs.map((r) => r.guess)), seen = [...means, ...data.runs.map((r) => r.curves.valid_loss)].flat().filter((v) => v !== null);
    const top = Math.min(Math.max(...seen), 1.6 * guess), low = Math.min(...seen, top), room = 0.06 * (top - low) || 0.5;
    const guessed = data.runs.every((r) => r.guess === guess) && guess < top + room;  // runs on other data have another
    const ends = [0, means[0].length - 1].map((k) => Math.abs((means[0][k] ?? top) - guess)), side = ends[0] > ends[1] ? 0 : 1;  // where the curve is not
    const line = { type: "line", xref: "paper", x0: 0, x1: 1, y0: guess, y1: guess, visible: guessed, line: { color: css("--quiet"), width: 1, dash: "dash" } };
    const changes = data.runs.flatMap((r, i) => r.changes.map((x) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: styleOf(i).color, width: 1.2 } })));
    chart("loss", losses, { height: 330, hovermode: "x unified", xaxis: { ...stepAxis(), unifiedhovertitle: { text: "step %{x}" }, spikecolor: css("--quiet"), spikethickness: 1, spikedash: "solid" }, yaxis: { title: { text: `nats per ${data.unit}` }, range: [low - room, top + room] },
      shapes: [line, ...changes], annotations: [{ x: side, xref: "paper", xanchor: side ? "right" : "left", y: guess, yanchor: "bottom", text: `guessing evenly: ${guess.toFixed(2)}`, showarrow: false, visible: guessed, font: { size: 11.5, color: css("--quiet") } }, ...changes.map((c) => ({ x: c.x0, y: 1, yref: "paper", yanchor: "top", xanchor: "left", text: "policy changes", showarrow: false, font: { size: 11, color: css("--quiet") } })), { text: "line: running mean of the training loss; rings: validation", xref: "paper", yref: "paper", x: 1, y: 1.02, xanchor: "right", yanchor: "bottom", showarrow: false, font: { size: 11.5, color: css("--quiet") }, visible: !small() }] });

    const scales = [];
    data.runs.forEach((r, i) => {
      if (!r.scaled) return;
      const c = r.curves, style = styleOf(i), name = escape(r.name);
      const log = c.scale.map((s) => (s > 0 ? Math.log2(s) : null));
      scales.push({ x: c.step, y: log, mode: "lines", name, line: { ...style, width: 2.2, shape: "hv" }, customdata: c.scale.map(scaleText), hovertemplate: `${name}: %{customdata}<extra></extra>` });
      const at = c.step.map((s, k) => (c.skipped[k] ? k : -1)).filter((k) => k >= 0);
      scales.push({ x: at.map((k) => c.step[k]), y: at.map((k) => log[k]), mode: "markers", showlegend: false, name,
        marker: { symbol: "x", size: 9, color: css("--alert") }, text: at.map((k) => {
          const skip = r.skips[c.step[k]];
          return `step ${c.step[k]} skipped` + (skip && skip[0] ? `<br>${escape(skip[0])}: ${skip[1]} of ${skip[2]} not finite` : "");
        }), hovertemplate: "%{text}<extra></extra>" });
      if (c.headroom.some((h) => h !== null))
        scales.push({ x: c.step, y: c.headroom, yaxis: "y2", mode: "lines", name: `${name}, headroom`, showlegend: false, line: { ...style, width: 1.6 }, hovertemplate: `${name}: %{y:.1f} bits below overflow<extra></extra>` });
    });
    const two = scales.some((t) => t.yaxis === "y2");
    const tops = scales.filter((t) => !t.yaxis && t.mode === "lines").flatMap((t) => t.y).filter((y) => y !== null);
    const span = tops.length ? [Math.min(...tops), Math.max(...tops)] : [0, 1];
    const ticks = [];
    for (let e = Math.floor(span[0]), by = Math.max(1, Math.ceil((span[1] - span[0]) / 6)); e <= Math.ceil(span[1]) + by; e += by) ticks.push(e);
    chart("scale", scales, { height: two ? 400 : 280, axes: two ? ["xaxis", "yaxis", "yaxis2"] : ["xaxis", "yaxis"],
      xaxis: { ...stepAxis(), anchor: two ? "y2" : "y" },
      yaxis: { title: { text: "loss scale" }, domain: [two ? 0.44 : 0, 1], tickvals: ticks, ticktext: ticks.map(power), range: [span[0] - 0.8, span[1] + 0.8] },
      ...(two ? { yaxis2: { title: { text: "headroom<br>(bits)" }, domain: [0, 0.34], rangemode: "tozero", zeroline: true, zerolinecolor: css("--alert") } } : {}) });

    const drift = [];
    data.runs.forEach((r, i) => {
      if (!r.drift.length) return;
      const style = styleOf(i), name = escape(r.name), x = r.drift.map((p) => p.step), line = { ...style, width: 2.2 };
      const about = r.drift.map((p) => `${brief(p.u, 2)} u; worst: ${escape(p.worst)}, ${brief(100 * p.worst_rho, 2)}%`);
      drift.push({ x, y: r.drift.map((p) => 100 * p.rho), name, mode: "lines+markers", line, marker: markOf(i), customdata: about, hovertemplate: `${name}: %{y:.2g}%<br>%{customdata}<extra></extra>` });
      drift.push({ x, y: r.drift.map((p) => p.angle), name, showlegend: false, xaxis: "x2", yaxis: "y2", mode: "lines+markers", line, marker: markOf(i), hovertemplate: `${name}: %{y:.2g}\u00b0<extra></extra>` });
    });
    const stacked = small() || onPaper();
    if (drift.length) chart("drift", drift, { height: stacked ? 460 : 300, axes: ["xaxis", "yaxis", "xaxis2", "yaxis2"],
      xaxis: { ...stepAxis(), ...(stacked ? { title: { text: "" } } : {}), domain: stacked ? [0, 1] : [0, 0.44] },
      yaxis: { ...logAxis(drift, "y"), title: { text: "error of the gradient (%)" }, domain: stacked ? [0.56, 1] : [0, 1] },
      xaxis2: { ...stepAxis(), domain: stacked ? [0, 1] : [0.56, 1], anchor: "y2" },
      yaxis2: { ...logAxis(drift, "y2"), title: { text: "angle (degrees)" }, domain: stacked ? [0, 0.42] : [0, 1], anchor: "x2" } });
  }
  function beside() {  // the way between the weights and the float64 twin's, and what one kick would have become
    const apart = [];
    data.runs.forEach((r, i) => {
      if (!r.twin.length) return;
      const style = styleOf(i), name = escape(r.name), x = r.twin.map((p) => p.step), positive = (key) => r.twin.map((p) => (p[key] > 0 ? 100 * p[key] : null));
      apart.push({ x, y: positive("kick"), name: `${name}, one kick`, mode: "lines", line: { color: style.color, width: 1.4, dash: "dot" }, hovertemplate: `${name}, one kick: %{y:.2g}%<extra></extra>` });
      apart.push({ x, y: positive("apart"), name: `${name}, weights apart`, mode: "lines+markers", line: { ...style, width: 2.4 }, marker: markOf(i),
        customdata: r.twin.map((p) => [brief(100 * p.update, 2), share(p.lost)]), hovertemplate: `${name}: %{y:.2g}% of the way apart<br>the update is %{customdata[0]}% off, %{customdata[1]} of it lost<extra></extra>` });
    });
    if (apart.length) chart("twin", apart, { height: 320, showlegend: true, xaxis: stepAxis(), yaxis: { ...logAxis(apart, "y"), title: { text: "weights apart (% of the way)" } } });
  }
  function logAxis(traces, which) {  // every decade has a tick; fewer than two have 2 and 5 as well
    const values = traces.filter((t) => (t.yaxis || "y") === which).flatMap((t) => t.y).filter((v) => v > 0).map(Math.log10);
    if (!values.length) return { type: "log" };
    const low = Math.min(...values), high = Math.max(...values);
    if (high > low && high - low < 0.5) return { exponentformat: "power" };  // which may have none of these: a linear axis
    const digits = high - low < 1.6 ? [1, 2, 5] : [1];
    const ticks = [];
    for (let k = Math.floor(low) - 1, by = Math.ceil((high - low) / 8) || 1; k <= high + 1; k += by) for (const digit of digits) ticks.push([digit, k]);
    const text = ([digit, k]) => (k >= -4 && k < 5 ? brief(digit * 10 ** k, 1) : `${digit > 1 ? `${digit}\u00b7` : ""}10<sup>${k < 0 ? "\u2212" : ""}${Math.abs(k)}</sup>`);
    return { type: "log", tickvals: ticks.map(([digit, k]) => digit * 10 ** k), ticktext: ticks.map(text) };
  }
  function moveCursors() {
    const here = { x0: step().step, x1: step().step, visible: true };
    for (const box of Object.values(cursors))
      Plotly.relayout(box, { shapes: box.layout.shapes.map((shape) => (shape.name === "cursor" ? { ...shape, ...here } : shape)) });
  }

  // ---- the exponents of one op, over the ranges of formats ----
  function kindOf(exponent, format) {
    if (!format || !format.plain) return null;  // a shared scale decides, which is not in the trace
    if (exponent < format.kept) return "flushed";
    if (exponent > format.emax) return "overflow";
    return exponent < format.emin ? "subnormal" : "normal";
  }
  let limits = null;
  function exponentLimits() {  // the same for all ops and steps of a run, so that pictures compare
    if (limits && limits.run === state.run) return limits;
    let low = Infinity, high = -Infinity;
    for (const columns of run().player.steps) for (const hist of columns.hist) if (hist.length) {
      low = Math.min(low, hist[0] + data.lowest); high = Math.max(high, hist[0] + hist.length - 2 + data.lowest);
    }
    limits = { run: state.run, low: Math.max(-60, Math.min(low, -26)) - 2, high: Math.min(40, Math.max(high, 18)) + 3 };
    return limits;
  }
  function elsewhere(other, number, op, low, high) {  // the same op in another run, at the step nearest to this one
    const found = other.player.ops.findIndex(([path, call]) => path === op.path && call === op.call), here = step().step;
    const near = other.player.steps.filter((c) => c.op.includes(found)).sort((a, b) => Math.abs(a.step - here) - Math.abs(b.step - here))[0];
    if (!near) return null;
    const hist = near.hist[near.op.indexOf(found)], counts = hist.slice(1), whole = counts.reduce((a, b) => a + b, 0);
    if (!whole) return null;
    const first = hist[0] + data.lowest, at = [first - 1, ...counts.map((_, i) => first + i), first + counts.length];
    const inside = (e) => Math.min(high, Math.max(low, e));
    return { type: "scatter", mode: "lines", x: at.map(inside), y: [0, ...counts.map((c) => 100 * c / whole), 0], name: `${escape(other.name)}, step ${near.step}`,
      line: { ...styleOf(number), width: 2, shape: "hvh" }, hovertemplate: `${escape(other.name)}: %{y:.2g}%<extra></extra>` };
  }
  function histogram() {
    const columns = step(), row = columns.op.indexOf(state.op);
    $("histogram").hidden = row < 0;
    if (row < 0) { $("name").textContent = $("said").textContent = ""; return; }
    const op = look(columns, row), own = data.formats[op.format], name = op.path + (op.call ? ` #${op.call}` : "");
    if ($("name").textContent !== name) $("name").replaceChildren(...breakable(name));  // which is read aloud
    const words = data.kinds.filter((kind) => op.parts[kind] > 0).map((kind) => `${kind} ${share(op.parts[kind])}`);
    const source = run().player.sources[op.number];
    $("said").textContent = `${op.n.toLocaleString("en")} values in ${op.format} (max ${own ? own.largest : "?"}): ${words.join(", ")}. Largest ${brief(op.amax)}`
      + (op.err === null ? "" : `; error ${brief(op.err, 2)} u`) + (op.lost === null ? "" : `; ${share(op.lost)} of the updates changed nothing`) + (source ? `. ${source}` : "");
    if (!Plotly) return;
    const { low, high } = exponentLimits();
    const counts = op.hist.slice(1), whole = counts.reduce((a, b) => a + b, 0);
    const at = counts.map((_, i) => op.hist[0] + i + data.lowest);
    const clamp = (x) => Math.min(high, Math.max(low, x));
    const bars = { type: "bar", name: escape(run().name), showlegend: false, x: at.map(clamp), y: counts.map((c) => 100 * c / whole), width: 0.92, marker: { color: at.map((e) => data.colours[kindOf(e, own)] || tint(own ? own.hue : "#767676")) },
      customdata: at.map((e, i) => [power(e), counts[i].toLocaleString("en"), kindOf(e, own) || ""]), hovertemplate: "%{customdata[0]}: %{customdata[1]} values, %{y:.2g}%<br>%{customdata[2]}<extra></extra>" };
    const others = data.runs.map((r, i) => (i === state.run ? null : elsewhere(r, i, op, low, high))).filter((t) => t);
    const names = [...new Set([op.format, ...data.ladder])].filter((name) => data.formats[name]);
    const ranges = [], notes = [];
    names.forEach((name, i) => {
      const f = data.formats[name], y = names.length - i;
      if (f.scaled) {
        notes.push({ x: low, y: y + 0.2, yref: "y2", xanchor: "left", text: `${escape(name)}: up to ${escape(f.largest)} times a scale that its values share`, showarrow: false, font: { size: 11.5, color: css("--ink") } });
        return;
      }
      const from = clamp(f.low), normal = clamp(f.normal), to = clamp(f.high), color = tint(f.hue === "#000000" && night() ? "#9aa5b1" : f.hue);
      ranges.push({ type: "bar", orientation: "h", yaxis: "y2", showlegend: false, x: [normal - from, to - normal], base: [from, normal], y: [y, y], width: 0.44,
        marker: { color: [color, color], opacity: [0.35, 1] }, hovertemplate: `${escape(name)}: ${power(Math.round(f.low))} to ${escape(f.largest)}<extra></extra>` });
      const lost = f.plain && whole ? counts.reduce((a, c, k) => a + (at[k] < f.kept ? c : 0), 0) / whole : null;
      const over = f.plain && whole ? counts.reduce((a, c, k) => a + (at[k] > f.emax ? c : 0), 0) / whole : null;
      const text = `${escape(name)}, max ${escape(f.largest)}` + (lost ? `, ${share(lost)} become 0` : "") + (over ? `, ${share(over)} overflow` : "");
      notes.push({ x: low, y: y + 0.48, yref: "y2", xanchor: "left", text, showarrow: false, font: { size: 11.5, color: name === op.format ? css("--ink") : css("--quiet") } });
    });
    const ticks = [];
    for (let e = Math.ceil(low / 8) * 8; e <= high; e += 8) ticks.push(e);
    let upright = { rangemode: "tozero" };
    if (!whole) {  // say so above what other runs have, which gets no higher than that
      const top = 1.3 * Math.max(0, ...others.flatMap((t) => t.y));
      upright = top ? { range: [0, top] } : { range: [0, 1], showticklabels: false, showgrid: false };
      const none = op.parts.zero + op.parts.nan < 1 ? "exponents were not recorded: observe=hist does" : op.parts.nan ? "no finite value but zero" : "no nonzero value";
      notes.push({ text: none + (none.includes("value") ? (others.length ? " in this run" : ": no exponents to show") : ""), xref: "paper", yref: "paper", x: 0.5, y: top ? 1 : 0.8,
        yanchor: top ? "top" : "middle", showarrow: false, bgcolor: css("--panel"), font: { color: css("--quiet") } });
    }
    paint($("histogram"), [bars, ...others, ...ranges], { height: 250 + 42 * names.length, showlegend: others.length > 0, barmode: "overlay", bargap: 0, annotations: notes,
      margin: { l: 48, r: 10, t: others.length ? 30 : 10, b: 36 }, axes: ["xaxis", "yaxis", "yaxis2"],
      xaxis: { range: [low - 0.6, high + 0.6], tickvals: ticks, ticktext: ticks.map(power), anchor: "y2" },
      yaxis: { title: { text: "% of the nonzero values" }, domain: [0.06 + 0.09 * names.length, 1], ...upright },
      yaxis2: { domain: [0, 0.03 + 0.09 * names.length], range: [0.5, names.length + 0.85], visible: false } });
  }

  // ---- every op at every step ----
  const metrics = { flushed: "flushed", overflow: "overflow", lost: "updates lost", error: "error in u" };
  const glyphs = { forward: "\u25cf", backward: "\u25bc", update: "\u25c6" };
  const most = 40;
  let cells = null;
  function map() {
    const p = run().player, value = { flushed: (op) => (op.n && op.parts.zero === 1 ? "zero" : 100 * op.flushed), overflow: (op) => 100 * (op.parts.overflow + op.parts.nan), lost: (op) => (op.lost === null ? null : 100 * op.lost), error: (op) => op.err }[state.metric];
    const grid = p.ops.map(() => p.steps.map(() => null));
    p.steps.forEach((columns, s) => columns.op.forEach((number, row) => { grid[number][s] = value(look(columns, row)); }));
    const top = grid.map((row, number) => [Math.max(...row.map((v) => (typeof v === "number" ? v : -1))), number]).filter(([v]) => v > 0);
    const kept = top.sort((a, b) => b[0] - a[0]).slice(0, most).map(([, number]) => number);
    const order = {};
    (p.steps[p.steps.length - 1].op).forEach((number, i) => { order[number] = i; });
    kept.sort((a, b) => (order[b] ?? b) - (order[a] ?? a));
    $("map").hidden = !kept.length;
    if (!kept.length) { $("mapnote").textContent = "No op of these steps has any."; return; }
    const kinds = new Set(kept.map((number) => p.ops[number][0].replace(/^(.*?)\/.*\/(.*)$/, "$1 $2")));
    const names = kept.map((number) => { let [path, call] = p.ops[number]; const [role] = path.split("/", 1);
      if (kinds.size === 1) path = path.slice(0, path.lastIndexOf("/"));  // all the same op: where is enough
      const glyph = glyphs[phaseOf(role)];
      return `${escape(path.slice(role.length + 1).replace("/", " ").trim())}${call ? ` #${call}` : ""}${short[role] ? ` ${short[role]}` : ""} ${glyph}`; });
    const error = state.metric === "error", ends = error ? [-1, 2] : [-2, 2];
    const z = kept.map((number) => grid[number].map((v) => (typeof v === "number" ? Math.max(ends[0], Math.log10(Math.max(v, 1e-9))) : null)));
    const zeros = kept.map((number) => grid[number].map((v) => (v === "zero" ? 1 : null)));
    cells = { kept, steps: p.steps.map((c) => c.step) };
    const marked = Object.keys(glyphs).filter((phase) => kept.some((number) => phaseOf(p.ops[number][0].split("/", 1)[0]) === phase));
    $("mapnote").textContent = `${kept.length < top.length ? `The ${kept.length} ops with the largest values of ${top.length} that have any` : `All ${kept.length} ops that have any`}, in the order in which they run${zeros.flat().some((v) => v) ? " (grey: all results were zero before rounding)" : ""}. ${marked.map((phase) => `${glyphs[phase]}\u00a0${phase}`).join(", ")}. Choose a cell to look at it.`;
    const width = small() ? 24 : 44, cut = (text) => (text.length > width ? `\u2026${text.slice(-width)}` : text);
    const marks = error ? { "-1": "0.1", 0: "1", 1: "10", 2: "100" } : { "-2": "0", "-1": "0.1%", 0: "1%", 1: "10%", 2: "100%" };
    paint($("map"), [{ type: "heatmap", z, x: cells.steps.map((_, i) => i), y: kept.map((_, i) => i), xgap: 1, ygap: 1, hoverongaps: false,
      text: kept.map((number, i) => grid[number].map((v, s) => `${names[i]}<br>step ${cells.steps[s]}: ${v === "zero" ? "all results were zero" : v === null ? "" : brief(v, 3) + (error ? " u" : "%")}`)),
      hovertemplate: "%{text}<extra></extra>", zmin: ends[0], zmax: ends[1],
      colorscale: night() ? [[0, "#1f2630"], [0.15, "#4a3b2b"], [0.5, "#b8651b"], [1, "#ffd08a"]] : [[0, "#f1f2f4"], [0.15, "#fbe3c4"], [0.5, "#f0a13a"], [1, "#a63a00"]],
      colorbar: { thickness: 12, outlinewidth: 0, tickvals: Object.keys(marks).map(Number), ticktext: Object.values(marks), x: 1.01 } },
    { type: "heatmap", z: zeros, x: cells.steps.map((_, i) => i), y: kept.map((_, i) => i), xgap: 1, ygap: 1, hoverongaps: false, showscale: false, zmin: 0, zmax: 1,
      colorscale: [[0, data.colours.zero], [1, data.colours.zero]], hovertemplate: "all results were zero before rounding<extra></extra>", opacity: 0.55 }],
    { height: 90 + Math.max(6, kept.length) * 17, showlegend: false, margin: { l: 10, r: 10, t: 8, b: 40 },
      xaxis: { title: { text: "step" }, showgrid: false, tickvals: cells.steps.map((_, i) => i).filter((i) => i % Math.ceil(cells.steps.length / (small() ? 6 : 15)) === 0),
        ticktext: cells.steps.filter((_, i) => i % Math.ceil(cells.steps.length / (small() ? 6 : 15)) === 0) },
      yaxis: { tickvals: kept.map((_, i) => i), ticktext: names.map(cut), showgrid: false, tickfont: { size: 10.5 } }, shapes: [box()] });
    if (!$("map").dataset.ready) {
      $("map").dataset.ready = "yes";
      $("map").on("plotly_click", (event) => {
        const { x, y } = event.points[0];
        aim(cells.kept[y]); state.phase = "all"; state.text = $("filter").value = ""; pressed("phases", "all");
        show(x); reveal();
        $("controls").scrollIntoView({ block: "start" });
      });
    }
  }
  function box() {
    const y = cells ? cells.kept.indexOf(state.op) : -1, x = state.at;
    return { type: "rect", x0: x - 0.5, x1: x + 0.5, y0: y < 0 ? -0.5 : y - 0.5, y1: y < 0 ? cells.kept.length - 0.5 : y + 0.5, line: { color: css("--accent"), width: 2 } };
  }

  // ---- moving about ----
  function show(at) {
    state.at = Math.max(0, Math.min(run().player.steps.length - 1, at));
    const number = step().step, c = run().curves, k = c.step.indexOf(number);
    $("slider").value = state.at;
    $("slider").setAttribute("aria-valuetext", $("where").textContent = `step ${number}`);
    const facts = $("facts");
    facts.replaceChildren();
    if (k >= 0) {
      const say = (label, value) => facts.append(`${facts.childNodes.length ? "\u00a0\u00b7 " : ""}${label} `, typeof value === "string" ? make("b", value) : value);
      say("loss", brief(c.loss[k], 4)); if (run().scaled) say("loss scale", scaleElement(c.scale[k]));
      say("gradient norm", brief(c.grad_norm[k]));
      say("flushed", share(c.flushed[k] ?? 0)); say("updates lost", share(c.lost_updates[k] ?? 0));
      if (c.skipped[k]) say("this step was", "skipped");
    }
    list(); draw(); remember();
  }
  // ---- the place in the page's address, so that it can be sent along ----
  function remember() {
    const place = new URLSearchParams({ run: state.run, step: step().step, op: state.op ?? "" });
    try { history.replaceState(null, "", `#${place}`); } catch { /* some viewers do not let a page do that */ }
  }
  function recall() {
    const place = new URLSearchParams(location.hash.slice(1)), number = Number(place.get("run"));
    if (!place.has("step") || !data.runs[number] || !data.runs[number].player.steps.length) return false;
    $("run").value = number;
    pick(number);
    if (place.get("op") && run().player.ops[Number(place.get("op"))]) aim(Number(place.get("op")));
    go(Number(place.get("step")));
    reveal();
    return true;
  }
  let waiting = false;
  function draw() {  // once a frame, however fast the slider moves
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      histogram();
      if (!Plotly) return;
      moveCursors();
      if (cells && !$("map").hidden) Plotly.relayout($("map"), { shapes: [box()] });
    });
  }
  function nearest(number) {
    const steps = run().player.steps.map((c) => c.step);
    return steps.reduce((best, s, i) => (Math.abs(s - number) < Math.abs(steps[best] - number) ? i : best), 0);
  }
  const go = (number) => { if (run() && run().player.steps.length) show(nearest(number)); };
  function pressed(id, value) {
    for (const button of $(id).children) button.setAttribute("aria-pressed", String(button.dataset.value === value));
  }
  function group(id, values, act) {
    for (const [value, text] of Object.entries(values)) {
      const button = make("button", text);
      button.type = "button"; button.dataset.value = value;
      button.onclick = () => { pressed(id, value); act(value); };
      $(id).append(button);
    }
  }
  let timer = null;
  function pause() { clearInterval(timer); timer = null; $("play").textContent = "play"; }
  function play() {
    if (timer) { pause(); return; }
    if (state.at === run().player.steps.length - 1) show(0);
    $("play").textContent = "pause";
    timer = setInterval(() => { if (state.at >= run().player.steps.length - 1) pause(); else show(state.at + 1); }, 450);
  }
  let home = "";  // where the page itself has put the reader
  const place = () => `${state.at} ${state.op}`;
  function pick(number) {  // a run, at its first op in trouble, or at its end
    state.run = number; limits = cells = null;
    const { trouble, player: { steps } } = run(), first = trouble ? steps.findIndex((c) => c.step === trouble.step) : -1;
    state.at = first < 0 ? steps.length - 1 : first;
    if (first < 0) aim(null); else aimAt(trouble.path);
    const row = step().op.indexOf(state.op), op = row < 0 ? null : look(step(), row);
    $("slider").max = steps.length - 1;
    show(state.at);
    reveal();
    const some = (part, whole) => steps.some((c) => c[part].some((count, row) => count > 0.05 * whole(c, row)));
    if (op) state.metric = op.lost > 0.5 ? "lost" : op.flushed > 0.5 ? "flushed" : "overflow";
    else state.metric = some("flushed", (c, row) => c.n[row] - c.zeros[row]) ? "flushed" : some("swamped", (c, row) => c.updates[row]) ? "lost" : "error";
    pressed("metrics", state.metric);
    if (Plotly) map();
    home = place();
  }
  function turn(number) {  // to another run: to the op and the step that were chosen, or its own trouble
    const moved = place() !== home, here = step().step, [path, call] = run().player.ops[state.wish ?? state.op] || [];
    pick(number);
    if (!moved && run().trouble) return;
    const same = run().player.ops.findIndex((op) => op[0] === path && op[1] === call);
    aim(same < 0 ? null : same);
    go(here);
    reveal();
    if (!moved) home = place();
  }
  function start() {
    const able = data.runs.map((r, i) => i).filter((i) => data.runs[i].player.steps.length);
    if (!$("controls") || !able.length) return;
    for (const i of able) { const option = make("option", data.runs[i].name); option.value = i; $("run").append(option); }
    $("pick").hidden = able.length < 2;
    group("phases", { all: "all", forward: "forward", backward: "backward", update: "update" }, (v) => { state.phase = v; show(state.at); reveal(); });
    group("metrics", metrics, (v) => { state.metric = v; map(); });
    pressed("phases", "all");
    $("run").onchange = (event) => { pause(); turn(Number(event.target.value)); };
    $("slider").oninput = (event) => { pause(); show(Number(event.target.value)); };
    $("back").onclick = () => { pause(); show(state.at - 1); };
    $("forward").onclick = () => { pause(); show(state.at + 1); };
    $("play").onclick = play;
    $("worst").onchange = (event) => { state.worst = event.target.checked; show(state.at); };
    $("filter").oninput = (event) => { state.text = event.target.value.trim(); show(state.at); reveal(); };
    const under = (event) => { const row = event.target.closest("tr[data-op]"); return row ? Number(row.dataset.op) : null; };
    let resting = "";  // rows that a scroll brings under a pointer at rest were not chosen by anybody
    addEventListener("pointermove", (event) => {
      const place = `${event.clientX} ${event.clientY}`, op = place === resting ? null : under(event);
      resting = place;
      if (op !== null && op !== state.op) { aim(op); mark(); draw(); }
    });
    $("rows").onclick = (event) => { const op = under(event); if (op !== null) { aim(op); mark(); draw(); remember(); } };
    $("list").onkeydown = (event) => {
      const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      const rows = [...$("rows").children].filter((r) => r.dataset.op !== undefined);
      const now = rows.findIndex((r) => Number(r.dataset.op) === state.op);
      if (!rows.length) return;
      aim(Number(rows[Math.max(0, Math.min(rows.length - 1, now + by))].dataset.op));
      mark(); reveal(); draw(); remember();
    };
    document.querySelectorAll("a[data-step]").forEach((link) => {
      link.onclick = (event) => {
        const number = Number(link.dataset.run), wanted = Number(link.dataset.step);
        if (!able.includes(number)) return;
        event.preventDefault();
        pause();
        $("run").value = number;
        pick(number);
        state.phase = "all"; state.text = $("filter").value = ""; pressed("phases", "all");
        state.at = nearest(wanted);
        aimAt(link.dataset.path);
        show(state.at);
        reveal();
        $("player").scrollIntoView({ block: "start" });
      };
    });
    root.classList.add("live");  // what stands there without a script is there in print
    $("controls").hidden = false;
    if (!recall()) pick(able[0]);
  }
  start();

  const code = document.createElement("script");
  code.textContent = await unpack("plotly");
  document.head.append(code);
  Plotly = window.Plotly;
  function everything() {
    curves();
    beside();
    if (run().player.steps.length && $("controls")) { histogram(); map(); moveCursors(); }
  }
  everything();
  dark.addEventListener("change", everything);
  let width = window.innerWidth, soon = null;
  addEventListener("resize", () => {  // the height alone changes whenever a phone hides its address bar
    clearTimeout(soon);
    soon = setTimeout(() => { if (width !== window.innerWidth) { width = window.innerWidth; everything(); } }, 100);
  });
  addEventListener("beforeprint", () => { root.classList.add("paper"); opened.forEach((d) => { d.open = true; }); everything(); });
  addEventListener("afterprint", () => { root.classList.remove("paper"); opened.forEach((d) => { d.open = false; }); everything(); });
  root.dataset.ready = "yes";
})();
