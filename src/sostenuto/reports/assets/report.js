"use strict";
// Tooltips: marks carry a <title> for readers without scripts; here it becomes a quick label beside the pointer.
(() => {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.setAttribute("aria-hidden", "true");
  document.body.append(tip);
  for (const title of document.querySelectorAll("svg.chart circle > title, svg.chart rect > title, svg.strip circle > title")) {
    const mark = title.parentElement;
    mark.dataset.tip = title.textContent;
    mark.setAttribute("aria-label", title.textContent);
    title.remove();
  }
  for (const title of document.querySelectorAll("svg > title")) title.remove(); // the svg keeps its aria-label
  document.addEventListener("pointermove", (event) => {
    const mark = event.target.closest ? event.target.closest("[data-tip]") : null;
    tip.classList.toggle("on", Boolean(mark));
    if (!mark) return;
    tip.textContent = mark.dataset.tip;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(6, Math.min(event.clientX + 14, innerWidth - box.width - 8)) + "px";
    tip.style.top = (event.clientY + box.height + 24 > innerHeight ? event.clientY - box.height - 12 : event.clientY + 16) + "px";
  });
})();
// Sorting: headers of sortable tables become buttons; cells carry their number in data-v.
(() => {
  const value = (row, column) => {
    const cell = row.cells[column];
    return "v" in cell.dataset ? (cell.dataset.v === "" ? NaN : Number(cell.dataset.v)) : cell.textContent.trim();
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      if (!head.textContent.trim() || "fixed" in head.dataset) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : head.dataset.up === undefined;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const sign = down ? -1 : 1;
        const compared = (a, b) => {
          const x = value(a, column), y = value(b, column);
          if (typeof x === "string" || typeof y === "string") return sign * String(x).localeCompare(String(y));
          if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
          return sign * (x - y);
        };
        body.append(...[...body.rows].sort(compared));
      });
    });
  }
})();
