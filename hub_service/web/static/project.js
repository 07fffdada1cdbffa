// The project's page: shows what the event stream sends, without a reload.
"use strict";

(() => {
  const live = document.getElementById("live");
  const connection = document.getElementById("connection");
  const curve = document.getElementById("curve");

  // What a person is typing, has opened or stands on survives the replacement of a section.
  const remember = (section) => {
    const focused = section.contains(document.activeElement) ? document.activeElement.id : "";
    const fields = [...section.querySelectorAll("input:not([type=hidden]), select, textarea")]
      .filter((field) => field.id)
      .map((field) => [field.id, field.type === "checkbox" ? "checked" : "value", field]);
    const values = fields.map(([id, key, field]) => [id, key, field[key]]);
    const opened = [...section.querySelectorAll("details")].map((one) => one.open);
    return () => {
      for (const [id, key, value] of values) {
        const field = document.getElementById(id);
        if (field) field[key] = value;
      }
      section.querySelectorAll("details").forEach((one, place) => {
        one.open = opened[place] ?? one.open;
      });
      if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
    };
  };

  const showSection = ({ id, html, digest }) => {
    const section = document.getElementById(id);
    if (!section || section.dataset.digest === digest) return;
    const restore = remember(section);
    // What the last click brought about is old news once something else has happened.
    if (section.dataset.seen) document.getElementById("flash")?.remove();
    section.dataset.seen = "yes";
    section.innerHTML = html;
    section.dataset.digest = digest;
    restore();
  };

  const showFigure = (figure) => {
    if (!window.Plotly) return;
    curve.hidden = false;
    window.Plotly.react(curve, figure.data, figure.layout, { responsive: true, displayModeBar: false });
  };

  // A stream that is refused for good was refused for its login or its XSRF token, as after a second login in another
  // tab. A fresh page has both anew. Not more often than this, so that a page never reloads in circles.
  const RENEW_AT_MOST_EVERY_MS = 30000;
  const renew = () => {
    const renewed = Number(window.sessionStorage.getItem("federation-renewed"));
    if (Date.now() - renewed < RENEW_AT_MOST_EVERY_MS) return;
    window.sessionStorage.setItem("federation-renewed", String(Date.now()));
    window.location.reload();
  };

  const stream = new EventSource(live.dataset.events);
  stream.addEventListener("open", () => { connection.hidden = true; });
  stream.addEventListener("error", () => {
    connection.hidden = false;
    if (stream.readyState === EventSource.CLOSED) renew();
  });
  stream.addEventListener("section", (event) => showSection(JSON.parse(event.data)));
  stream.addEventListener("figure", (event) => showFigure(JSON.parse(event.data)));
  stream.addEventListener("gone", () => {
    stream.close();
    window.location.reload();
  });
  // A page that is left must not hold one of the browser's few connections to the Hub.
  window.addEventListener("pagehide", () => stream.close());
})();
