"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const now = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const show = () => {
    const other = now() === "dark" ? "light" : "dark";
    button.textContent = other === "dark" ? "\u263e Dark" : "\u2600 Light";
    button.setAttribute("aria-label", `Switch to the ${other} theme`);
  };
  // A page from a file may not keep anything; then the choice lasts as long as the page.
  try {
    const kept = localStorage.getItem("duquant-theme");
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  } catch { }
  button.addEventListener("click", () => {
    root.dataset.theme = now() === "dark" ? "light" : "dark";
    try { localStorage.setItem("duquant-theme", root.dataset.theme); } catch { }
    show();
  });
  dark.addEventListener("change", show);
  show();
  button.hidden = false;
})();
