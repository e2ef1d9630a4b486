(() => {
  "use strict";
  const one = (selector, within) => (within || document).querySelector(selector);
  const all = (selector, within) => [...(within || document).querySelectorAll(selector)];
  const make = (name, text, kind) => {
    const element = document.createElement(name);
    // Whatever a model or a file says is text, never markup.
    element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };
  const tell = (words) => { one("#told").textContent = words; };
  const trouble = (words) => { one("#trouble").textContent = words; one("#trouble").hidden = !words; };
  const figure = (x) => (x < 0 ? "\u2212" : x ? "+" : "") + Math.abs(x).toFixed(2);
  let key = "";
  let model = "";
  let directions = [];

  // The server: every answer is JSON, or an error in words.
  const call = async (path, options) => {
    const headers = { ...(options || {}).headers };
    if (key) headers.authorization = `Bearer ${key}`;
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server cannot be reached. Is it still running?");
    }
    if (answer.ok) return answer;
    if (answer.status === 401) {
      const refused = key !== "";
      key = "";
      one("#key").hidden = false;
      one("#secret").focus();
      throw new Error(refused ? "The server does not know this API key." : "The server asks for its API key.");
    }
    const said = await answer.json().catch(() => null);
    const words = said && said.error && said.error.message;
    throw new Error(words || `The server answered ${answer.status} ${answer.statusText}`.trim());
  };

  const slots = async () => {
    const { slots: of, queue } = await (await call("/health")).json();
    one("#slots").textContent = `${of.busy} of ${of.total} slots busy, ${queue.waiting} waiting`;
  };

  // Directions: a row each, whose switches stay when the list is read again.
  const row = (id) => all("#directions li").find((item) => item.dataset.id === id);
  const place = (direction) => `output of block ${direction.block}`;
  const steering = () => {
    const chosen = { ablate: [], add: [] };
    for (const item of all("#directions li")) {
      const scale = Number(one("[type=number]", item).value);
      if (one("[type=checkbox]", item).checked) chosen.ablate.push(item.dataset.id);
      if (scale) chosen.add.push({ direction: item.dataset.id, scale, positions: one("#positions").value });
    }
    for (const kind of ["ablate", "add"]) if (!chosen[kind].length) delete chosen[kind];
    return chosen;
  };
  const described = () => {
    const { ablate = [], add = [] } = steering();
    const words = ablate.length ? [`${ablate.join(", ")} ablated`] : [];
    for (const { direction, scale } of add) words.push(`${direction} added \u00d7 ${String(scale).replace("-", "\u2212")}`);
    return words.join("; ") || "nothing is switched on: as the model is";
  };
  const changed = () => {
    for (const item of all("#directions li")) {
      item.classList.toggle("on", one("[type=checkbox]", item).checked || Number(one("[type=number]", item).value) !== 0);
    }
    one("#steered .what").textContent = described();
  };
  const draw = (direction) => {
    const item = one("#direction").content.firstElementChild.cloneNode(true);
    item.dataset.id = direction.id;
    one("strong", item).textContent = direction.id;
    one("[type=checkbox]", item).setAttribute("aria-label", `Ablate ${direction.id}`);
    const [range, number] = [one("[type=range]", item), one("[type=number]", item)];
    range.setAttribute("aria-label", `Add ${direction.id}, strength by a slider`);
    number.setAttribute("aria-label", `Add ${direction.id}, strength as a number`);
    range.addEventListener("input", () => { number.value = range.value; changed(); });
    // The slider stops at its end; the number holds.
    number.addEventListener("input", () => { range.value = number.value; changed(); });
    one("[data-remove]", item).setAttribute("aria-label", `Remove ${direction.id} from the server`);
    return item;
  };
  const list = async () => {
    const first = !directions.length;
    directions = (await (await call("/v1/directions")).json()).data;
    const items = directions.map((direction) => {
      const item = row(direction.id) || draw(direction);
      const made = direction.made_for ? `, made for ${direction.made_for}` : "";
      one("p", item).textContent = `${place(direction)}, norm ${direction.norm.toPrecision(3)}${made}`;
      return item;
    });
    one("#directions").replaceChildren(...items);
    if (!items.length) one("#directions").append(make("li", "No direction is loaded: both answers will be plain.", "note"));
    if (first && items.length) one("[type=checkbox]", items[0]).checked = true;
    const read = one("#read");
    const before = first && items.length ? directions[0].id : read.value;
    read.replaceChildren(...directions.map(({ id }) => make("option", id)), new Option("nothing", ""));
    read.value = directions.some(({ id }) => id === before) ? before : "";
    changed();
  };
  const load = async () => {
    try {
      model = (await (await call("/v1/models")).json()).data[0].id;
      one("#model").textContent = model;
      document.title = `${model} \u2013 ggsteer serve`;
      await list();
      await slots();
      one("#key").hidden = true;
      trouble("");
    } catch (error) {
      trouble(error.message);
    }
  };
  const upload = async (files) => {
    for (const file of files) {
      const name = file.name.replace(/\.gguf$/i, "");
      try {
        const type = { "content-type": "application/octet-stream" };
        await call(`/v1/directions/${encodeURIComponent(name)}`, { method: "PUT", headers: type, body: file });
        await list();
        trouble("");
        tell(`${name} is loaded`);
      } catch (error) {
        trouble(`${file.name}: ${error.message}`);
      }
    }
  };
  const remove = async (id) => {
    try {
      await call(`/v1/directions/${encodeURIComponent(id)}`, { method: "DELETE" });
      await list();
      tell(`${id} is removed`);
    } catch (error) {
      trouble(error.message);
    }
  };

  // The two answers.
  const panes = {};
  for (const id of ["plain", "steered"]) panes[id] = { id, element: document.getElementById(id), text: "", tokens: [] };
  const both = Object.values(panes);
  let scale = { read: "", centre: 0, most: 0 };
  let same = 0;
  let parted = false;

  const request = (id) => {
    const messages = [{ role: "user", content: one("#prompt").value }];
    if (one("#system").value.trim()) messages.unshift({ role: "system", content: one("#system").value });
    const read = one("#read").value;
    const body = { model, messages, stream: true, stream_options: { include_usage: true } };
    for (const field of ["temperature", "max_tokens", "seed"]) body[field] = Number(document.getElementById(field).value);
    body.steering = { ...(id === "steered" ? steering() : {}), ...(read ? { read } : {}) };
    return body;
  };

  // Colours: blue below the middle, orange above, full at the reading that is farthest from it in either answer.
  const legend = () => {
    const direction = directions.find(({ id }) => id === scale.read);
    const means = direction && direction.readings;
    scale.centre = means ? (means.harmless + means.harmful) / 2 : 0;
    one("#legend").hidden = !direction;
    if (!direction) return;
    one("#meaning").textContent = `Projection on ${direction.id} at the ${place(direction)}, where each token was drawn`
      + (means ? `; the middle lies between the means of the prompts it is made of, ${figure(means.harmless)} and ${figure(means.harmful)}.` : ".");
    colours();
  };
  const colours = () => {
    one("#answers").style.setProperty("--most", scale.most || 1);
    const ends = { low: -scale.most, middle: 0, high: scale.most };
    for (const [id, x] of Object.entries(ends)) document.getElementById(id).textContent = figure(scale.centre + x);
  };
  const append = (pane, text, value) => {
    const span = make("span", text);
    if (value !== undefined) {
      const x = value - scale.centre;
      span.className = x < 0 ? "down" : "up";
      span.style.setProperty("--x", Math.abs(x));
      if (Math.abs(x) > scale.most) {
        scale.most = Math.abs(x);
        colours();
      }
    }
    span.tabIndex = -1;
    pane.tokens.push({ text, value, span, at: pane.text.length });
    pane.text += text;
    one(".said", pane.element).append(span);
  };
  const take = (pane, choice) => {
    const text = choice.delta.content || "";
    const readings = (choice.readings || []).map(({ token, values }) => [token, values[scale.read]]);
    const whole = readings.map(([token]) => token).join("") === text;
    const pieces = whole ? readings : [[text, readings.length ? readings[readings.length - 1][1] : undefined]];
    for (const [token, value] of pieces) if (token) append(pane, token, value);
    compare();
  };
  // Where the answers part: at the first character in which they differ, or where one of two finished ones ends.
  const compare = () => {
    if (parted) return;
    const [a, b] = both.map((pane) => pane.text);
    while (same < a.length && same < b.length && a[same] === b[same]) same += 1;
    const ended = both.every((pane) => pane.done);
    if (same === a.length && same === b.length) {
      if (ended && a) one("#difference").textContent = "Both answers are the same.";
      return;
    }
    if (!ended && (same === a.length || same === b.length)) return;
    parted = true;
    const names = both.map((pane) => {
      const i = pane.tokens.findIndex(({ text, at }) => same < at + text.length);
      if (i < 0) return "its end";
      pane.tokens[i].span.classList.add("first");
      return `“${pane.tokens[i].text.trim() || pane.tokens[i].text}” (token ${i + 1})`;
    });
    one("#difference").textContent = `First difference: plain ${names[0]}, steered ${names[1]}`;
  };
  const table = () => {
    const cell = (token, what) => (token && token[what] !== undefined ? token[what] : "");
    const rows = [];
    for (let i = 0; i < Math.max(...both.map((pane) => pane.tokens.length)); i += 1) {
      const line = make("tr", "");
      line.append(make("td", i + 1, "n"));
      for (const pane of both) {
        const value = cell(pane.tokens[i], "value");
        line.append(make("td", cell(pane.tokens[i], "text").replaceAll("\n", "\u21b5")));
        line.append(make("td", value === "" ? "" : figure(value), "n"));
      }
      rows.push(line);
    }
    one("#readings tbody").replaceChildren(...rows);
    one("#readings").hidden = !rows.length;
  };

  // Server-sent events, as far as this API uses them: lines `data: …`, an empty line after each.
  async function* events(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error("The answer broke off: the server closed the connection.");
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.trim() === "data: [DONE]") return;
        if (line.startsWith("data:")) yield JSON.parse(line.slice(5));
      }
    }
  }
  const ended = { stop: "ended by itself", length: "cut at its length" };
  const answer = async (pane, body) => {
    const said = one(".said", pane.element);
    const figures = one(".figures", pane.element);
    const begun = performance.now();
    let [first, last, n, end] = [0, 0, 0, ""];
    const show = (words) => {
      const rate = n > 1 && last > first ? `, ${((n - 1) / (last - first) * 1000).toFixed(1)} tokens/s` : "";
      const wait = first ? `, the first after ${((first - begun) / 1000).toFixed(2)} s` : "";
      figures.textContent = `${n} ${n === 1 ? "token" : "tokens"}${rate}${wait}${words ? `; ${words}` : ""}`;
    };
    try {
      const json = { "content-type": "application/json" };
      const call_of = { method: "POST", headers: json, body: JSON.stringify(body), signal: pane.abort.signal };
      const response = await call("/v1/chat/completions", call_of);
      for await (const chunk of events(response.body)) {
        if (chunk.error) throw new Error(chunk.error.message);
        const choice = (chunk.choices || [])[0];
        if (choice && choice.delta) {
          take(pane, choice);
          if (pane.tokens.length > n) {
            last = performance.now();
            first = first || last;
            n = pane.tokens.length;
          }
          end = choice.finish_reason || end;
        }
        if (chunk.usage) n = chunk.usage.completion_tokens;
        show("");
      }
      show(ended[end] || end);
      if (!pane.text) said.append(make("em", "(an empty answer)", "note"));
    } catch (error) {
      if (error.name === "AbortError") {
        show("stopped");
      } else {
        show("");
        const words = make("p", error.message, "error");
        words.setAttribute("role", "alert");
        said.append(words);
      }
    }
  };
  let runs = 0;
  const stop = () => { for (const pane of both) if (pane.abort) pane.abort.abort(); };
  const run = async (changes) => {
    // What a run that was stopped still does must not touch the one after it.
    stop();
    runs += 1;
    const now = runs;
    await Promise.all(both.map((pane) => pane.running));
    if (now !== runs) return;
    const [plain, steered] = both.map((pane) => request(pane.id));
    // A plain answer that is whole and would be asked for in the same words again stays.
    const kept = changes && panes.plain.whole === JSON.stringify(plain);
    [same, parted] = [0, false];
    if (!kept) scale = { read: one("#read").value, centre: 0, most: 0 };
    legend();
    one("#difference").textContent = "";
    one("#stop").disabled = false;
    one("#answers").setAttribute("aria-busy", "true");
    changed();
    if (!changes && one(".panes").getBoundingClientRect().top > 0.8 * innerHeight) one("#answers").scrollIntoView();
    for (const token of panes.plain.tokens) token.span.classList.remove("first");
    const running = both.filter((pane) => pane !== panes.plain || !kept);
    for (const pane of running) {
      Object.assign(pane, { text: "", tokens: [], done: false, whole: "", abort: new AbortController() });
      one(".said", pane.element).replaceChildren();
      one(".figures", pane.element).textContent = "";
      pane.element.classList.add("busy");
      const body = pane === panes.plain ? plain : steered;
      pane.running = answer(pane, body).finally(() => {
        pane.element.classList.remove("busy");
        pane.done = !pane.abort.signal.aborted && !one(".error", pane.element);
        if (pane.done) pane.whole = JSON.stringify(body);
        pane.abort = null;
        compare();
      });
    }
    await Promise.all(running.map((pane) => pane.running));
    if (now !== runs) return;
    one("#stop").disabled = true;
    one("#answers").setAttribute("aria-busy", "false");
    table();
    tell(`Answered. ${both.map((pane) => `${pane.id}: ${one(".figures", pane.element).textContent}`).join(". ")}. ${one("#difference").textContent}`);
    slots().catch(() => {});
  };

  // Tokens: the pointer or the arrow keys show what was read at one.
  const tip = one("#tip");
  const show = (span) => {
    const pane = both.find(({ element }) => element.contains(span));
    const i = pane ? pane.tokens.findIndex((token) => token.span === span) : -1;
    tip.hidden = i < 0;
    if (i < 0) return;
    const { text, value } = pane.tokens[i];
    const words = value === undefined ? "" : `\n${scale.read} ${figure(value)}`;
    tip.textContent = `token ${i + 1} “${text.replaceAll("\n", "\u21b5")}”${words}`;
    if (span === document.activeElement) tell(tip.textContent);
    const box = span.getClientRects()[0] || span.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
    const below = box.bottom + 6;
    tip.style.top = `${below + tip.offsetHeight > innerHeight ? box.top - tip.offsetHeight - 6 : below}px`;
  };
  const token = (event) => (event.target.closest ? event.target.closest(".said span") : null);
  document.addEventListener("pointerover", (event) => show(token(event)));
  document.addEventListener("focusin", (event) => show(token(event)));
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  document.addEventListener("keydown", (event) => {
    const said = event.target.closest ? event.target.closest(".said") : null;
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (said && step) {
      const spans = all("span", said);
      const i = spans.indexOf(document.activeElement);
      const next = spans[i < 0 ? 0 : i + step];
      if (next) next.focus();
      event.preventDefault();
    } else if (event.key === "Escape") {
      stop();
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      one("#ask").requestSubmit();
    }
  });

  // The same request for a shell; the key is not in it.
  const curl = (id) => {
    const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
    const bearer = one("#key").dataset.used ? ' -H "Authorization: Bearer $GGSTEER_API_KEY"' : "";
    return `curl -N ${location.origin}/v1/chat/completions${bearer} -H 'Content-Type: application/json' -d ${quote(JSON.stringify(request(id)))}`;
  };
  document.addEventListener("click", async (event) => {
    const pressed = event.target.closest("button");
    if (!pressed) return;
    if (pressed.dataset.curl) {
      await copy(curl(pressed.dataset.curl));
      pressed.textContent = "Copied";
      tell("The request is copied as a curl command");
      setTimeout(() => { pressed.textContent = "Copy as curl"; }, 1500);
    } else if ("remove" in pressed.dataset) {
      // Twice: other programs may be using it.
      if (pressed.dataset.remove) remove(pressed.closest("li").dataset.id);
      pressed.dataset.remove = "sure";
      pressed.textContent = "Remove for all?";
      setTimeout(() => { pressed.dataset.remove = ""; pressed.textContent = "Remove"; }, 4000);
    }
  });

  one("#ask").addEventListener("submit", (event) => { event.preventDefault(); run(false); });
  one("#stop").addEventListener("click", stop);
  one("#steering").addEventListener("change", (event) => {
    if (event.target.id === "file") return;
    changed();
    if (one("#again").checked && panes.plain.text && one("#ask").checkValidity()) run(true);
  });
  one("#key").addEventListener("submit", (event) => {
    event.preventDefault();
    key = one("#secret").value;
    one("#key").dataset.used = "true";
    load();
  });
  one("#file").addEventListener("change", async (event) => {
    await upload([...event.target.files]);
    event.target.value = "";
  });
  const files = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    document.body.classList.add("drag");
  });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("drag"); });
  document.addEventListener("drop", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    document.body.classList.remove("drag");
    upload([...event.dataTransfer.files]);
  });
  load();
})();
