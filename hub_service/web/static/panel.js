// The Hub's home page: fetches the federation panel and puts it into #federation-panel.
"use strict";

document.addEventListener("DOMContentLoaded", async () => {
  const panel = document.getElementById("federation-panel");
  if (!panel) return;
  try {
    // "no-cors" is the mode in which the Hub lets a page of its own origin read without an XSRF token of the service.
    const answer = await fetch(panel.dataset.src, { mode: "no-cors", credentials: "same-origin" });
    const fragment = await answer.text();
    // A login page, or the proxy's own error, is not ours to show.
    if (!answer.headers.has("X-Federation-API")) throw new Error(`status ${answer.status}`);
    panel.innerHTML = fragment;
  } catch (error) {
    panel.textContent = "The federation service does not answer. Reload the page to try again.";
    console.warn("federation panel:", error);
  }
});
