"use strict";
/* The page's own: figures drawn once the text stands, pictures and tables to take away, flows that lead to features. */
(() => {
  const STYLES = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-linejoin", "paint-order", "font-family", "font-size", "font-weight", "text-anchor"];

  const read = (id) => JSON.parse(document.getElementById(id).textContent);

  /** Plotly's figures lie in the page as JSON, each behind the element it is drawn in. */
  function drawFigures() {
    for (const element of document.querySelectorAll(".figure")) {
      const figure = JSON.parse(element.nextElementSibling.textContent);
      const config = { displaylogo: false, responsive: true, modeBarButtons: [["toImage", "resetScale2d"]], toImageButtonOptions: { format: "svg", filename: element.id } };
      Plotly.newPlot(element, figure.data, figure.layout, config).then(hidePieces);
      if (element.id === "plot-flows") element.on("plotly_click", (event) => followFlow(event.points[0]));
    }
  }

  /** The pieces that Plotly draws with have no names; to a screen reader the figure's own name stands for them. */
  function hidePieces() {
    for (const piece of document.querySelectorAll(".figure svg, #js-plotly-tester")) piece.setAttribute("aria-hidden", "true");
  }

  /** A flow leads to its features: its data name the edge, the side and the verdict. */
  function followFlow(point) {
    if (Array.isArray(point.customdata)) saelineage.choose({ on: point.customdata.slice(1).join(".") });
  }

  /** A picture of the page as a file of its own: the styles that the page gives it go along. */
  function saveSvg(svg, name) {
    const copy = svg.cloneNode(true), own = [svg, ...svg.querySelectorAll("*")], copies = [copy, ...copy.querySelectorAll("*")];
    own.forEach((element, index) => {
      const style = getComputedStyle(element);
      copies[index].setAttribute("style", STYLES.map((property) => `${property}:${style.getPropertyValue(property)}`).join(";"));
    });
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    saelineage.download(`${name}.svg`, "image/svg+xml", new XMLSerializer().serializeToString(copy));
  }

  /** What is known of every job, once its picture comes into view. */
  function showJobs() {
    const root = document.getElementById("jobs");
    const seen = new IntersectionObserver(async (entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      seen.disconnect();
      try {
        saelineageJobs(root, await saelineage.load("jobs"));
      } catch (error) {
        root.append(`What is known of each job lies beside this page, in ${error.message}, which could not be read.`);
      }
    }, { rootMargin: "600px" });
    seen.observe(root);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-svg]");
    if (button) saveSvg(document.querySelector(button.dataset.svg), button.dataset.name);
  });
  // Pages are printed with everything that is folded away.
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((element) => (element.open = true)));
  saelineage.explore(read("lineage-facts"));
  showJobs();
  requestAnimationFrame(() => setTimeout(drawFigures));
})();
