"use strict";
/* Files made from what a page shows: pictures by their buttons, texts by other scripts. */
const downloads = (() => {
  const { make } = elements;
  const STYLES = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-linejoin", "paint-order", "font-family", "font-size", "font-weight", "text-anchor"];

  function save(name, type, text) {
    const link = make("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  /** Save a picture of the page as a file, with the styles that the page gives it. */
  function saveSvg(svg, name) {
    const copy = svg.cloneNode(true), originals = [svg, ...svg.querySelectorAll("*")], copies = [copy, ...copy.querySelectorAll("*")];
    originals.forEach((element, index) => {
      const style = getComputedStyle(element);
      copies[index].setAttribute("style", STYLES.map((property) => `${property}:${style.getPropertyValue(property)}`).join(";"));
    });
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    save(`${name}.svg`, "image/svg+xml", new XMLSerializer().serializeToString(copy));
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-svg]");
    if (button) saveSvg(document.querySelector(button.dataset.svg), button.dataset.name);
  });

  return { save };
})();
