"use strict";
(() => {
  const found = { errors: [], resources: [], themes: [] };
  addEventListener("error", e => found.errors.push(e.message || `cannot load ${e.target.src || e.target.href}`), true);
  addEventListener("unhandledrejection", e => found.errors.push(String(e.reason)));
  addEventListener("securitypolicyviolation", e => found.errors.push(`stopped by the policy: ${e.effectiveDirective} ${e.blockedURI}`));

  const parts = color => (color.match(/[\d.]+/g) || []).map(Number);
  const over = (top, below) => {
    const alpha = top[3] ?? 1;
    return [0, 1, 2].map(i => top[i] * alpha + below[i] * (1 - alpha));
  };
  // The background that is seen behind an element.
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const color = parts(getComputedStyle(e).backgroundColor);
      if ((color[3] ?? 1) > 0) layers.push(color);
      if ((color[3] ?? 1) >= 1) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const light = rgb => {
    const [r, g, b] = rgb.map(v => v / 255).map(v => (v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const contrast = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + .05) / (y + .05);
  };
  const visible = element => element.getClientRects().length > 0;
  const name = element => element.tagName.toLowerCase() + (element.id ? `#${element.id}` : "");

  const measure = () => {
    const page = document.documentElement;
    const theme = { width: innerWidth, overflow: page.scrollWidth - innerWidth, widest: "", plots: [], faint: [] };
    theme.dark = light(behind(document.body)) < .2;
    // What sticks out of the page, outside of boxes that scroll.
    for (const e of document.querySelectorAll("body *")) {
      if (!e.closest(".scroll") && e.getBoundingClientRect().right > innerWidth + 1) theme.widest = name(e);
    }
    for (const svg of document.querySelectorAll("svg.plot")) {
      const box = svg.getBoundingClientRect();
      const marks = [...svg.querySelectorAll("path, rect, circle, image")].filter(e => {
        const b = e.getBBox(), style = getComputedStyle(e);
        return b.width + b.height > 0 && (e.tagName === "image" || style.fill !== "none" || style.stroke !== "none");
      });
      const title = svg.querySelector("title")?.textContent || "";
      theme.plots.push({ title, width: box.width, height: box.height, marks: marks.length });
      for (const e of svg.querySelectorAll(".mark, .bar, .series")) {
        const style = getComputedStyle(e);
        const own = e.matches(".series, .hollow") ? style.stroke : style.fill;
        if (contrast(parts(own), behind(svg)) < 3) theme.faint.push(`${title}: ${e.getAttribute("class")} ${own}`);
      }
      for (const e of svg.querySelectorAll("text:not(.in-bar)")) {
        if (contrast(parts(getComputedStyle(e).fill), behind(svg)) < 4.5) theme.faint.push(`${title}: ${e.textContent}`);
      }
    }
    for (const e of document.querySelectorAll("h1, h2, h3, p, li, dt, dd, th, td, a, button, summary, strong, span, caption")) {
      if (!visible(e) || !e.textContent.trim() || e.closest("svg")) continue;
      const below = behind(e);
      if (contrast(over(parts(getComputedStyle(e).color), below), below) < 4.5) theme.faint.push(e.textContent.slice(0, 60));
    }
    return theme;
  };

  addEventListener("load", () => setTimeout(() => {
    found.themes.push(measure());
    document.getElementById("theme").click();
    found.themes.push(measure());
    found.resources = performance.getEntriesByType("resource").map(r => r.name).filter(url => !url.startsWith("data:"));
    parent.postMessage(JSON.stringify(found), "*");
  }, 50));
})();
