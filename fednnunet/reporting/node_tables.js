// Every table of class "nodes" gets a search field, and is sorted by a column where its title is chosen.
for (const table of document.querySelectorAll("table.nodes")) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const field = document.createElement("input");
  field.type = "search";
  field.placeholder = "search";
  field.setAttribute("aria-label", "show only rows that contain this text");
  field.addEventListener("input", () => {
    const text = field.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(text);
  });
  if (rows.length > 1) table.parentNode.before(field);
  const valueOf = (row, column) => {
    const text = row.cells[column].textContent.trim().replace("−", "-");
    const number = parseFloat(text.replace(/[,+*]/g, ""));
    return Number.isNaN(number) ? text : number;
  };
  const titles = Array.from(table.tHead.rows[0].cells);
  titles.forEach((title, column) => {
    const sort = () => {
      const down = title.ariaSort === "ascending";
      for (const other of titles) other.ariaSort = null;
      title.ariaSort = down ? "descending" : "ascending";
      rows.sort((first, second) => {
        const a = valueOf(first, column);
        const b = valueOf(second, column);
        const order = typeof a === typeof b ? (typeof a === "number" ? a - b : a.localeCompare(b)) : typeof a === "number" ? -1 : 1;
        return down ? -order : order;
      });
      body.append(...rows);
    };
    title.tabIndex = 0;
    title.title = "sort";
    title.addEventListener("click", sort);
    title.addEventListener("keydown", (event) => event.key === "Enter" ? sort() : null);
  });
}
