"use strict";
/* The page: figures drawn after the text, downloads of pictures, flows that lead to their features. */
(() => {
  const STYLES = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-linejoin", "paint-order", "font-family", "font-size", "font-weight", "text-anchor"];

  const read = (id) => JSON.parse(document.getElementById(id).textContent);

  /** Draw Plotly's figures. Each is JSON in a script element after the element it is drawn in. */
  function drawFigures() {
    for (const element of document.querySelectorAll(".figure")) {
      const figure = JSON.parse(element.nextElementSibling.textContent);
      const config = { displaylogo: false, responsive: true, modeBarButtons: [["toImage", "resetScale2d"]], toImageButtonOptions: { format: "svg", filename: element.id } };
      Plotly.newPlot(element, figure.data, figure.layout, config).then(hidePieces);
      if (element.id === "plot-flows") element.on("plotly_click", (event) => followFlow(event.points[0]));
    }
  }

  /** Hide Plotly's pieces from screen readers, because they have no names; the figure's label describes them all. */
  function hidePieces() {
    for (const piece of document.querySelectorAll(".figure svg, #js-plotly-tester")) piece.setAttribute("aria-hidden", "true");
  }

  /** Show the features of a flow: its data name the edge, the side, the verdict and the group. */
  function followFlow(point) {
    if (!Array.isArray(point.customdata)) return; // a node
    const [, parent, child, side, verdict, group] = point.customdata;
    saelineage.choose({ on: [parent, child, side, verdict].join("."), detail: group === "all" ? "" : group });
  }

  /** Save a picture of the page as a file, with the styles that the page gives it. */
  function saveSvg(svg, name) {
    const copy = svg.cloneNode(true), originals = [svg, ...svg.querySelectorAll("*")], copies = [copy, ...copy.querySelectorAll("*")];
    originals.forEach((element, index) => {
      const style = getComputedStyle(element);
      copies[index].setAttribute("style", STYLES.map((property) => `${property}:${style.getPropertyValue(property)}`).join(";"));
    });
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    saelineage.download(`${name}.svg`, "image/svg+xml", new XMLSerializer().serializeToString(copy));
  }

  /** Load the data of the jobs once their picture comes into view. */
  function showJobs() {
    const root = document.getElementById("jobs");
    const observer = new IntersectionObserver(async (entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      try {
        saelineageJobs(root, await saelineage.load("jobs"));
      } catch (error) {
        root.append(`The details of jobs could not be read from ${error.message}, next to this page.`);
      }
    }, { rootMargin: "600px" });
    observer.observe(root);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-svg]");
    if (button) saveSvg(document.querySelector(button.dataset.svg), button.dataset.name);
  });
  // Print everything, also what is folded away.
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((element) => (element.open = true)));
  saelineage.explore(read("lineage-facts"));
  showJobs();
  requestAnimationFrame(() => setTimeout(drawFigures));
})();
