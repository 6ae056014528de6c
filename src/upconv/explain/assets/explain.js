(() => {
  const svgSpace = "http://www.w3.org/2000/svg";
  // Every choice of one entry a dimension: the products that a cell takes part in.
  const combine = (rows) => rows.reduce((all, row) => all.flatMap((a) => row.map((r) => [...a, r])), [[]]);
  const at = (position) => position.join(",");

  function setUp(root) {
    root.classList.add("ready");
    const links = JSON.parse(root.dataset.links);
    const told = root.querySelector(".told");
    const cells = { x: new Map(), w: new Map(), y: new Map() };
    for (const side of ["x", "w", "y"]) {
      for (const cell of root.querySelectorAll(`.cell.${side}`)) cells[side].set(cell.dataset.at, cell);
    }
    const lines = [...root.querySelectorAll(".link")];
    const flat = links.length === 1;
    for (const cell of cells.x.values()) cell.words = cell.querySelector("text");

    function termsOf(side, position) {
      const rows = position.map((p, d) => links[d][side][p] || []);
      return combine(rows).map((row) => ({ other: row.map((r) => r[0]), tap: row.map((r) => r[1]) }));
    }
    function clear() {
      for (const side of Object.values(cells)) for (const cell of side.values()) cell.classList.remove("on");
      for (const line of lines) line.classList.remove("on");
      for (const name of root.querySelectorAll(".tapname")) name.remove();
      if (!flat) for (const cell of cells.x.values()) label(cell, "");
    }
    function label(cell, words) {
      if (!cell) return;
      let text = cell.querySelector("text");
      if (!text) {
        const shape = cell.querySelector("circle");
        text = document.createElementNS(svgSpace, "text");
        text.setAttribute("x", shape.getAttribute("cx"));
        text.setAttribute("y", Number(shape.getAttribute("cy")) + 3.5);
        text.setAttribute("text-anchor", "middle");
        text.setAttribute("fill", "#fff");
        cell.append(text);
      }
      text.setAttribute("font-size", words.length > 3 ? 8 : 10);
      text.textContent = words;
    }
    function nameLine(line, place) {
      const [x1, y1, x2, y2] = ["x1", "y1", "x2", "y2"].map((a) => Number(line.getAttribute(a)));
      const x = x1 + (x2 - x1) * place, y = y1 + (y2 - y1) * place;
      const group = document.createElementNS(svgSpace, "g");
      group.setAttribute("class", "tapname");
      group.innerHTML = `<polygon points="${x},${y - 12} ${x + 12},${y} ${x},${y + 12} ${x - 12},${y}" fill="#009E73" stroke="#003d2d"/>` +
        `<text x="${x}" y="${y + 3.5}" font-size="${line.dataset.k.length > 2 ? 8 : 11}" text-anchor="middle">${line.dataset.k}</text>`;
      line.closest("svg").append(group);
    }
    function show(side, where) {
      const position = where.split(",").map(Number);
      const terms = termsOf(side, position);
      const other = side === "y" ? "x" : "y";
      clear();
      cells[side].get(where)?.classList.add("on");
      for (const term of terms) {
        const cell = cells[other].get(at(term.other));
        cell?.classList.add("on");
        cells.w.get(at(term.tap))?.classList.add("on");
        if (!flat && side === "y") label(cell, at(term.tap));
      }
      const lit = lines.filter((line) => line.dataset.i !== undefined && (side === "y" ? line.dataset.o : line.dataset.i) === where);
      for (const line of flat ? lit : []) line.classList.add("on");
      if (flat) lit.slice(0, 12).forEach((line, n) => nameLine(line, lit.length > 3 ? [0.42, 0.6][n % 2] : 0.5));
      told.textContent = tell(side, where, terms);
    }
    function tell(side, where, terms) {
      const more = terms.length > 9 ? ` and ${terms.length - 9} more` : "";
      const some = terms.slice(0, 9);
      if (side === "y") {
        const sum = some.map((t) => `x[${at(t.other)}]*w[${at(t.tap)}]`).join(" + ");
        return `Output ${where}${root.dataset.slice}: ` + (terms.length ? `y[${where}] = ${sum}${more}` : "no tap writes it, it holds the bias alone");
      }
      const reach = some.map((t) => `y[${at(t.other)}] through w[${at(t.tap)}]`).join(", ");
      return `Input ${where} reaches ${terms.length ? reach + more : "nothing: padding crops all of it"}`;
    }
    // A window that is not in front gives the cell its focus, but no event of it: what to show does not wait for one.
    function choose(side, where) {
      const chosen = cells[side].get(where);
      for (const c of cells[side].values()) c.setAttribute("tabindex", c === chosen ? "0" : "-1");
      show(side, where);
      if (document.activeElement !== chosen) chosen.focus();
    }
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    for (const side of ["x", "y"]) {
      let first = true;
      for (const [where, cell] of cells[side]) {
        cell.setAttribute("tabindex", first ? "0" : "-1");
        cell.setAttribute("role", "button");
        first = false;
        cell.addEventListener("mouseenter", () => show(side, where));
        cell.addEventListener("click", () => choose(side, where));
        cell.addEventListener("focus", () => choose(side, where));
        cell.addEventListener("keydown", (event) => {
          const step = steps[event.key];
          if (!step) return;
          const move = flat ? [step[0] + step[1]] : step;
          const next = at(where.split(",").map((p, d) => Number(p) + move[d]));
          event.preventDefault();
          if (cells[side].has(next)) choose(side, next);
        });
      }
    }
    show("y", root.dataset.start);
  }
  for (const root of document.querySelectorAll(".upconv-explain:not(.ready)")) setUp(root);
})();
