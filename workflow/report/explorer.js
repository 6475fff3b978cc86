"use strict";
/* Every feature: the table with search, filters and sorting, and the dashboard of one feature.
 *
 * Data are in chunks next to the page (report/data/) or in the page itself (report.single_file). Each chunk is a script
 * that calls saelineage.receive(name, base64 of gzip of JSON), because a page opened from a disk may load scripts but not
 * fetch files. All text is set as text, never as HTML, and hidden characters are made visible.
 */
const saelineage = (() => {
  const { make, visible } = elements;
  const ROW_HEIGHT = 38, ROWS_AROUND = 12, MOSTLY = 0.5, STRONGEST = 3;
  const TABLE_COLUMNS = [
    ["feature", "Feature", ""], ["verdicts", "Verdicts", ""], ["importance", "importance", "number"], ["r", "best r", "number"], ["no_change", "r unchanged", "number"],
    ["density", "fires on", "number"], ["corpora", "corpora", ""], ["tokens", "top tokens", ""], ["label", "follows", ""],
    ["score", "score", "number"],
  ];
  const OF_EDGES = ["r", "importance"], FIRST = { sort: "importance", down: "1" };
  const chunks = new Map(), requests = new Map(), orders = new Map();
  let facts = null, rows = null, order = [], state = null, leftAt = null;

  // ---- small helpers

  const percent = (value, digits = 1) => (value === null ? "–" : (100 * value).toFixed(digits) + "\u00a0%");
  const number = (value, digits = 2) => (value === null || Number.isNaN(value) ? "–" : value.toFixed(digits));
  const count = (value) => value.toLocaleString("en-US");
  const address = (model, latent) => `#/feature/${model}/${latent}`;

  // ---- chunks

  /** Called by a chunk's script. */
  function receive(name, data) {
    requests.get(name)?.resolve(data);
  }

  async function unpack(data) {
    const text = atob(data), bytes = new Uint8Array(text.length);
    for (let place = 0; place < text.length; place++) bytes[place] = text.charCodeAt(place);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  }

  /** The value of a chunk, loaded once. */
  function load(name) {
    if (!chunks.has(name)) chunks.set(name, fromPage(name) ?? fromScript(name));
    return chunks.get(name);
  }

  function fromPage(name) {
    const element = document.getElementById(`chunk ${name}`);
    return element === null ? null : unpack(element.textContent);
  }

  function fromScript(name) {
    const data = new Promise((resolve, reject) => {
      requests.set(name, { resolve });
      const script = make("script", { src: `data/${name}.js` });
      script.addEventListener("error", () => reject(new Error(`data/${name}.js`)));
      document.head.append(script);
    });
    return data.then(unpack);
  }

  // ---- the rows of the table

  /** The tables of all models as one, column by column. */
  function joined(tables) {
    const n = tables.reduce((sum, table) => sum + table.n, 0);
    const all = {
      n, tables, table: new Uint16Array(n), latent: new Int32Array(n), r: new Float64Array(n), importance: new Float64Array(n), no_change: new Float64Array(n),
      density: new Float64Array(n), score: new Float64Array(n), text: new Array(n),
    };
    let row = 0;
    tables.forEach((table, index) => {
      const explained = new Map(table.explained.map(([latent, text]) => [latent, text]));
      table.explanation = new Map(table.explained.map(([latent, text, score]) => [latent, { text, score }]));
      table.first = row;
      for (let latent = 0; latent < table.n; latent++, row++) {
        all.table[row] = index;
        all.latent[row] = latent;
        for (const column of OF_EDGES) all[column][row] = largest(table, latent, null, column);
        all.no_change[row] = table.no_change[latent] ?? NaN;
        all.density[row] = table.density[latent];
        all.score[row] = table.score[latent] ?? NaN;
        const label = table.label[latent] === null ? "" : table.labels[table.label[latent]];
        const tokens = table.tokens[latent].map((token) => table.strings[token]).join(" ");
        all.text[row] = `${table.model} / ${latent} ${label} ${tokens} ${explained.get(latent) ?? ""}`.toLowerCase();
      }
    });
    return all;
  }

  /** A feature's number in a column of its edges: on one edge, or the largest over all edges of its model. */
  function largest(table, latent, edge, column) {
    let best = NaN;
    for (const side of table.edges) {
      if (edge !== null && (side.parent !== edge.parent || side.child !== edge.child)) continue;
      const value = side[column][latent];
      if (value !== null && !(value <= best)) best = value;
    }
    return best;
  }

  // ---- filters and order

  function emptyState() {
    return { q: "", model: "", on: "", corpus: "", kind: "", detail: "", ...FIRST };
  }

  function chosenEdge() {
    if (!state.on) return null;
    const [parent, child, side, verdict] = state.on.split(".");
    return { parent, child, side, verdict: facts.verdicts.indexOf(verdict) };
  }

  function matching() {
    const { words, verdicts } = asked(state.q), edge = chosenEdge(), matches = [];
    rows.tables.forEach((table) => {
      if (state.model && table.model !== state.model) return;
      const side = edge && table.edges.find((one) => one.parent === edge.parent && one.child === edge.child && one.side === edge.side);
      if (edge && !side) return;
      const sides = side ? [side] : table.edges, shares = state.corpus ? table.shares[state.corpus] : null;
      const kind = state.kind ? table.kinds.indexOf(state.kind) : -1;
      for (let latent = 0, row = table.first; latent < table.n; latent++, row++) {
        if (side && side.verdict[latent] !== edge.verdict) continue;
        if (state.kind && table.kind[latent] !== kind) continue;
        if (shares && !(shares[latent] >= MOSTLY)) continue;
        if (state.detail && !sides.some((one) => one.details[latent].includes(state.detail))) continue;
        if (!verdicts.every((one) => hasVerdict(table, latent, one))) continue;
        if (holdsAll(rows.text[row], words)) matches.push(row);
      }
    });
    return matches;
  }

  /** What a search asks for: words, and verdicts on an edge, written as "new in lua" or "gone from base". */
  function asked(search) {
    const verdicts = [], models = new Set(facts.models);
    const left = search.replace(/(^|\s)(\w+)\s+(in|from)\s+(\S+)/gi, (found, start, verdict, word, model) => {
      const index = facts.verdicts.indexOf(verdict.toLowerCase());
      if (index < 0 || !models.has(model)) return found;
      verdicts.push({ verdict: index, role: word.toLowerCase() === "in" ? "child" : "parent", model });
      return start;
    });
    return { words: left.toLowerCase().split(/\s+/).filter(Boolean), verdicts };
  }

  const isOf = (side, latent, { verdict, role, model }) => side[role] === model && side.verdict[latent] === verdict;

  function hasVerdict(table, latent, one) {
    return table.edges.some((side) => isOf(side, latent, one));
  }

  function holdsAll(text, words) {
    for (const word of words) if (!text.includes(word)) return false;
    return true;
  }

  /** Rows in the chosen order. The order of all rows is computed once, so sorting the results of a search is cheap. */
  function sorted(matches) {
    if (state.sort === FIRST.sort) return surestFirst(inOrderOf(matches));
    return inOrderOf(matches);
  }

  /** The results of a search for verdicts by importance, those first whose verdict there is sure, then identified ones. */
  function surestFirst(matches) {
    const { verdicts } = asked(state.q);
    if (!verdicts.length) return matches;
    const groups = [[], [], []];
    for (const row of matches) {
      const table = rows.tables[rows.table[row]], latent = rows.latent[row];
      const details = table.edges.filter((side) => verdicts.some((one) => isOf(side, latent, one))).map((side) => side.details[latent]);
      groups[details.some((words) => words.includes("sure")) ? 0 : details.some((words) => words.includes("identified")) ? 1 : 2].push(row);
    }
    return groups.flat();
  }

  function inOrderOf(matches) {
    if (state.sort === "feature") return state.down ? matches.reverse() : matches;
    const inside = new Uint8Array(rows.n), kept = [];
    for (const row of matches) inside[row] = 1;
    for (const row of wholeOrder()) if (inside[row]) kept.push(row);
    return kept;
  }

  function wholeOrder() {
    const edge = OF_EDGES.includes(state.sort) ? chosenEdge() : null;
    const name = [state.sort, state.down, edge?.parent, edge?.child].join("/");
    if (!orders.has(name)) orders.set(name, byNumber(edge ? onEdge(edge, state.sort) : rows[state.sort] ?? ranks(state.sort), state.down ? -1 : 1));
    return orders.get(name);
  }

  /** All rows in the order of their numbers; missing numbers come last in both directions. */
  function byNumber(values, sign) {
    const keys = Float64Array.from(values, (value) => (Number.isNaN(value) ? Infinity : sign * value));
    return Uint32Array.from(keys.keys()).sort((a, b) => keys[a] - keys[b] || a - b);
  }

  const onEdge = (edge, column) => Float64Array.from(rows.latent, (latent, row) => largest(rows.tables[rows.table[row]], latent, edge, column));

  /** Each row's rank among the texts of a column; NaN if it has no text. */
  function ranks(column) {
    const texts = Array.from(rows.latent, (latent, row) => cellText(rows.tables[rows.table[row]], latent, column));
    const place = new Map([...new Set(texts)].sort().map((text, index) => [text, index]));
    return Float64Array.from(texts, (text) => (text === "" ? NaN : place.get(text)));
  }

  function cellText(table, latent, column) {
    if (column === "verdicts") return table.edges.map((edge) => facts.verdicts[edge.verdict[latent]]).join(" ");
    if (column === "tokens") return table.tokens[latent].map((token) => table.strings[token]).join(" ");
    if (column === "label") return table.label[latent] === null ? "" : table.labels[table.label[latent]];
    let largest = 0, name = "";
    for (const corpus in table.shares) {
      if (table.shares[corpus][latent] > largest) [largest, name] = [table.shares[corpus][latent], corpus];
    }
    return name;
  }

  // ---- the table on the page

  function update() {
    order = sorted(matching());
    const shown = document.getElementById("feature-count");
    shown.textContent = `${count(order.length)} of ${count(rows.n)} features`;
    const view = document.getElementById("feature-rows");
    view.scrollTop = 0;
    view.querySelector("table").setAttribute("aria-rowcount", order.length + 1);
    for (const head of view.querySelectorAll("th[data-column]")) {
      const isSorted = head.dataset.column === state.sort;
      head.setAttribute("aria-sort", isSorted ? (state.down ? "descending" : "ascending") : "none");
    }
    render(true);
  }

  let rendered = [0, 0];
  /** Put the rows in view on the page, with empty space above and below for the others. Rows that stay are not touched. */
  function render(anew = false) {
    const view = document.getElementById("feature-rows"), body = view.querySelector("tbody");
    if (!view.clientHeight && !anew) return;
    const first = Math.max(0, Math.min(Math.floor(view.scrollTop / ROW_HEIGHT), order.length) - ROWS_AROUND);
    const last = Math.min(order.length, first + Math.ceil(view.clientHeight / ROW_HEIGHT) + 2 * ROWS_AROUND);
    if (!anew && first === rendered[0] && last === rendered[1]) return;
    if (anew || first >= rendered[1] || last <= rendered[0]) {
      body.replaceChildren(spacer(), spacer());
      rendered = [first, first];
    }
    for (; rendered[0] < first; rendered[0]++) body.children[1].remove();
    for (; rendered[1] > last; rendered[1]--) body.children[body.children.length - 2].remove();
    while (rendered[0] > first) body.firstChild.after(tableRow(order[--rendered[0]], rendered[0]));
    while (rendered[1] < last) body.lastChild.before(tableRow(order[rendered[1]], rendered[1]++));
    body.firstChild.firstChild.style.height = `${first * ROW_HEIGHT}px`;
    body.lastChild.firstChild.style.height = `${(order.length - last) * ROW_HEIGHT}px`;
  }

  const spacer = () => make("tr", { "aria-hidden": "true", class: "spacer" }, make("td", { colspan: TABLE_COLUMNS.length }));

  function tableRow(row, index) {
    const table = rows.tables[rows.table[row]], latent = rows.latent[row], edge = chosenEdge();
    const label = table.label[latent] === null ? "" : table.labels[table.label[latent]];
    const [r, importance] = OF_EDGES.map((column) => (edge ? largest(table, latent, edge, column) : rows[column][row]));
    const cells = [
      make("th", { scope: "row" }, make("a", { href: address(table.model, latent) }, make("span", {}, table.model), ` / ${latent}`), make("small", {}, table.sae)),
      make("td", { class: "badges" }, ...table.edges.map((side) => badge(side, latent))),
      make("td", { class: "number" }, number(importance)),
      make("td", { class: "number" }, number(r)),
      make("td", { class: "number" }, number(rows.no_change[row])),
      make("td", { class: "number" }, percent(rows.density[row], 2)),
      make("td", {}, corpusBar(table, latent)),
      make("td", {}, ...table.tokens[latent].map((token) => make("code", { class: "token" }, table.strings[token]))),
      make("td", { title: visible(table.explanation.get(latent)?.text ?? label) }, label),
      make("td", { class: "number" }, number(rows.score[row])),
    ];
    return make("tr", { "aria-rowindex": index + 2 }, ...cells);
  }

  function badge(edge, latent) {
    const verdict = facts.verdicts[edge.verdict[latent]], other = edge.side === "parent" ? edge.child : edge.parent;
    const words = `${edge.parent} → ${edge.child}: ${verdict}, r ${number(edge.r[latent])}${edge.details[latent] ? ", " + edge.details[latent] : ""}`;
    return make("span", { class: `verdict ${verdict}`, title: visible(words) }, `${edge.side === "parent" ? "→" : "←"} ${other} `, make("b", {}, verdict), edge.details[latent].includes("sure") ? " sure" : "");
  }

  function corpusBar(table, latent) {
    const bar = make("span", { class: "corpora", role: "img" });
    const words = [];
    Object.entries(table.shares).forEach(([corpus, shares]) => {
      const share = shares[latent];
      if (!share) return;
      words.push(`${corpus} ${percent(share, 0)}`);
      bar.append(make("span", { style: `width:${100 * share}%;background:${facts.colours.corpora[corpus]}` }));
    });
    bar.title = visible(words.join(", ") || "never fires");
    bar.setAttribute("aria-label", bar.title);
    return bar;
  }

  /** Download all listed features as a CSV file. */
  function csv() {
    const quoted = (value) => `"${String(value ?? "").replaceAll('"', '""')}"`;
    const lines = [["model", "sae", "latent", "density", "importance", "best_r", "no_change_r", "label", "score", "verdicts"].join(",")];
    for (const row of order) {
      const table = rows.tables[rows.table[row]], latent = rows.latent[row];
      const verdicts = table.edges.map((edge) => `${edge.parent}->${edge.child}: ${facts.verdicts[edge.verdict[latent]]}${edge.details[latent] ? ` (${edge.details[latent]})` : ""}`).join("; ");
      const label = table.label[latent] === null ? "" : table.labels[table.label[latent]];
      const cells = [table.model, table.sae, latent, rows.density[row], rows.importance[row], rows.r[row], rows.no_change[row], label, rows.score[row], verdicts];
      lines.push(cells.map(quoted).join(","));
    }
    downloads.save("features.csv", "text/csv", lines.join("\n") + "\n");
  }

  // ---- one feature

  async function showFeature(model, latent) {
    const table = rows.tables.find((one) => one.model === model), hash = location.hash;
    if (!table || !(latent < table.n)) return showList(`There is no feature ${model} / ${latent} in this run.`);
    const first = Math.floor(latent / facts.features_per_chunk) * facts.features_per_chunk;
    let chunk = null;
    try {
      chunk = await load(`${facts.hookpoint}/${model}/${String(first).padStart(6, "0")}`);
    } catch (error) {
      return showList(`This feature's data could not be read from ${error.message}, next to the page.`);
    }
    if (location.hash !== hash) return; // the reader went elsewhere while it was loaded
    const list = document.getElementById("feature-rows");
    if (list.clientHeight) leftAt = { address: listAddress(), top: list.scrollTop };
    const board = chunk.features[latent - first], place = order.indexOf(table.first + latent);
    const page = document.getElementById("feature-page");
    page.replaceChildren(
      featureHead(table, latent, place),
      make("div", { class: "beside" }, make("div", {}, featureFacts(table, latent), featureVerdicts(table, latent)), trajectory(table, latent, board)),
      make("div", { class: "pair" }, histogram(table, latent, board), logits(board)),
      ...passages(table, latent, board, chunk.strings),
    );
    page.hidden = false;
    document.getElementById("feature-list").hidden = true;
    page.querySelector("h3").focus();
    document.getElementById("features").scrollIntoView({ behavior: "instant" });
  }

  function featureHead(table, latent, place) {
    const step = (by, words) => {
      const row = order[place + by];
      const there = place >= 0 && row !== undefined;
      const target = there ? address(rows.tables[rows.table[row]].model, rows.latent[row]) : null;
      return make("a", { href: target, class: "button", "aria-disabled": there ? null : "true" }, words);
    };
    return make("div", { class: "feature-head" },
      make("h3", { tabindex: "-1" }, `${table.model} / ${latent}`, ` ${labelOf(table, latent)}`, make("small", {}, `SAE ${table.sae}`)),
      make("span", {}, make("button", { type: "button", "data-svg": ".trajectory", "data-name": `${table.model}-${latent}` }, "trajectory.svg"), make("a", { href: listAddress(), class: "button" }, "↑ all features"), step(-1, "← previous"), step(1, "next →")));
  }

  const labelOf = (table, latent) => (table.label[latent] === null ? "" : table.labels[table.label[latent]]);

  function featureFacts(table, latent) {
    const label = table.label[latent], explained = table.explanation.get(latent);
    const entries = [
      ["fires on", `${percent(table.density[latent], 2)} of the probe's tokens (${count(table.firings[latent])})`],
      ["largest activation", number(table.largest[latent], 3)],
      ["top tokens", make("span", {}, ...table.tokens[latent].map((token) => make("code", { class: "token" }, table.strings[token])))],
      ["by corpus", Object.entries(table.shares).map(([corpus, shares]) => `${corpus} ${percent(shares[latent], 0)}`).join(", ")],
      ["follows", label === null ? "no known token, shape, place or syntax" : `${table.labels[label]}: r ${number(table.score[latent])} with its activations, precision ${percent(table.precision[latent], 0)}, recall ${percent(table.recall[latent], 0)}, on documents that were not used to choose it. ${table.meanings[label]}`],
      ["importance", `${number(rows.importance[table.first + latent])}: what the loss rises by without it, in nats per 1,000 tokens, times the share of it that its closest feature does not share`],
      ["no change", table.no_change[latent] === null ? "not measured for this model" : `best r ${number(table.no_change[latent])} when the model is unchanged`],
    ];
    if (table.published) entries.push(["on Neuronpedia", make("span", {},
      make("a", { href: `${table.published}/${latent}`, target: "_blank", rel: "noopener noreferrer" }, `${table.published.split("/").slice(3).join("/")}/${latent}`),
      ` (needs the network; the number is the imported SAE's own, which this run keeps)`)]);
    if (explained) entries.push(["written explanation", `${explained.text} (simulated from it: r ${number(explained.score)})`]);
    return make("dl", {}, ...entries.flatMap(([name, words]) => [make("dt", {}, name), make("dd", {}, words)]));
  }

  function featureVerdicts(table, latent) {
    const lines = table.edges.map((edge) => {
      const other = edge.side === "parent" ? edge.child : edge.parent, match = edge.match[latent];
      const verdict = facts.verdicts[edge.verdict[latent]];
      const interval = edge.r_low[latent] === null ? "" : `${number(edge.r_low[latent])} to ${number(edge.r_high[latent])}`;
      return make("tr", {},
        make("th", { scope: "row" }, `${edge.parent} → ${edge.child}`),
        make("td", {}, make("span", { class: `verdict ${verdict}` }, make("b", {}, verdict)), make("small", {}, edge.details[latent])),
        make("td", { class: "number" }, number(edge.r[latent]), make("small", {}, interval)),
        make("td", {}, ...linked(other, match)),
        ...(facts.shares_numbers ? [make("td", {}, ...(match === latent ? ["the closest"] : linked(other, latent)))] : []));
    });
    const names = ["Edge", "Verdict", "r", "Closest feature", ...(facts.shares_numbers ? ["Latent of the same number"] : [])];
    const head = names.map((words) => make("th", { scope: "col" }, words));
    return make("div", { class: "scroll" }, make("table", { class: "compact" }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...lines)));
  }

  /** A link to a feature of another model with what it follows. */
  function linked(model, latent) {
    const table = rows.tables.find((one) => one.model === model);
    if (latent < 0 || !table || latent >= table.n) return ["none"];
    return [make("a", { href: address(model, latent) }, `${model} / ${latent}`), make("small", {}, labelOf(table, latent) || "follows no known property")];
  }

  /** The feature in every model of the lineage: one card per model. */
  function trajectory(table, latent, board) {
    const width = 176, height = 54, { places, size } = facts.layout;
    const others = new Map(board.others.map((other) => [other.model, other]));
    const svg = make("svg", { viewBox: `0 0 ${size[0]} ${size[1]}`, width: size[0], height: size[1], class: "trajectory", role: "img", "aria-label": "The feature in every model of the lineage" });
    const ends = (side) => facts.edges.map((edge) => edge[side]), parents = ends(0), children = ends(1);
    const onWays = [];
    const isShared = (models, model) => models.indexOf(model) !== models.lastIndexOf(model);
    for (const [parent, child] of facts.edges) {
      const [x0, y0] = places[parent], [x1, y1] = places[child], middle = (y0 + height + y1) / 2;
      // The words stand at the end of the way that it has to itself, so that those of other ways do not cover them.
      const at = isShared(children, child) ? 0.25 : isShared(parents, parent) ? 0.75 : 0.5;
      const across = at * at * (3 - 2 * at), down = y0 + height + (y1 - y0 - height) * (1.5 * at * (1 - at) + at ** 3);
      const edge = table.edges.find((one) => one.parent === parent && one.child === child);
      const verdict = edge ? facts.verdicts[edge.verdict[latent]] : "";
      svg.append(make("path", { class: `way ${verdict}`, d: `M${x0} ${y0 + height}C${x0} ${middle} ${x1} ${middle} ${x1} ${y1}` }));
      if (edge) onWays.push(make("text", { x: x0 + (x1 - x0) * across, y: down + 4, class: "way-words" }, `${verdict} ${number(edge.r[latent])}`));
    }
    svg.append(...onWays);
    for (const [model, [x, y]] of Object.entries(places)) {
      const other = others.get(model), self = model === table.model;
      const words = self ? `latent ${latent}` : other ? `${other.found ? "latent" : "closest"} ${other.latent}, r ${number(other.r)}` : "not found";
      const card = make("g", { class: self ? "self" : other ? (other.found ? "found" : "closest") : "absent" },
        make("rect", { x: x - width / 2, y, width, height, rx: 7 }),
        make("text", { x, y: y + 22, class: "name" }, model), make("text", { x, y: y + 41 }, words));
      if (other && !self) {
        const link = document.createElementNS("http://www.w3.org/2000/svg", "a");
        link.setAttribute("href", address(model, other.latent));
        link.append(card);
        svg.append(link);
      } else svg.append(card);
    }
    return make("div", { class: "scroll" }, svg);
  }

  function histogram(table, latent, board) {
    const width = 360, height = 120, most = Math.max(...board.histogram, 1), bar = width / board.histogram.length;
    const svg = make("svg", { viewBox: `0 0 ${width} ${height + 18}`, width, height: height + 18, class: "histogram", role: "img", "aria-label": "How strongly the feature fires" });
    board.histogram.forEach((n, index) => {
      const tall = n ? 4 + (height - 4) * Math.log1p(n) / Math.log1p(most) : 0, from = (index * table.largest[latent]) / board.histogram.length;
      svg.append(make("rect", { x: index * bar + 0.5, y: height - tall, width: bar - 1, height: tall }, make("title", {}, `${count(n)} firings from ${number(from)}`)));
    });
    svg.append(make("text", { x: 0, y: height + 14 }, "0"), make("text", { x: width, y: height + 14, class: "end" }, number(table.largest[latent])));
    return make("div", {}, make("h4", {}, "Activations (logarithmic counts)"), svg);
  }

  function logits(board) {
    if (!board.raised) return make("div", {}, make("h4", {}, "Effect on the logits"), make("p", { class: "none" }, "No linear path from this hookpoint to the logits is known."));
    const list = (name, words) => make("div", {}, make("h4", {}, words), make("ol", { class: "logits" }, ...board[name].map(([text, effect]) => make("li", {}, make("code", { class: "token" }, text), make("span", { class: "number" }, (effect > 0 ? "+" : "") + effect.toPrecision(3))))));
    return make("div", {}, make("div", { class: "pair tight-pair" }, list("raised", "Logits raised most"), list("lowered", "Logits lowered most")),
      make("p", { class: "note" }, "Logits per unit of activation, on the direct path to the output alone: what later layers make of the feature is not in them. The final norm divides all by a number that differs from token to token, so compare these with one another only."));
  }

  function passages(table, latent, board, strings) {
    const parts = [make("h4", {}, "Text on which it fires, in every model")];
    if (!board.passages.length) parts.push(make("p", { class: "none" }, "It never fires on the probe."));
    let group = null;
    for (const [index, words] of inOrder(table, latent, board)) {
      const passage = board.passages[index];
      if (words !== group) parts.push(make("h5", {}, (group = words)));
      const lines = [textLine(`${table.model} / ${latent}`, null, passage, board.activations[index], table.largest[latent], strings)];
      for (const other of board.others) {
        const words = `${other.model} / ${other.latent}${other.found ? "" : " (closest)"}`;
        lines.push(textLine(words, address(other.model, other.latent), passage, other.activations[index], other.largest, strings));
      }
      const where = `${passage.corpus}: ${passage.why}; probe row ${passage.row}, token ${passage.place} onwards`;
      parts.push(make("div", { class: "passage" }, make("p", { class: "where" }, where), ...lines));
    }
    return parts;
  }

  /** Passages with the words above them: the strongest of all corpora, then the others, the corpus with most firings first. */
  function inOrder(table, latent, board) {
    const peak = (index) => Math.max(0, ...board.activations[index][1]), share = (corpus) => table.shares[corpus][latent] ?? 0;
    const places = board.passages.map((_, index) => index);
    const strongest = [...places].sort((a, b) => peak(b) - peak(a) || a - b).slice(0, STRONGEST);
    const others = places.filter((index) => !strongest.includes(index));
    const corpora = Object.keys(table.shares).sort((a, b) => share(b) - share(a));
    others.sort((a, b) => corpora.indexOf(board.passages[a].corpus) - corpora.indexOf(board.passages[b].corpus) || a - b);
    return [...strongest.map((index) => [index, "Strongest"]), ...others.map((index) => [index, board.passages[index].corpus])];
  }

  function textLine(who, link, passage, [places, values], largest, strings) {
    const activation = new Map(places.map((place, index) => [place, values[index]]));
    const tokens = passage.tokens.map((token, place) => {
      const value = activation.get(place);
      if (value === undefined) return make("span", { class: "t" }, strings[token]);
      return make("span", { class: "t", style: `--a:${(value / largest).toFixed(2)}`, title: String(value) }, strings[token]);
    });
    const name = link === null ? make("span", { class: "who" }, who) : make("span", { class: "who" }, make("a", { href: link }, who));
    return make("div", { class: "line" }, name, make("span", { class: "text", dir: "ltr" }, ...tokens));
  }

  // ---- addresses

  function listAddress(change = {}) {
    const wanted = { ...state, ...change }, isFirst = wanted.sort === FIRST.sort && wanted.down === FIRST.down;
    const filters = Object.entries(wanted).filter(([name, value]) => value && !(isFirst && name in FIRST));
    return "#/features" + (filters.length ? "?" + new URLSearchParams(filters) : "");
  }

  /** Show what the address asks for. Other addresses are sections of the page. */
  async function follow() {
    const hash = location.hash;
    if (!hash.startsWith("#/feature")) return;
    await start();
    if (rows === null) return document.getElementById("features").scrollIntoView({ behavior: "instant" });
    const feature = hash.match(/^#\/feature\/([^/]+)\/(\d+)$/);
    if (feature) return showFeature(feature[1], Number(feature[2]));
    if (hash.startsWith("#/feature/")) return showList(`There is no feature ${hash.slice("#/feature/".length)} in this run.`);
    const given = Object.fromEntries(new URLSearchParams(hash.split("?")[1] ?? ""));
    state = { ...emptyState(), ...(given.sort ? { down: "" } : {}), ...given };
    if (!TABLE_COLUMNS.some(([column]) => column === state.sort)) state = { ...state, ...FIRST };
    fillControls();
    showList();
  }

  /** Show the table, scrolled to where the reader left it. A message takes the place of the count. */
  function showList(message = null) {
    document.getElementById("feature-page").hidden = true;
    document.getElementById("feature-list").hidden = false;
    update();
    if (leftAt?.address === listAddress()) document.getElementById("feature-rows").scrollTop = leftAt.top;
    if (message) say(message);
    if (!history.state?.typed) document.getElementById("features").scrollIntoView({ behavior: "instant" });
  }

  /** Go to the table of features with other filters. */
  function choose(change) {
    location.hash = listAddress({ ...emptyState(), ...change });
  }

  // ---- controls

  function fillControls() {
    for (const control of document.querySelectorAll("#feature-controls [name]")) control.value = state[control.name];
  }

  function changed() {
    for (const control of document.querySelectorAll("#feature-controls [name]")) state[control.name] = control.value;
    history.replaceState({ typed: true }, "", listAddress());
    update();
  }

  function option(value, words) {
    return make("option", { value }, words);
  }

  function buildControls() {
    const select = (name, words, ...options) => make("label", {}, words, make("select", { name }, option("", "all"), ...options));
    const verdicts = facts.edges.flatMap(([parent, child]) => [
      make("optgroup", { label: visible(`${parent} → ${child}: features of ${parent}`) }, ...["persists", "drifted", "gone", "untestable"].map((verdict) => option(`${parent}.${child}.parent.${verdict}`, verdict))),
      make("optgroup", { label: visible(`${parent} → ${child}: features of ${child}`) }, ...["inherited", "drifted", "new", "untestable"].map((verdict) => option(`${parent}.${child}.child.${verdict}`, verdict))),
    ]);
    const kinds = [...new Set(rows.tables.flatMap((table) => table.kinds))].sort();
    const form = document.getElementById("feature-controls");
    form.append(
      make("label", { class: "wide" }, "Search", make("input", { type: "search", name: "q", placeholder: "model / latent, token, label …", autocomplete: "off" })),
      select("model", "Model", ...rows.tables.map((table) => option(table.model, table.model))),
      select("on", "Verdict", ...verdicts),
      select("corpus", "Fires mostly on", ...facts.corpora.map((corpus) => option(corpus, corpus))),
      select("kind", "Follows a", ...kinds.map((kind) => option(kind, kind))),
      select("detail", "Known to be", ...["identified", "sure", "robust", "all agree", "relocated", "split", "merged"].map((detail) => option(detail, detail))),
    );
    form.append(make("input", { type: "hidden", name: "sort" }), make("input", { type: "hidden", name: "down" }));
    form.addEventListener("input", changed);
    form.addEventListener("submit", (event) => event.preventDefault());
    document.getElementById("feature-corpora").append(...facts.corpora.flatMap((corpus) => [make("span", { class: "swatch", style: `background:${facts.colours.corpora[corpus]}` }), corpus]));
    document.getElementById("feature-csv").addEventListener("click", csv);
  }

  function buildTable() {
    const heads = TABLE_COLUMNS.map(([column, words, kind]) => {
      const button = make("button", { type: "button" }, words);
      button.addEventListener("click", () => sortBy(column, kind));
      return make("th", { scope: "col", class: kind, "data-column": column, "aria-sort": "none" }, button);
    });
    const table = make("table", { class: "compact" }, make("thead", {}, make("tr", {}, ...heads)), make("tbody"));
    const view = document.getElementById("feature-rows");
    view.replaceChildren(table);
    view.addEventListener("scroll", () => requestAnimationFrame(() => render()));
    new ResizeObserver(() => render()).observe(view);
  }

  function sortBy(column, kind) {
    const down = state.sort === column ? (state.down ? "" : "1") : kind === "number" ? "1" : "";
    state = { ...state, sort: column, down };
    fillControls();
    changed();
  }

  function say(words) {
    document.getElementById("feature-count").textContent = visible(words);
  }

  let started = null;
  /** Load the tables of all models, once. */
  function start() {
    started ??= (async () => {
      if (typeof DecompressionStream === "undefined") return say("This browser cannot read the features; use one from 2023 or later.");
      try {
        rows = joined(await Promise.all(facts.models.map((model) => load(`${facts.hookpoint}/${model}/table`))));
      } catch (error) {
        return say(`The features could not be read from ${error.message}, next to this page. Keep the folder report/ together, or set report.single_file.`);
      }
      state = emptyState();
      buildControls();
      buildTable();
      update();
    })();
    return started;
  }

  /** Start: `given` is the page's JSON with models, edges, layout, corpora and verdicts. */
  function explore(given) {
    facts = given;
    window.addEventListener("hashchange", follow);
    const observer = new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting)) {
        observer.disconnect();
        start();
      }
    }, { rootMargin: "600px" });
    observer.observe(document.getElementById("features"));
    follow();
  }

  return { receive, load, explore, choose };
})();
