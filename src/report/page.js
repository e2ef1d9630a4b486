(() => {
  "use strict";
  const root = document.documentElement;
  const one = (selector, within) => (within || document).querySelector(selector);
  const all = (selector, within) => [...(within || document).querySelectorAll(selector)];
  const tell = (words) => { one("#told").textContent = words; };
  root.classList.add("scripted");

  for (const slider of all("[data-slider]")) {
    const input = one("input", slider);
    const figures = all("figure", slider);
    const show = () => {
      figures.forEach((figure, i) => { figure.hidden = i !== Number(input.value); });
      one("output", slider).textContent = input.value;
      input.setAttribute("aria-valuetext", one("h3", figures[input.value]).textContent);
    };
    input.addEventListener("input", show);
    show();
  }

  // The marks' titles become values to hover over; the browser's own would come late and small.
  for (const title of all("svg > * > title")) {
    title.parentNode.dataset.tip = title.textContent;
    title.remove();
  }
  const tip = one("#tip");
  document.addEventListener("pointermove", (event) => {
    const mark = event.target.closest && event.target.closest("[data-tip]");
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.dataset.tip;
    const [w, h] = [tip.offsetWidth, tip.offsetHeight];
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - w - 8))}px`;
    tip.style.top = `${event.clientY + h + 24 > innerHeight ? event.clientY - h - 12 : event.clientY + 16}px`;
  });

  // What is saved has the light colours in it, as the PNGs of --png have.
  const file = (svg) => {
    const copy = svg.cloneNode(true);
    for (const mark of all("[data-tip]", copy)) {
      const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
      title.textContent = mark.dataset.tip;
      delete mark.dataset.tip;
      mark.append(title);
    }
    const text = new XMLSerializer().serializeToString(copy);
    return text.replace(">", `><style>${one("#plain").content.textContent}</style>`);
  };
  const save = (blob, as) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = as;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    tell(`${as} saved`);
  };
  const picture = (svg, text, as) => {
    const image = new Image();
    image.onerror = () => tell(`${as} could not be drawn`);
    image.onload = () => {
      const canvas = document.createElement("canvas");
      const box = svg.viewBox.baseVal;
      [canvas.width, canvas.height] = [2 * box.width, 2 * box.height];
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => save(blob, as), "image/png");
    };
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  };

  const csv = (table) => all("tr", table).map((row) => [...row.cells].map((cell) => {
    const words = cell.textContent.trim().replace(/^\u2212(?=[\d.])/, "-");
    // What a spreadsheet would take for a formula is made text.
    const safe = /^[=+@\t\r]|^-(?![\d.])/.test(words) ? `'${words}` : words;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  }).join(",")).join("\r\n") + "\r\n";

  document.addEventListener("click", async (event) => {
    const pressed = event.target.closest("button");
    if (!pressed) return;
    const { save: kind, csv: table, show, more } = pressed.dataset;
    if (kind) {
      const figure = pressed.closest("figure");
      const svg = one("svg", figure);
      const text = file(svg);
      if (kind === "svg") save(new Blob([text], { type: "image/svg+xml" }), `${figure.id}.svg`);
      else picture(svg, text, `${figure.id}.png`);
    } else if (table) {
      await copy(csv(document.getElementById(table)));
      const words = pressed.textContent;
      pressed.textContent = "Copied";
      tell("Table copied as CSV");
      setTimeout(() => { pressed.textContent = words; }, 1500);
    } else if (show) {
      const section = pressed.closest("section");
      for (const other of all("[data-show]", section)) other.setAttribute("aria-pressed", other === pressed);
      for (const row of all(".answers tbody tr", section)) row.hidden = show !== "all" && row.dataset[show] !== "true";
      if (show !== "all") one(".answers", section).classList.add("all");
    } else if (more) {
      document.getElementById(more).classList.add("all");
      pressed.hidden = true;
    }
  });
})();
