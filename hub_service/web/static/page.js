// Every page: asks before what cannot be undone, says times in the reader's own zone, and tells a screen reader what has
// changed.
"use strict";

document.addEventListener("submit", (event) => {
  const question = (event.submitter?.dataset.confirm ?? "") || event.target.dataset.confirm;
  if (question && !window.confirm(question)) {
    event.preventDefault();
  }
});

// A file that the service would refuse for its size is refused before it is sent, so that the form keeps what is in it.
document.addEventListener("change", (event) => {
  const most = Number(event.target.dataset?.mostBytes);
  if (!most) return;
  const tooLarge = [...event.target.files].some((file) => file.size > most);
  event.target.setCustomValidity(
    tooLarge ? `This file has more than ${most >> 20} MB. Clear the notebook's outputs and leave data and weights out.` : "",
  );
  event.target.reportValidity();
});

(() => {
  const IN_WORDS = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  const IN_FULL = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });

  const localize = () => {
    for (const time of document.querySelectorAll("time[datetime]:not([data-local])")) {
      const at = new Date(time.dateTime);
      if (Number.isNaN(at.getTime())) continue;
      time.dataset.local = "";
      time.title = IN_FULL.format(at);
      time.textContent = IN_WORDS.format(at);
    }
  };

  // One live region for the whole page, which says the step that a project is at, and only when it is another one: a
  // region around what changes each second would be read out each second.
  const said = document.getElementById("said");
  const spoken = () => document.querySelector("[data-say]")?.textContent.replace(/\s+/g, " ").trim() ?? "";
  let last = spoken();
  const speak = () => {
    const now = spoken();
    if (!said || now === last) return;
    last = now;
    said.textContent = now;
  };

  localize();
  new MutationObserver(() => {
    localize();
    speak();
  }).observe(document.body, { childList: true, subtree: true });
})();
