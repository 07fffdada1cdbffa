// The result of a run: which metric is shown, and its heat map, which is fetched when it is looked at.
"use strict";

(() => {
  const section = document.getElementById("result");
  if (!section) return;
  let drawn = null; // the element and the metric that were drawn last

  const chosen = () => section.querySelector("#result-metric")?.value
    ?? section.querySelector(".result-by-metric")?.dataset.metric ?? "";

  const draw = async () => {
    const map = section.querySelector("#heat-map");
    if (!map || !map.closest("details").open) return;
    const metric = chosen();
    if (drawn?.map === map && drawn.metric === metric) return;
    drawn = { map, metric };
    const query = `metric=${encodeURIComponent(metric)}&_xsrf=${encodeURIComponent(map.dataset.xsrf)}`;
    const answer = await fetch(`${map.dataset.src}?${query}`).catch(() => null);
    if (!answer?.ok) {
      drawn = null;
      window.Plotly?.purge(map);
      map.textContent = "The heat map could not be loaded. Close it and open it again.";
      return;
    }
    const { figure } = await answer.json();
    if (!figure || drawn?.map !== map || drawn.metric !== metric) return;
    const plotly = await window.loadPlotly();
    if (!map.data) map.textContent = ""; // an earlier message; what Plotly has drawn is its own
    plotly.react(map, figure.data, figure.layout, { responsive: true, displayModeBar: false });
  };

  const show = () => {
    const metric = chosen();
    for (const one of section.querySelectorAll(".result-by-metric")) one.hidden = one.dataset.metric !== metric;
    draw();
  };

  section.addEventListener("change", show);
  section.addEventListener("toggle", draw, true); // a toggle does not bubble
  // The event stream replaces the section as a whole.
  new MutationObserver(show).observe(section, { childList: true });
  show();
})();
