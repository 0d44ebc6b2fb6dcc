"use strict";
// Without this script the page says the same: tables are in the order of the files, charts show their last value.

// Rows of a table by one of its columns; cells without a value come last either way.
document.querySelectorAll("table.sortable").forEach((table) => {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    button.addEventListener("click", () => {
      const other = { ascending: "descending", descending: "ascending" };
      const order = other[head.getAttribute("aria-sort")] || button.dataset.first;
      heads.forEach((each) => each.setAttribute("aria-sort", each === head ? order : "none"));
      const text = head.dataset.kind === "text", sign = order === "ascending" ? 1 : -1;
      const value = (row) => row.cells[column].dataset.value;
      const compare = (a, b) => (text ? a.localeCompare(b, undefined, { numeric: true }) : Number(a) - Number(b));
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [one, two] = [value(a), value(b)];
        return one === "" || two === "" ? (one === "") - (two === "") : sign * compare(one, two);
      });
      table.tBodies[0].append(...rows);
    });
  });
});

// The value nearest to the pointer, above the chart.
document.querySelectorAll("svg[data-steps]").forEach((svg) => {
  const numbers = (name) => svg.dataset[name].split(",").map(Number);
  const steps = numbers("steps"), values = numbers("values");
  const [left, right, bottom, top] = numbers("frame"), [first, last, low, high] = numbers("range");
  const output = svg.closest("figure").querySelector("output"), resting = output.textContent;
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
  cursor.setAttribute("class", "cursor");
  svg.append(cursor);
  svg.addEventListener("pointermove", (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const wanted = first + ((point.x - left) / (right - left)) * (last - first);
    let nearest = 0;
    steps.forEach((step, i) => { if (Math.abs(step - wanted) < Math.abs(steps[nearest] - wanted)) nearest = i; });
    const x = left + ((steps[nearest] - first) / (last - first)) * (right - left);
    const y = bottom + ((values[nearest] - low) / (high - low)) * (top - bottom);
    cursor.setAttribute("d", `M${x},${top}V${bottom}M${x - 4},${y}H${x + 4}`);
    output.textContent = `${Number(values[nearest].toPrecision(3))} at step ${steps[nearest]}`;
  });
  svg.addEventListener("pointerleave", () => { cursor.removeAttribute("d"); output.textContent = resting; });
});
