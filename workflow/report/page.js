"use strict";
/* The page: figures drawn after the text, flows that lead to their features. */
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);

  /** Draw Plotly's figures. Each is JSON in a script element after the element it is drawn in. */
  function drawFigures() {
    for (const element of document.querySelectorAll(".figure")) {
      const figure = JSON.parse(element.nextElementSibling.textContent);
      const config = { displaylogo: false, responsive: true, modeBarButtons: [["toImage", "resetScale2d"]], toImageButtonOptions: { format: "svg", filename: element.id } };
      Plotly.newPlot(element, figure.data, figure.layout, config).then(hidePieces);
      if (element.id !== "plot-flows") continue;
      element.on("plotly_click", (event) => followFlow(event.points[0]));
      element.on("plotly_afterplot", () => liftLabels(element));
    }
  }

  /** Hide Plotly's pieces from screen readers, because they have no names; the figure's label describes them all. */
  function hidePieces() {
    for (const piece of document.querySelectorAll(".figure svg, #js-plotly-tester")) piece.setAttribute("aria-hidden", "true");
  }

  /** Put the labels of the flows above their bars, because Plotly writes them across the flows. */
  function liftLabels(figure) {
    const bars = [...figure.querySelectorAll(".sankey-node")].map((node) => [node.querySelector(".node-rect"), node.querySelector(".node-label")]);
    const lefts = bars.map(([bar]) => bar.getBoundingClientRect().left), first = Math.min(...lefts), last = Math.max(...lefts);
    bars.forEach(([bar, label], index) => {
      const width = Number(bar.getAttribute("width"));
      const [anchor, x] = lefts[index] === first ? ["start", 0] : lefts[index] === last ? ["end", width] : ["middle", width / 2];
      for (const [name, value] of Object.entries({ "text-anchor": anchor, x, y: 0, transform: "translate(0,-5)" })) label.setAttribute(name, value);
    });
  }

  /** Show the features of a flow: its data name the edge, the side, the verdict and the group; or those of a model. */
  function followFlow(point) {
    if (!Array.isArray(point.customdata)) {
      if (point.customdata) saelineage.choose({ model: point.customdata });
      return; // a verdict
    }
    const [, parent, child, side, verdict, group] = point.customdata;
    saelineage.choose({ on: [parent, child, side, verdict].join("."), detail: group === "all" ? "" : group });
  }

  // Print everything, also what is folded away.
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((element) => (element.open = true)));
  saelineage.explore(read("lineage-facts"));
  requestAnimationFrame(() => setTimeout(drawFigures));
})();
