"use strict";
// Draws every chart of the page; a tooltip's text is escaped by vega-tooltip, its looks are the page's.
const specs = JSON.parse(document.getElementById("charts").textContent);
for (const spec of Object.values(specs)) {
  spec.config.legend.columns = window.innerWidth < 560 ? 3 : 6;
}
const options = { renderer: "svg", actions: false, tooltip: { disableDefaultStyle: true } };
const drawn = Object.entries(specs).map(([name, spec]) => window.vegaEmbed(document.getElementById("chart-" + name), spec, options));
Promise.all(drawn).then(
  () => { document.documentElement.dataset.charts = "ready"; },
  (error) => { document.documentElement.dataset.charts = "failed"; console.error(error); },
);
