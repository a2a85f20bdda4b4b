// The chat page. Whatever a model or a person says is put into the page as text (textContent),
// never as HTML. Nothing is stored: a reload begins anew.

const byId = (id) => document.getElementById(id);
const panes = [];
let models = [];
let key = "";

class ApiError extends Error {
  constructor(status, body) {
    super(body?.error?.message ?? `the server answered with status ${status}`);
    this.status = status;
  }
}

async function call(path, options = {}) {
  for (;;) {
    const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
    const response = await fetch(path, { ...options, headers });
    if (response.ok) return response;
    if (response.status === 401) {
      key = await askForKey();
      continue;
    }
    throw new ApiError(response.status, await response.json().catch(() => null));
  }
}

function askForKey() {
  const dialog = byId("key-dialog");
  byId("key").value = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => resolve(byId("key").value.trim()), { once: true }),
  );
}

// The events of a stream, as objects.
async function* events(response) {
  const decoder = new TextDecoder();
  let waiting = "";
  for await (const bytes of chunks(response.body)) {
    waiting += decoder.decode(bytes, { stream: true });
    const lines = waiting.split("\n\n");
    waiting = lines.pop();
    for (const line of lines) {
      const data = line.slice("data: ".length);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(response.status, event);
      yield event;
    }
  }
  throw new Error("the server closed the connection");
}

async function* chunks(body) {
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function settings() {
  const read = (id) => (byId(id).value === "" ? null : Number(byId(id).value));
  return {
    temperature: read("temperature"),
    top_p: read("top-p"),
    max_tokens: read("max-tokens"),
    seed: read("seed"),
  };
}

// A conversation with one model.
class Pane {
  constructor(model) {
    this.element = byId("pane").content.cloneNode(true).firstElementChild;
    this.log = this.element.querySelector(".log");
    this.select = this.element.querySelector("select");
    const label = this.element.querySelector("label");
    this.select.id = `model-${Math.random().toString(36).slice(2)}`;
    label.htmlFor = this.select.id;
    for (const { id } of models) this.select.add(new Option(id, id));
    this.select.value = model;
    this.select.addEventListener("change", () => this.clear());
    byId("panes").append(this.element);
    this.clear();
  }

  clear() {
    this.stop();
    this.messages = [];
    this.log.replaceChildren(this.empty ??= this.log.querySelector(".empty"));
    this.last = null;
    this.retries = 0;
    const about = models.find(({ id }) => id === this.select.value);
    this.element.querySelector(".about").textContent =
      `context: ${about.max_model_len.toLocaleString()} tokens`;
    this.log.setAttribute("aria-label", `Conversation with ${this.select.value}`);
  }

  remove() {
    this.stop();
    this.element.remove();
  }

  stop() {
    this.abort?.abort();
  }

  show(role, text) {
    this.empty.remove();
    const element = byId("message").content.cloneNode(true).firstElementChild;
    element.classList.add(role);
    element.querySelector("h2").textContent = role === "user" ? "You" : this.select.value;
    element.querySelector(".text").textContent = text;
    this.log.append(element);
    this.scroll(true);
    return element;
  }

  note(text, bad = false) {
    const element = document.createElement("p");
    element.className = bad ? "note bad" : "note";
    element.textContent = text;
    this.log.append(element);
    this.scroll(true);
    return element;
  }

  // Follows the reply, unless the reader has scrolled up.
  scroll(always = false) {
    const { log } = this;
    if (always || log.scrollHeight - log.scrollTop - log.clientHeight < 80) {
      log.scrollTop = log.scrollHeight;
    }
  }

  async say(text) {
    // What got no reply, because it was too long, say, would be too long for ever.
    if (this.messages.at(-1)?.role === "user") this.messages.pop();
    this.messages.push({ role: "user", content: text });
    this.show("user", text);
    this.retries = 0;
    await this.reply();
  }

  async retry() {
    if (this.messages.at(-1)?.role === "assistant") this.messages.pop();
    this.last?.remove();
    this.noted?.remove();
    this.retries += 1;
    await this.reply();
  }

  async reply() {
    this.last?.querySelector(".retry").setAttribute("hidden", "");
    const system = byId("system").value.trim();
    const { seed, ...rest } = settings();
    const request = {
      model: this.select.value,
      messages: [...(system ? [{ role: "system", content: system }] : []), ...this.messages],
      stream: true,
      stream_options: { include_usage: true },
      truncation: "auto",
      ...rest,
      // A retry with the same seed would give the same reply.
      ...(seed !== null && { seed: seed + this.retries }),
    };
    const element = (this.last = this.show("assistant", ""));
    const text = element.querySelector(".text");
    element.setAttribute("aria-busy", "true");
    this.noted = null;
    const abort = (this.abort = new AbortController());
    const begun = performance.now();
    let reply = "";
    let first = null;
    let usage = null;
    let finish = null;
    try {
      const response = await call("v1/chat/completions", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(request),
        signal: abort.signal,
      });
      for await (const event of events(response)) {
        if (event.dropped_messages && !this.noted) {
          this.noted = this.note(
            event.dropped_messages === 1
              ? "The oldest message no longer fits the model's context: this reply does without it."
              : `The oldest ${event.dropped_messages} messages no longer fit the model's context: this reply does without them.`,
          );
          this.log.append(element);
        }
        usage = event.usage ?? usage;
        const choice = event.choices[0];
        finish = choice?.finish_reason ?? finish;
        if (choice?.delta.content) {
          first ??= performance.now();
          reply += choice.delta.content;
          text.textContent = reply;
          this.scroll();
        }
      }
    } catch (error) {
      finish = "stopped";
      if (error.name !== "AbortError") {
        finish = "failed";
        this.failed = this.note(sentence(error.message), true);
      }
    }
    element.removeAttribute("aria-busy");
    if (abort !== this.abort || !element.isConnected) return; // cleared meanwhile
    this.abort = null;
    if (finish !== "failed" || reply) {
      this.messages.push({ role: "assistant", content: reply });
    }
    if (finish === "failed") this.noted = this.failed;
    const about = [];
    if (usage) {
      const seconds = (performance.now() - begun) / 1000;
      const tokens = usage.completion_tokens;
      about.push(`${tokens} token${tokens === 1 ? "" : "s"}`);
      if (tokens > 1) about.push(`${Math.round(tokens / seconds).toLocaleString()} tokens/s`);
    }
    if (finish === "length") about.push("longest length reached");
    if (finish === "stopped") about.push("stopped");
    if (finish === "stop" && !reply) about.push("an empty reply");
    element.querySelector(".meta").textContent = about.join(" · ");
    element.querySelector("footer").hidden = false;
    element.querySelector(".retry").hidden = false;
    this.scroll();
    byId("status").textContent =
      finish === "failed" ? "No reply" : `${this.select.value}: ${finish === "stopped" ? "stopped" : "reply complete"}`;
  }
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

function busy(isBusy) {
  byId("send").hidden = isBusy;
  byId("stop").hidden = !isBusy;
  for (const button of document.querySelectorAll(".retry")) button.disabled = isBusy;
}

let running = 0;
async function run(work) {
  running += 1;
  busy(true);
  try {
    await work();
  } finally {
    running -= 1;
    busy(running > 0);
  }
}

function send() {
  const prompt = byId("prompt");
  const text = prompt.value.trim();
  const wrong = [...document.querySelectorAll("#settings input")].find((input) => !input.checkValidity());
  if (wrong) {
    openSettings(true);
    wrong.reportValidity();
    return;
  }
  if (!text || running || !panes.length) return;
  prompt.value = "";
  grow();
  run(() => Promise.all(panes.map((pane) => pane.say(text))));
}

function grow() {
  const prompt = byId("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + 2}px`;
}

function openSettings(open) {
  byId("settings").classList.toggle("open", open);
  byId("settings-toggle").setAttribute("aria-expanded", String(open));
}

function stop() {
  for (const pane of panes) pane.stop();
  byId("prompt").focus();
}

function newChat() {
  for (const pane of panes) pane.clear();
  byId("prompt").focus();
}

function compare(on) {
  byId("compare").setAttribute("aria-pressed", String(on));
  if (on) {
    const shown = panes[0].select.value;
    panes.push(new Pane(models.find(({ id }) => id !== shown).id));
    newChat();
  } else {
    panes.pop().remove();
  }
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("prompt").addEventListener("keydown", (event) => {
  // Enter that ends an input method's composition is not meant to send.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
byId("prompt").addEventListener("input", grow);
byId("stop").addEventListener("click", stop);
byId("new-chat").addEventListener("click", newChat);
byId("compare").addEventListener("click", () => compare(panes.length === 1));
byId("settings-toggle").addEventListener("click", () =>
  openSettings(!byId("settings").classList.contains("open")),
);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || byId("key-dialog").open) return;
  if (running) stop();
  else openSettings(false);
});
byId("panes").addEventListener("click", (event) => {
  if (!event.target.matches(".retry") || running) return;
  const pane = panes.find(({ element }) => element.contains(event.target));
  run(() => pane.retry());
});
for (const id of ["temperature", "top-p"]) {
  const show = () => (byId(`${id}-value`).textContent = Number(byId(id).value).toFixed(2));
  byId(id).addEventListener("input", show);
  show();
}

try {
  models = (await (await call("v1/models")).json()).data;
  panes.push(new Pane(models[0].id));
  byId("compare").hidden = models.length < 2;
} catch (error) {
  const note = document.createElement("p");
  note.className = "note bad";
  note.textContent = sentence(error.message);
  byId("panes").append(note);
}
