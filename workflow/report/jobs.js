/*
 * The jobs of a run: a click on a box of the picture, or on a name in the table, shows the details of that job.
 * `saelineageJobs(root, jobs)`: root holds the picture (drawing.jobs_svg), jobs is the result of listing.collect. Makes no
 * requests; all text is set as text, never as markup (elements.js).
 */
function saelineageJobs(root, jobs) {
  "use strict";
  const { lines, make } = elements;
  const STATES = ["fresh", "stale", "missing", "running"];
  const SIGNS = { fresh: "✓", stale: "▲", missing: "✕", running: "▶" };
  const picture = root.querySelector("svg.dag");
  const boxes = new Map([...root.querySelectorAll("svg.dag [data-job]")].map((box) => [Number(box.dataset.job), box]));
  const follows = jobs.map(() => []);
  jobs.forEach((job) => job.needs.forEach((needed) => follows[needed].push(job.id)));
  const shown = { states: new Set(STATES), stage: "" };
  const rows = new Map();
  let opener = null;

  function button(text, action, attributes = {}) {
    const made = make("button", { type: "button", ...attributes }, text);
    made.addEventListener("click", action);
    return made;
  }

  function title(job) {
    return job.name ? job.rule + " " + job.name : job.rule;
  }

  function size(bytes) {
    if (bytes === null || bytes === undefined) return "not there";
    const units = ["B", "kB", "MB", "GB", "TB"];
    let power = 0;
    while (bytes >= 999.5 && power < units.length - 1) [bytes, power] = [bytes / 1000, power + 1];
    return (power ? bytes.toPrecision(3) : bytes) + " " + units[power];
  }

  function time(seconds) {
    if (seconds === null) return "not measured";
    if (seconds < 60) return seconds.toFixed(1) + " s";
    const minutes = Math.round(seconds / 60);
    return minutes < 60 ? Math.floor(seconds / 60) + " min " + Math.floor(seconds % 60) + " s"
      : Math.floor(minutes / 60) + " h " + (minutes % 60) + " min";
  }

  /* Filters: boxes fade, rows disappear. */

  function isShown(job) {
    return shown.states.has(job.state) && (!shown.stage || job.stage === shown.stage);
  }

  function filter() {
    let count = 0;
    for (const job of jobs) {
      const matches = isShown(job);
      count += matches;
      if (boxes.has(job.id)) boxes.get(job.id).classList.toggle("faded", !matches);
      rows.get(job.id).hidden = !matches;
    }
    status.textContent = count + " of " + jobs.length + " jobs shown";
  }

  function stateFilters() {
    const group = make("fieldset", {}, make("legend", {}, "State"));
    for (const state of STATES) {
      const count = jobs.filter((job) => job.state === state).length;
      if (!count) continue;
      const box = make("input", { type: "checkbox", checked: "" });
      box.addEventListener("change", () => {
        shown.states[box.checked ? "add" : "delete"](state);
        filter();
      });
      const sign = make("span", { class: "sign " + state, "aria-hidden": "true" }, SIGNS[state]);
      group.append(make("label", {}, box, sign, " " + state + " (" + count + ")"));
    }
    return group;
  }

  function stageFilter() {
    const select = make("select", {}, make("option", { value: "" }, "all"));
    for (const stage of new Set(jobs.map((job) => job.stage))) select.append(make("option", { value: stage }, stage));
    select.addEventListener("change", () => {
      shown.stage = select.value;
      filter();
    });
    return make("label", {}, "Stage ", select);
  }

  /* Zoom. */

  const LEAST_AT_FIRST = 0.6; // smaller text cannot be read
  const natural = picture ? [picture.width.baseVal.value, picture.height.baseVal.value] : [1, 1];
  let scale = 1;

  function zoom(to) {
    scale = Math.min(3, Math.max(0.1, to));
    picture.setAttribute("width", natural[0] * scale);
    picture.setAttribute("height", natural[1] * scale);
  }

  function wholeWidth() {
    return frame.clientWidth / natural[0];
  }

  function zoomButtons() {
    return make("span", { role: "group", "aria-label": "Zoom" },
      button("−", () => zoom(scale / 1.25), { "aria-label": "Zoom out" }),
      button("+", () => zoom(scale * 1.25), { "aria-label": "Zoom in" }),
      button("Whole width", () => zoom(wholeWidth())), button("Real size", () => zoom(1)));
  }

  /* The details of one job. */

  /* Highlight a job and its neighbours, or none. The job is the picture's only stop for the tab key. */
  function mark(id) {
    const near = id === null ? [] : [...jobs[id].needs, ...follows[id]];
    for (const [number, box] of boxes) {
      box.classList.toggle("chosen", number === id);
      box.classList.toggle("near", near.includes(number));
      box.setAttribute("tabindex", number === (id ?? jobs[0].id) ? "0" : "-1");
    }
  }

  function close() {
    mark(null);
    details.hidden = true;
    root.classList.remove("open");
    if (opener) opener.focus({ preventScroll: true });
    opener = null;
  }

  function jobLinks(heading, ids) {
    const list = make("ul", { class: "links" });
    for (const id of ids) list.append(make("li", {}, button(title(jobs[id]), () => select(id))));
    return [make("h4", {}, heading + " (" + ids.length + ")"), list];
  }

  function fileList(job) {
    const list = make("ul", { class: "files" });
    for (const file of job.files) {
      const absent = file.temporary ? "removed after use" : "not there";
      const digest = file.sha256 ? ["sha256 ", make("code", {}, file.sha256)] : ["no digest on record"];
      const words = (file.bytes === null ? absent : size(file.bytes)) + ", ";
      list.append(make("li", {}, make("code", {}, file.path), make("small", {}, words, ...digest)));
    }
    return list;
  }

  function block(heading, text) {
    return make("details", { open: "" }, make("summary", {}, heading),
      make("pre", { class: "scroll", tabindex: "0" }, lines(text)));
  }

  function facts(job) {
    const list = make("dl", {});
    const add = (name, text) => list.append(make("dt", {}, name), make("dd", {}, text));
    add("state", job.state + (job.why.length ? ": " + job.why.join("; ") : ""));
    add("stage", job.stage);
    add("time", time(job.seconds));
    add("memory", job.max_rss_mb === null ? "not measured" : Math.round(job.max_rss_mb) + " MiB at most");
    add("files", size(job.bytes) + " in " + job.files.length);
    return list;
  }

  function provenance(job) {
    if (!job.provenance) return [make("p", { class: "none" }, "These files have no manifest.")];
    const { settings, ...others } = job.provenance;
    return [block("Settings", JSON.stringify(settings, null, 1)), block("Code and versions", JSON.stringify(others, null, 1))];
  }

  function select(id) {
    const job = jobs[id];
    mark(id);
    const heading = make("h3", { tabindex: "-1" }, title(job));
    const log = job.log && job.log.tail !== null ? block("The end of " + job.log.path, job.log.tail || "(empty)")
      : make("p", { class: "none" }, "There is no log.");
    const outside = job.inputs.length ? [block("Files that no job makes", job.inputs.join("\n"))] : [];
    details.replaceChildren(button("Close", close, { class: "close" }), heading, facts(job), fileList(job), log,
      ...provenance(job), ...outside, ...jobLinks("Needs", job.needs), ...jobLinks("Is needed by", follows[id]));
    details.hidden = false;
    root.classList.add("open");
    details.scrollTop = 0;
    heading.focus({ preventScroll: true });
    details.scrollIntoView({ block: "nearest" });
    if (boxes.has(id)) boxes.get(id).scrollIntoView({ block: "nearest", inline: "center" });
  }

  function open(id, from) {
    opener = from;
    select(id);
  }

  /* The keyboard: the picture has one tab stop; arrow keys go to the nearest box in that direction. */

  const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  function neighbour(box, [right, down]) {
    const centre = (of) => {
      const place = of.querySelector(".box");
      return [place.x.baseVal.value, place.y.baseVal.value];
    };
    const [x, y] = centre(box);
    let best = null, least = Infinity;
    for (const other of boxes.values()) {
      const [dx, dy] = [centre(other)[0] - x, centre(other)[1] - y];
      const along = right * dx + down * dy, across = Math.abs(right ? dy : dx);
      if (along > 1 && along + 3 * across < least) [best, least] = [other, along + 3 * across];
    }
    return best;
  }

  function onKey(event) {
    const box = event.target.closest("[data-job]");
    if (event.key === "Escape" && !details.hidden) close();
    else if (box && (event.key === "Enter" || event.key === " ")) open(Number(box.dataset.job), box);
    else if (box && DIRECTIONS[event.key]) {
      const next = neighbour(box, DIRECTIONS[event.key]);
      if (next) {
        box.setAttribute("tabindex", "-1");
        next.setAttribute("tabindex", "0");
        next.focus();
      }
    } else return;
    event.preventDefault();
  }

  /* The table. */

  const COLUMNS = [
    ["job", title], ["stage", (job) => job.stage], ["state", (job) => STATES.indexOf(job.state)],
    ["time", (job) => job.seconds ?? -1], ["memory", (job) => job.max_rss_mb ?? -1], ["files", (job) => job.bytes],
  ];

  function sort(column, header, body) {
    const down = header.getAttribute("aria-sort") === "ascending";
    for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = COLUMNS[column][1];
    const order = [...jobs].sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : a.id - b.id));
    for (const job of down ? order.reverse() : order) body.append(rows.get(job.id));
  }

  function row(job) {
    const sign = make("span", { class: "sign " + job.state, "aria-hidden": "true" }, SIGNS[job.state]);
    const name = button(title(job), () => open(job.id, name), { class: "link" });
    const why = job.why.length ? [make("small", {}, job.why.join("; "))] : [];
    const memory = job.max_rss_mb === null ? "" : Math.round(job.max_rss_mb) + " MiB";
    const made = make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, job.stage),
      make("td", {}, sign, " " + job.state, ...why),
      make("td", { class: "number" }, job.seconds === null ? "" : time(job.seconds)),
      make("td", { class: "number" }, memory), make("td", { class: "number" }, size(job.bytes)));
    rows.set(job.id, made);
    return made;
  }

  function table() {
    const body = make("tbody", {}, ...jobs.map(row));
    const head = make("tr", {});
    COLUMNS.forEach(([name], column) => {
      const header = make("th", { scope: "col", class: column > 2 ? "number" : "" });
      header.append(button(name, () => sort(column, header, body), { class: "link" }));
      head.append(header);
    });
    const whole = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "All jobs" },
      make("table", { class: "compact" }, make("thead", {}, head), body));
    const folded = make("details", boxes.size ? {} : { open: "" }, make("summary", {}, "All jobs as a table"), whole);
    return folded;
  }

  /** Scroll to the first job, because a tall picture begins with empty space beside it. */
  function showFirst() {
    const corners = [...boxes.values()].map((box) => box.querySelector(".box")).map((box) => [box.x.baseVal.value, box.y.baseVal.value]);
    if (!corners.length) return;
    const [, top] = corners.sort((a, b) => a[0] - b[0] || a[1] - b[1])[0];
    frame.scrollTop = (top * picture.clientHeight) / picture.viewBox.baseVal.height - 30;
  }

  const status = make("output", { class: "status" });
  const details = make("section", { class: "job-details", "aria-label": "Details of a job", hidden: "" });
  const frame = make("div", { class: "job-picture" });
  const tools = make("div", { class: "job-tools" }, stateFilters(), stageFilter());
  const area = make("div", { class: "job-area" }, frame, details);
  if (picture) frame.append(picture);
  if (boxes.size) tools.append(zoomButtons());
  tools.append(status);
  root.classList.add("jobs");
  root.append(tools, area, table());
  showFirst();
  for (const [id, box] of boxes) box.addEventListener("click", () => open(id, box));
  root.addEventListener("keydown", onKey);
  if (boxes.size) {
    mark(null);
    zoom(Math.min(1, Math.max(LEAST_AT_FIRST, wholeWidth())));
  }
  filter();
}
