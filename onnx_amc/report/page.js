"use strict";
// Draws every chart of the page; a tooltip's text is escaped by vega-tooltip, its looks are the page's.
const specs = JSON.parse(document.getElementById("charts").textContent);
const options = { renderer: "svg", actions: false, tooltip: { disableDefaultStyle: true } };
const drawn = Object.entries(specs).map(([name, spec]) => window.vegaEmbed(document.getElementById("chart-" + name), spec, options));
Promise.all(drawn).then(
  () => { document.documentElement.dataset.charts = "ready"; },
  (error) => { document.documentElement.dataset.charts = "failed"; console.error(error); },
);
