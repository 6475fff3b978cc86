"use strict";
/* Elements that hold text as text. Hidden characters, and those that change the direction of text, are made visible. */
const elements = (() => {
  const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\ufffe\uffff]/gu;
  const PICTURES = { "\n": "↵", "\t": "⇥", "\x7f": "␡" };
  const DRAWN = ["svg", "g", "rect", "path", "text", "title", "line"];

  function visible(text) {
    return String(text).replace(UNSEEN, (character) => {
      if (character in PICTURES) return PICTURES[character];
      const code = character.codePointAt(0);
      return code < 0x20 ? String.fromCharCode(0x2400 + code) : "\\u" + code.toString(16).padStart(4, "0");
    });
  }

  /** An element with attributes and children; strings become text, never markup. */
  function make(tag, attributes = {}, ...children) {
    const element = DRAWN.includes(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== null).map((child) => (child instanceof Node ? child : visible(child))));
    return element;
  }

  /** A text with its line breaks. */
  function lines(text) {
    return document.createTextNode(String(text).split("\n").map(visible).join("\n"));
  }

  return { lines, make, visible };
})();
