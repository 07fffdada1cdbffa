// The project's page: fetches Plotly, 4.7 MB, once there is something to draw and not before.
"use strict";

(() => {
  let loading = null;

  // A promise of Plotly. A failure is forgotten, so that the next figure tries again.
  window.loadPlotly = () => {
    loading ??= new Promise((loaded, failed) => {
      const script = document.createElement("script");
      script.src = document.getElementById("live").dataset.plotly;
      script.addEventListener("load", () => loaded(window.Plotly));
      script.addEventListener("error", () => {
        loading = null;
        failed(new Error("Plotly could not be loaded."));
      });
      document.head.append(script);
    });
    return loading;
  };
})();
