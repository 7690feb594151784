"use strict";
const $ = (id) => document.getElementById(id);
const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};
let model = null;
let controller = null;
let preview = null;
// The video that is asked about, and the messages of both modes so far.
let talk = null;

const headers = () => {
  const key = $("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
};

async function failure(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status}.`;
  }
}

async function findModel() {
  const response = await fetch("v1/models", { headers: headers() });
  if (response.status === 401) {
    $("more").open = true;
    $("key").focus();
    throw new Error(`This server needs an API key. ${$("key").value ? "This one is wrong." : ""}`.trim());
  }
  if (!response.ok) throw new Error(await failure(response));
  model = (await response.json()).data[0].id;
  $("model").textContent = `Model: ${model}`;
}

function chosenVideo() {
  const file = $("file").files[0];
  if (!file) return Promise.resolve($("url").value.trim());
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onerror = () => reject(new Error("The file cannot be read."));
    reader.onload = () => {
      const data = reader.result.slice(reader.result.indexOf(",") + 1);
      resolve(`data:${file.type || "video/mp4"};base64,${data}`);
    };
    reader.readAsDataURL(file);
  });
}

async function* chunks(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

async function ask(question, enabled, row) {
  const card = make("section", "card");
  card.append(make("h2", "", enabled ? "With METok" : "Without METok"));
  const history = talk.messages[enabled];
  const text = { type: "text", text: question };
  const video = { type: "video_url", video_url: { url: talk.video } };
  if (history.length) card.append(make("p", "asked", question));
  const messages = [...history, { role: "user", content: history.length ? [text] : [video, text] }];
  const waiting = "…";
  const answer = make("p", "answer", waiting);
  const time = make("p", "scale");
  card.append(answer, time);
  row.append(card);
  const started = performance.now();
  const seconds = () => ((performance.now() - started) / 1000).toFixed(2);
  const result = { enabled, report: null, first: null };
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), signal: controller.signal,
      body: JSON.stringify({
        model, temperature: 0, stream: true, stream_options: { include_usage: true },
        max_completion_tokens: Number($("tokens").value) || 128,
        metok: { enabled },
        messages,
      }),
    });
    if (!response.ok) throw new Error(await failure(response));
    answer.textContent = "";
    for await (const chunk of chunks(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      const text = chunk.choices?.[0]?.delta?.content;
      if (text) {
        result.first ??= seconds();
        answer.textContent += text;
      }
      if (chunk.metok) result.report = chunk.metok;
    }
    result.total = seconds();
    talk.messages[enabled] = [...messages, { role: "assistant", content: answer.textContent }];
    time.textContent = `first token ${result.first ?? "–"} s, all ${result.total} s`;
  } catch (error) {
    if (answer.textContent === waiting) answer.textContent = "";
    const stopped = error.name === "AbortError";
    time.replaceWith(make("p", stopped ? "scale" : "wrong", stopped ? "stopped" : error.message));
  }
  return result;
}

function showEvents(events) {
  const tracks = $("tracks");
  tracks.replaceChildren();
  $("events").hidden = !events.length;
  if (!events.length) return;
  // A relevance of null stands for a number that is not finite.
  const finite = events.map((event) => event.relevance).filter(Number.isFinite);
  const low = Math.min(...finite);
  const span = Math.max(...finite) - low || 1;
  for (const index of new Set(events.map((event) => event.video))) {
    const own = events.filter((event) => event.video === index);
    const start = own[0].start_s;
    const length = own[own.length - 1].end_s - start || 1;
    const track = make("div", "track");
    for (const event of own) {
      const isFinite = Number.isFinite(event.relevance);
      const share = isFinite ? (event.relevance - low) / span : 0;
      const bar = make("button", event.key ? "event key" : "event", event.key ? "★" : "");
      bar.type = "button";
      bar.style.left = `${((event.start_s - start) / length) * 100}%`;
      bar.style.width = `${((event.end_s - event.start_s) / length) * 100}%`;
      bar.style.background = `hsl(172 ${30 + 50 * share}% ${62 - 37 * share}%)`;
      const when = `${event.start_s.toFixed(1)} to ${event.end_s.toFixed(1)} s`;
      const relevance = isFinite ? event.relevance.toFixed(3) : "unknown";
      bar.title = `${when}, relevance ${relevance}${event.key ? ", key event" : ""}`;
      bar.setAttribute("aria-label", bar.title);
      bar.onclick = () => { if (preview) $("video").currentTime = event.start_s; };
      track.append(bar);
    }
    const scale = make("p", "scale");
    scale.append(make("span", "", `${start.toFixed(1)} s`), make("span", "", `${(start + length).toFixed(1)} s`));
    tracks.append(track, scale);
  }
}

function deeperLayers(report) {
  const layers = report.pruning_layers ?? [];
  const stages = report.visual_tokens.stages;
  if (stages.length !== layers.length + 1) return [];
  return layers.map((layer, index) => [`– from layer ${layer} on`, stages[index + 1]]);
}

function showSavings(report) {
  const rows = $("rows");
  rows.replaceChildren();
  $("savings").hidden = !report;
  if (!report) return;
  const flops = (n) => `${(n / 1e9).toFixed(2)} GFLOP`;
  const count = (n) => n.toLocaleString();
  const lines = [
    ["Visual tokens", report.visual_tokens.dense, report.visual_tokens.encoded, count],
    ...deeperLayers(report).map(([name, kept]) => [name, report.visual_tokens.dense, kept, count]),
    ["KV blocks after the prefill", report.kv_blocks.dense, report.kv_blocks.prefill, count],
    ["KV blocks while answering", report.kv_blocks.dense, report.kv_blocks.decode, count],
    ["Decoder prefill", report.decoder_prefill_flops.dense, report.decoder_prefill_flops.metok, flops],
  ];
  for (const [name, dense, metok, shown] of lines) {
    const row = make("tr");
    const saved = dense ? `${Math.round(100 * (1 - metok / dense))} %` : "–";
    row.append(make("td", "", name), make("td", "", shown(dense)), make("td", "", shown(metok)), make("td", "", saved));
    rows.append(row);
  }
}

$("file").onchange = () => {
  if (preview) URL.revokeObjectURL(preview);
  const file = $("file").files[0];
  preview = file ? URL.createObjectURL(file) : null;
  $("preview").hidden = !preview;
  if (preview) $("video").src = preview;
};

// The server decodes formats that a browser may not play.
$("video").onerror = () => { $("preview").hidden = true; };

$("stop").onclick = () => controller?.abort();

async function begin() {
  const video = await chosenVideo();
  if (!video) throw new Error("Choose a video file, or give its address.");
  if (!model) await findModel();
  const mode = new FormData($("form")).get("mode");
  const modes = { both: [false, true], on: [true], off: [false] }[mode];
  talk = { video, modes, messages: { true: [], false: [] } };
}

async function turn(question, prepare) {
  $("ask").disabled = true;
  $("stop").hidden = false;
  $("next").hidden = true;
  controller = new AbortController();
  const row = make("div", "columns");
  $("answers").append(row);
  try {
    await prepare();
    const results = [];
    for (const enabled of talk.modes) {
      if (!controller.signal.aborted) results.push(await ask(question, enabled, row));
    }
    const report = results.find((result) => result.enabled)?.report;
    showEvents(report?.events ?? []);
    showSavings(report);
    // A conversation goes on where every mode has answered.
    $("next").hidden = !results.every((result) => result.total) || results.length < talk.modes.length;
  } catch (error) {
    const card = make("section", "card");
    card.append(make("p", "wrong", error.message));
    row.append(card);
  } finally {
    $("ask").disabled = false;
    $("stop").hidden = true;
  }
}

$("form").onsubmit = async (event) => {
  event.preventDefault();
  $("answers").replaceChildren();
  showEvents([]);
  showSavings(null);
  await turn($("question").value, begin);
};

$("next").onsubmit = async (event) => {
  event.preventDefault();
  const question = $("again").value;
  $("again").value = "";
  await turn(question, async () => {});
};

$("key").onchange = () => {
  model = null;
  findModel().catch((error) => { $("model").textContent = error.message; });
};

findModel().catch((error) => { $("model").textContent = error.message; });
