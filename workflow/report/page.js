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
      if (element.id === "plot-flows") element.on("plotly_click", (event) => followFlow(event.points[0]));
    }
  }

  /** Hide Plotly's pieces from screen readers, because they have no names; the figure's label describes them all. */
  function hidePieces() {
    for (const piece of document.querySelectorAll(".figure svg, #js-plotly-tester")) piece.setAttribute("aria-hidden", "true");
  }

  /** Show the features of a flow: its data name the edge, the side, the verdict and the group; or those of a model. */
  function followFlow(point) {
    const [, model, child, side, verdict, group] = point.customdata; // of a flow the parent; of a verdict null
    if (!child) {
      if (model) saelineage.choose({ model });
      return;
    }
    saelineage.choose({ on: [model, child, side, verdict].join("."), detail: group === "all" ? "" : group });
  }

  // Print everything, also what is folded away.
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((element) => (element.open = true)));
  saelineage.explore(read("lineage-facts"));
  requestAnimationFrame(() => setTimeout(drawFigures));
})();
