"use strict";
// Differences are opened by links to them, and for printing.
(() => {
  const linked = () => {
    const one = /^#difference-\d+$/.test(location.hash) && document.getElementById(location.hash.slice(1));
    if (one) { one.open = true; one.scrollIntoView(); }
  };
  addEventListener("hashchange", linked);
  linked();
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("#differences details:not([open])")];
    for (const one of closed) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of closed) one.open = false; });
})();

// The table of all features. Texts reach the page as textContent alone.
(async () => {
  const PAGE = 50;
  const $ = (id) => document.getElementById(id);
  if (!$("data")) return;
  const make = (kind, text = "", name = "") => {
    const made = document.createElement(kind);
    made.textContent = text;
    if (name) made.className = name;
    return made;
  };

  const packed = Uint8Array.from(atob($("data").textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const data = JSON.parse(await new Response(stream).text());

  const columns = data.columns;
  const part = Object.entries(data.sizes).flatMap(([name, size]) => Array(size).fill(name));
  const shown = (id) => data.shown[id];
  const share = (value) => (value === null ? "-" : `${(100 * value).toPrecision(2)}%`);
  const fixed = (value) => (value === null ? "-" : value.toFixed(2));
  const words = (id) => (shown(id) ? shown(id).words.map(([word]) => word).join(", ") : "");
  const verdict = (id) => data.verdicts[columns.verdict[id]];
  // Header, what a cell shows, what it is sorted by (largest first; null: last), and whether it is a number.
  const head = [
    ["feature", (id) => id, (id) => -id, true],
    ["part", (id) => part[id], (id) => part[id], false],
    ["fires on words", words, null, false],
    ["fires", (id) => share(columns.density[id]), (id) => columns.density[id], true],
    ["R² own", (id) => fixed(columns.r2_own[id]), (id) => columns.r2_own[id], true],
    ["other", (id) => fixed(columns.r2_other[id]), (id) => columns.r2_other[id], true],
    ["null", (id) => fixed(columns.r2_null[id]), (id) => columns.r2_null[id], true],
    ["verdict", verdict, (id) => verdict(id), false],
    ["tokens differ", (id) => share(columns.differ[id]), (id) => columns.differ[id], true],
    ["twin", (id) => (columns.twin[id] < 0 ? "-" : `${columns.twin[id]} (${fixed(columns.alike[id])})`), (id) => columns.alike[id], true],
  ];
  // As the list of the command line: by how much only its own model explains a feature.
  const evidence = (id) => {
    const [own, other] = [columns.r2_own[id], columns.r2_other[id]];
    return own === null || other === null || own <= 0 ? null : ((own - other) * (own - other)) / own;
  };

  const texts = part.map((_, id) => {
    if (!shown(id)) return "";
    const said = shown(id).examples.map((one) => one.filter((_, i) => i % 2 === 1).join(""));
    return [words(id), shown(id).source ? shown(id).source[0] : "", ...said].join(" ").toLowerCase();
  });
  let order = { key: evidence, down: true, at: null };
  let [found, page, opened] = [[], 0, null];

  const sorted = () => {
    const typed = $("search").value.trim().toLowerCase();
    found = part.map((_, id) => id).filter((id) => columns.density[id] > 0)
      .filter((id) => !$("part").value || part[id] === $("part").value)
      .filter((id) => !$("verdict").value || verdict(id) === $("verdict").value)
      .filter((id) => !typed || String(id) === typed || texts[id].includes(typed));
    const sign = order.down ? 1 : -1;
    const key = new Map(found.map((id) => [id, order.key(id)]));
    found.sort((one, other) => {
      const [a, b] = [key.get(one), key.get(other)];
      if (a === b) return one - other;
      if (a === null) return 1;
      if (b === null) return -1;
      return a < b ? sign : -sign;
    });
    page = 0;
  };

  const example = (one, top) => {
    const line = make("p", "", "example");
    for (let i = 1; i < one.length; i += 2) {
      const [text, value] = [one[i], one[i + 1]];
      const level = Math.min(4, 1 + Math.floor((4 * Math.abs(value)) / top));
      const piece = value ? make("mark", text, `m${level}${value < 0 ? " centre" : ""}`) : document.createTextNode(text);
      if (value) piece.title = Math.abs(value).toFixed(2);
      line.append(piece);
    }
    line.append(make("span", ` (${one[0]})`, "quiet"));
    return line;
  };

  const details = (id) => {
    const cell = make("td", "", "opened");
    cell.colSpan = head.length;
    const numbers = `relative decoder norm ${fixed(columns.norm[id])}, largest activation ${columns.max[id]}`;
    cell.append(make("p", numbers, "quiet"));
    const about = shown(id);
    if (about && about.source) cell.append(make("p", `${share(about.source[1])} of its activation is in ${about.source[0]}`, "quiet"));
    if (about) {
      for (const one of about.examples) cell.append(example(one, columns.max[id] || 1));
    } else {
      cell.append(make("p", "Its examples are not in this page:"));
    }
    cell.append(make("code", `modeldiff features show ${id}`));
    const row = make("tr");
    row.append(cell);
    return row;
  };

  const draw = () => {
    const rows = $("table").tBodies[0];
    rows.replaceChildren();
    for (const id of found.slice(page * PAGE, (page + 1) * PAGE)) {
      const row = make("tr", "", "row");
      row.id = `row-${id}`;
      row.tabIndex = 0;
      row.setAttribute("aria-expanded", String(opened === id));
      head.forEach(([name, value, , isNumber]) => {
        row.append(make("td", String(value(id)), isNumber ? "n" : name === "fires on words" ? "words" : ""));
      });
      const toggle = () => {
        opened = opened === id ? null : id;
        draw();
        $(`row-${id}`).focus();
      };
      row.addEventListener("click", toggle);
      row.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(); }
        if (event.key === "ArrowDown" || event.key === "ArrowUp") {
          const all = [...rows.querySelectorAll("tr.row")];
          const next = all[all.indexOf(row) + (event.key === "ArrowDown" ? 1 : -1)];
          if (next) { event.preventDefault(); next.focus(); }
        }
      });
      rows.append(row);
      if (opened === id) rows.append(details(id));
    }
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    $("count").textContent = `${found.length.toLocaleString("en")} of ${part.length.toLocaleString("en")} features`;
    $("page").textContent = `${page + 1} of ${pages}`;
    $("previous").disabled = page === 0;
    $("next").disabled = page >= pages - 1;
    [...$("table").tHead.rows[0].cells].forEach((cell, at) => {
      cell.setAttribute("aria-sort", order.at === at ? (order.down ? "descending" : "ascending") : "none");
    });
  };
  const again = () => { sorted(); draw(); };

  head.forEach(([name, , key, isNumber], at) => {
    const cell = make("th", key ? "" : name, isNumber ? "n" : "");
    if (key) {
      const button = make("button", name);
      button.type = "button";
      button.addEventListener("click", () => {
        order = { key, at, down: order.at === at ? !order.down : true };
        again();
      });
      cell.append(button);
    }
    $("table").tHead.rows[0].append(cell);
  });
  for (const name of data.verdicts.filter((one) => one)) $("verdict").append(make("option", name));
  for (const id of ["search", "part", "verdict"]) $(id).addEventListener("input", again);
  $("previous").addEventListener("click", () => { page -= 1; draw(); });
  $("next").addEventListener("click", () => { page += 1; draw(); });
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|SELECT)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      $("search").focus();
    }
  });
  const linked = () => {
    const match = /^#feature-(\d+)$/.exec(location.hash);
    if (!match || Number(match[1]) >= part.length) return;
    opened = Number(match[1]);
    $("search").value = match[1];
    again();
    $("features").scrollIntoView();
  };
  addEventListener("hashchange", linked);
  $("loading").hidden = true;
  $("table").hidden = false;
  document.querySelector(".tools").hidden = false;
  again();
  linked();
})();
