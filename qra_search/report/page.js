// Hover shows a plan; a click, a tap or a button puts it into the heat maps. Without this script the page is complete.
"use strict";
(() => {
  const runs = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip");

  const make = (name, text) => {
    const node = document.createElement(name);
    node.textContent = text;
    return node;
  };

  // A small picture of the bits of a plan: kinds down, layers across.
  const picture = (run, point) => {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    const rows = run.grid.length, columns = run.grid[0].length;
    const w = 280 / columns, h = Math.min(Math.max(w, 7), 26);
    svg.setAttribute("viewBox", `0 0 280 ${rows * h}`);
    run.grid.forEach((row, y) => row.forEach((group, x) => {
      if (group < 0) return;
      const cell = document.createElementNS(space, "rect");
      cell.setAttribute("x", x * w);
      cell.setAttribute("y", y * h);
      cell.setAttribute("width", Math.max(w - 1, 1));
      cell.setAttribute("height", h - 1);
      cell.style.fill = `var(--bits-${point.bits[group]})`;
      svg.append(cell);
    }));
    return svg;
  };

  const put = (target, parts) => {
    tip.replaceChildren(...parts);
    tip.hidden = false;
    const at = target.getBoundingClientRect(), box = tip.getBoundingClientRect();
    const x = Math.min(Math.max(at.left + at.width / 2 - box.width / 2, 8), innerWidth - box.width - 8);
    const above = at.top - box.height - 12;
    tip.style.transform = `translate(${x}px, ${above > 8 ? above : Math.min(at.bottom + 12, innerHeight - box.height - 8)}px)`;
  };
  const hide = () => { tip.hidden = true; };

  for (const section of document.querySelectorAll("[data-run]")) {
    const run = runs[section.dataset.run];
    const which = section.querySelector(".which strong"), back = section.querySelector("button.back");

    for (const group of section.querySelectorAll("[data-points]")) {
      const marks = run.marks[group.dataset.points];
      group.querySelectorAll("use").forEach((mark, i) => { mark.dataset.p = marks[i]; });
    }

    const show = (index) => {
      const point = run.points[index];
      for (const kind of ["bits", "rank"]) {
        for (const cell of section.querySelectorAll(`.heat[data-of=${kind}] td[data-g]`)) {
          const at = point[kind][+cell.dataset.g];
          cell.style.setProperty("--cell", `var(--${kind}-${at})`);
          cell.style.setProperty("--on", `var(--${kind}-${at}-text)`);
          cell.textContent = run[kind][at];
        }
      }
      which.textContent = `${point.name}: ${point.lines[0]}`;
      back.hidden = index === run.best;
      for (const mark of section.querySelectorAll("use.on")) mark.classList.remove("on");
      for (const mark of section.querySelectorAll(`use[data-p="${index}"]`)) mark.classList.add("on");
      section.dataset.shown = index;
    };

    section.addEventListener("pointerover", (event) => {
      const mark = event.target.closest("[data-p]"), cell = event.target.closest("td[data-g]");
      if (mark && mark.tagName === "use") {
        const point = run.points[+mark.dataset.p];
        put(mark, [make("b", point.name), ...point.lines.map((line) => make("div", line)), picture(run, point)]);
      } else if (cell) {
        const g = +cell.dataset.g, point = run.points[+(section.dataset.shown ?? run.best)];
        const lines = point ? [`${run.bits[point.bits[g]]} bits, rank ${run.rank[point.rank[g]]}`] : [];
        if (run.damage) lines.push(`sensitivity: +${run.damage[g]} loss at ${run.bits[0]} bits, −${run.gain[g]} by rank ${run.rank.at(-1)}`);
        put(cell, [make("b", run.groups[g]), ...lines.map((line) => make("div", line))]);
      } else hide();
    });
    section.addEventListener("pointerleave", hide);
    section.addEventListener("click", (event) => {
      const mark = event.target.closest("[data-p]");
      if (!mark || !which) return;
      show(+mark.dataset.p);
      if (mark.tagName === "BUTTON") section.querySelector(".plan-of").scrollIntoView();
    });
    if (back) back.addEventListener("click", () => show(run.best));
    for (const button of section.querySelectorAll("button[hidden]:not(.back)")) button.hidden = false;
  }

  for (const box of document.querySelectorAll(".cmd")) {
    const button = make("button", "Copy");
    button.type = "button";
    button.addEventListener("click", async () => {
      const code = box.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    box.append(button);
  }
  addEventListener("scroll", hide, { passive: true });
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  addEventListener("beforeprint", () => { for (const more of document.querySelectorAll("details")) more.open = true; });
})();
