"use strict";

const axes = JSON.parse(document.getElementById("axes").textContent);

function figures(kind, block) {
  const roots = Bokeh.documents.flatMap((doc) => doc.roots());
  return roots.filter((figure) => figure.tags[0] === kind && figure.tags[1] === block);
}

function show(controls, changed, visible) {
  for (const button of changed) button.setAttribute("aria-pressed", String(visible));
  const off = [...controls.querySelectorAll(".group[aria-pressed=false]")];
  const hidden = new Set(off.map((button) => Number(button.dataset.group)));
  const block = Number(controls.dataset.block);
  for (const figure of figures("curves", block))
    for (const renderer of figure.renderers) renderer.visible = !hidden.has(renderer.tags[1]);
  for (const figure of figures("final", block))
    for (const { data_source: source } of figure.renderers)
      source.data = { ...source.data, alpha: Array.from(source.data.group, (group) => (hidden.has(group) ? 0 : 1)) };
}

function against(block, axis) {
  const { end, label } = axes[block][axis];
  for (const figure of figures("curves", block)) {
    for (const renderer of figure.renderers) {
      const [kind] = renderer.tags;
      const glyphs = [renderer.glyph, renderer.nonselection_glyph, renderer.muted_glyph];
      for (const glyph of glyphs.filter((glyph) => glyph && glyph.setv)) {
        const moved = { x: { field: `x_${axis}` } };
        if (kind === "mean") moved.y = { field: `m_${axis}` };
        if (kind === "band") Object.assign(moved, { y1: { field: `lo_${axis}` }, y2: { field: `hi_${axis}` } });
        glyph.setv(moved);
      }
    }
    figure.below[0].axis_label = label;
    const [start, stop] = [-0.01 * end, 1.02 * end];
    figure.x_range.setv({ start, end: stop, reset_start: start, reset_end: stop });
    for (const tool of figure.toolbar.tools)
      if (tool.tooltips)
        tool.tooltips = tool.tooltips.map(([name, text]) => [name, text.replace(/_(tokens|seconds|flops)/g, `_${axis}`)]);
  }
}

function sort(header) {
  const row = header.parentElement;
  const column = [...row.children].indexOf(header);
  const body = header.closest("table").tBodies[0];
  const rising = header.getAttribute("aria-sort") !== "ascending";
  const value = (line) => {
    const cell = line.children[column];
    const text = cell.dataset.order ?? cell.textContent.trim();
    const missing = cell.dataset.order === undefined && (text === "–" || text === "");
    return { text, number: text === "" ? NaN : Number(text), missing };
  };
  const compare = (a, b) =>
    Number.isNaN(a.number) || Number.isNaN(b.number) ? a.text.localeCompare(b.text, "en", { numeric: true }) : a.number - b.number;
  const lines = [...body.rows].map((line) => ({ line, ...value(line) }));
  lines.sort((a, b) => (a.missing || b.missing ? a.missing - b.missing : rising ? compare(a, b) : compare(b, a)));
  for (const other of row.children) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", rising ? "ascending" : "descending");
  body.append(...lines.map(({ line }) => line));
}

for (const button of document.querySelectorAll(".sortable thead button"))
  button.addEventListener("click", () => sort(button.parentElement));

for (const controls of document.querySelectorAll(".controls")) {
  const groups = [...controls.querySelectorAll(".group")];
  for (const button of groups)
    button.addEventListener("click", () => show(controls, [button], button.getAttribute("aria-pressed") === "false"));
  controls.querySelector(".all").addEventListener("click", () => show(controls, groups, true));
  controls.querySelector(".none").addEventListener("click", () => show(controls, groups, false));
  for (const choice of controls.querySelectorAll("input"))
    choice.addEventListener("change", () => against(Number(controls.dataset.block), choice.value));
}

function toolbars(visible) {
  for (const doc of window.Bokeh?.documents ?? []) for (const figure of doc.roots()) figure.toolbar.visible = visible;
}

window.addEventListener("beforeprint", () => toolbars(false));
window.addEventListener("afterprint", () => toolbars(true));

// A finger on a chart must scroll the page, so dragging zooms only where there is a mouse.
if (window.matchMedia("(pointer: coarse)").matches) {
  const still = setInterval(() => {
    if (!window.Bokeh || !Bokeh.documents.length) return;
    clearInterval(still);
    for (const doc of Bokeh.documents) for (const figure of doc.roots()) figure.toolbar.active_drag = null;
  }, 50);
}
