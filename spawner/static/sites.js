// The page of the sites: fetches what each engine says, starts checks and shows their results as they come.
"use strict";

(() => {
  const headers = { "X-XSRFToken": window.jhdata.xsrf_token };

  async function fetched(url, options) {
    const answer = await fetch(url, { credentials: "same-origin", headers, ...options });
    // After a logout the Hub answers with its login page, which is not ours to show.
    if (!answer.ok || answer.redirected) throw new Error(`status ${answer.status}`);
    return answer.text();
  }

  function trouble(element) {
    const text = document.createElement("p");
    text.className = "alert alert-warning mb-0";
    text.textContent = "The Hub does not answer. Reload the page to try again.";
    element.replaceChildren(text);
  }

  async function load(element) {
    try {
      element.innerHTML = await fetched(element.dataset.load);
    } catch (error) {
      trouble(element);
      console.warn("sites:", error);
    }
  }

  function running(report) {
    return report.querySelector("[data-seen]");
  }

  async function follow(button, report) {
    const status = document.getElementById(`${report.id}-status`);
    button.setAttribute("aria-disabled", "true");
    button.textContent = "Checking …";
    try {
      for (let shown = running(report); shown; shown = running(report)) {
        report.innerHTML = await fetched(`${button.dataset.check}?seen=${shown.dataset.seen}`);
      }
      status.textContent = `Check finished: ${report.querySelector("summary").textContent.trim()}`;
    } catch (error) {
      trouble(report);
      console.warn("sites:", error);
    }
    button.removeAttribute("aria-disabled");
    button.textContent = "Check now";
  }

  async function check(button, report) {
    if (button.hasAttribute("aria-disabled")) return;
    document.getElementById(`${report.id}-status`).textContent = "Check started.";
    try {
      report.innerHTML = await fetched(button.dataset.check, { method: "POST" });
    } catch (error) {
      trouble(report);
      console.warn("sites:", error);
      return;
    }
    await follow(button, report);
  }

  document.querySelectorAll("[data-load]").forEach(load);
  document.querySelectorAll("[data-check]").forEach((button) => {
    const report = document.getElementById(button.dataset.report);
    button.addEventListener("click", () => check(button, report));
    if (running(report)) follow(button, report);
  });
})();
