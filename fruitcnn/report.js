// Comfort only: without it the tables stand whole, in the order of the page.
document.querySelectorAll("table.sortable").forEach(table => {
  const body = table.tBodies[0], rows = () => [...body.rows], first = 15;
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  let all = rows().length <= first + 5;
  const fold = () => rows().forEach((row, index) => { row.hidden = !all && index >= first; });
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("[aria-sort]").forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sorted = rows().sort((one, two) => {
        const a = value(one, column), b = value(two, column);
        const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
        return down ? -order : order;
      });
      body.append(...sorted);
      fold();
    });
  });
  if (all) return;
  const more = document.createElement("button");
  more.className = "more";
  more.type = "button";
  more.textContent = `Show all ${rows().length.toLocaleString("en")}`;
  more.addEventListener("click", () => { all = true; fold(); more.remove(); });
  table.after(more);
  fold();
});
