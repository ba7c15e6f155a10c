"""How the page of a report looks, in light and in dark, and how its tables are sorted."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --soft: #57606a;
  --line: #d9dee3; --shade: #f3f5f7; --warn: #fff4d6; --edge: #b88600; --link: #0b5cad;
  --grey: #7f7f7f; --blue: #0072b2; --orange: #d55e00; --green: #008a64;
  --veil: rgba(0, 0, 0, .22); }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --paper: #14171b;
  --soft: #a3adb8; --line: #343b43; --shade: #1d2228; --warn: #33290f; --edge: #d6a82f;
  --link: #7cc0ff; --grey: #9aa2ab; --blue: #56b4e9; --orange: #f08a4b; --green: #3cc79a;
  --veil: rgba(255, 255, 255, .28); } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1240px;
  padding: 0 1rem 3rem; color: var(--ink); background: var(--paper); }
h1 { font-size: 1.6rem; margin: 1.2rem 0 .6rem; } h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .2rem; }
h1, h2, h3, p, li, figcaption { overflow-wrap: anywhere; }
a { color: var(--link); }
.verdict { font-size: 1.15rem; max-width: 60rem; border-left: 4px solid var(--blue);
  padding: .2rem 0 .2rem .8rem; margin: .8rem 0; }
nav ul { margin: .6rem 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap;
  gap: .2rem 1.2rem; }
.about { color: var(--soft); margin: .2rem 0; }
.origin { color: var(--soft); font-size: .85rem; max-width: 60rem; margin: .4rem 0; }
.origin code { overflow-wrap: anywhere; }
ul.warnings { background: var(--warn); border-left: 4px solid var(--edge); margin: 1rem 0;
  padding: .6rem 1rem .6rem 2rem; max-width: 60rem; }
.scroll { overflow-x: auto; margin: .4rem 0 1.4rem; background:
  linear-gradient(to left, var(--paper) 40%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--veil), transparent) right / 1rem 100% no-repeat scroll; }
table { border-collapse: separate; border-spacing: 0; font-size: .85rem; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: left; border-bottom: 1px solid var(--line); }
td.number, thead th.number { text-align: right; }
thead th { border-top: 2px solid var(--ink); border-bottom: 1px solid var(--ink);
  vertical-align: bottom; white-space: normal; min-width: 4rem; }
tbody th, thead th:first-child { position: sticky; left: 0; background: var(--paper); }
tbody th { font-weight: 500; min-width: 5.5rem; max-width: 9rem; white-space: normal; }
tbody tr:hover > td { background: var(--shade); }
thead button { font: inherit; color: inherit; background: none; border: 0; padding: 0;
  text-align: inherit; cursor: pointer; }
thead button::after { content: "\\a0\\2195"; color: var(--soft); font-weight: 400; }
thead [aria-sort=ascending] button::after { content: "\\a0\\2191"; color: inherit; }
thead [aria-sort=descending] button::after { content: "\\a0\\2193"; color: inherit; }
.figures { display: grid; gap: 1.6rem 1.2rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
figure { margin: 0; } figure svg { width: 100%; height: auto; max-width: 600px; display: block; }
figure h3 { margin: 0 0 .2rem; }
figcaption { font-size: .85rem; color: var(--soft); max-width: 600px; margin-top: .3rem; }
.notes { color: var(--soft); font-size: .875rem; max-width: 60rem; }
@media print { .scroll { overflow: visible; } thead button::after { content: none; } }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button")
    button.type = "button"
    button.append(...head.childNodes)
    head.append(button)
    button.addEventListener("click", () => {
      const number = head.classList.contains("number")
      const first = number ? "descending" : "ascending"
      const other = number ? "ascending" : "descending"
      const order = head.getAttribute("aria-sort") === first ? other : first
      for (const each of head.parentNode.children) each.removeAttribute("aria-sort")
      head.setAttribute("aria-sort", order)
      const body = table.tBodies[0], sign = order === "ascending" ? 1 : -1
      const key = row => {
        const cell = row.children[column]
        return number ? parseFloat(cell.dataset.value) : cell.textContent
      }
      const compare = (one, two) => {
        const a = key(one), b = key(two)
        if (!number) return sign * a.localeCompare(b)
        if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b)
        return sign * (a - b)
      }
      body.append(...[...body.rows].sort(compare))
    })
  })
}
"""
"""Makes buttons of the headings of tables; without it, the tables are there all the same."""
