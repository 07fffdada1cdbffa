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

  // The choice stands outside of the sections: nothing that comes in takes it from under a person's hands.
  const choice = document.getElementById("curve-choice");
  const metric = document.getElementById("metric");
  const offerMetrics = ({ metric: shown, metrics }) => {
    const offered = JSON.stringify(metrics);
    if (metric.dataset.offered !== offered) {
      metric.dataset.offered = offered;
      const groups = new Map();
      for (const [key, title, group] of metrics) {
        if (!groups.has(group)) {
          const optgroup = document.createElement("optgroup");
          optgroup.label = group;
          groups.set(group, optgroup);
        }
        groups.get(group).append(new Option(title, key));
      }
      metric.replaceChildren(...groups.values());
    }
    metric.value = shown;
    choice.hidden = false;
  };

  let newest = null;
  const showFigure = async (figure) => {
    newest = figure;
    const plotly = await window.loadPlotly();
    if (figure !== newest) return;
    curve.hidden = false;
    offerMetrics(figure.layout.meta);
    plotly.react(curve, figure.data, figure.layout, { responsive: true, displayModeBar: false });
  };

  // A stream is refused for its login or its XSRF token, as after a second login in another tab: a fresh page has both
  // anew. Or nobody answers, as while the service restarts: then this page stays, with all that was typed into it.
  const RENEW_AT_MOST_EVERY_MS = 30000; // so that a page never reloads in circles
  const FIRST_PAUSE_MS = 1000;
  const LONGEST_PAUSE_MS = 15000;
  const events = new URL(live.dataset.events, window.location.href);
  const address = new URL(events.pathname.replace(/\/events$/, ""), events).href;
  const askForPage = async () => {
    const token = { "X-XSRFToken": events.searchParams.get("_xsrf") };
    try {
      return await fetch(address, { headers: token, redirect: "manual", cache: "no-store" });
    } catch {
      return null;
    }
  };
  const mayRenew = () => {
    const renewed = Number(window.sessionStorage.getItem("federation-renewed"));
    if (Date.now() - renewed < RENEW_AT_MOST_EVERY_MS) return false;
    window.sessionStorage.setItem("federation-renewed", String(Date.now()));
    return true;
  };

  let stream;
  let refusals = 0; // since the stream was open
  const comeBack = async (refused, chosen) => {
    // Not all pages at the same moment.
    const pause = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** refusals) * (0.5 + Math.random() / 2);
    refusals += 1;
    await new Promise((passed) => { window.setTimeout(passed, pause); });
    const answer = await askForPage();
    if (stream !== refused) return; // another metric was chosen meanwhile
    const isService = answer?.headers.has("X-Federation-API"); // and not the proxy or the Hub in its place
    const isRefused = isService && answer.status >= 400 && answer.status < 500 && answer.status !== 429;
    if (isService && answer.ok) follow(chosen);
    else if ((answer?.type === "opaqueredirect" || isRefused) && mayRenew()) window.location.replace(address);
    else comeBack(refused, chosen);
  };
  const follow = (chosen) => {
    stream?.close();
    const source = new EventSource(live.dataset.events + (chosen ? `&metric=${encodeURIComponent(chosen)}` : ""));
    stream = source;
    source.addEventListener("open", () => {
      connection.hidden = true;
      refusals = 0;
    });
    source.addEventListener("error", () => {
      connection.hidden = false;
      if (source.readyState === EventSource.CLOSED) comeBack(source, chosen);
    });
    source.addEventListener("section", (event) => showSection(JSON.parse(event.data)));
    source.addEventListener("figure", (event) => showFigure(JSON.parse(event.data)));
    source.addEventListener("gone", () => {
      source.close();
      window.location.reload();
    });
  };
  follow("");
  metric.addEventListener("change", () => follow(metric.value));
  // A page that is left must not hold one of the browser's few connections to the Hub.
  window.addEventListener("pagehide", () => stream.close());

  // How long a site has been at it, by this browser's clock.
  const LOOK_MS = 1000;
  const tellSince = () => {
    for (const one of document.querySelectorAll(".since[data-since]")) {
      const seconds = Math.max(0, Math.round((Date.now() - Date.parse(one.dataset.since)) / 1000));
      one.textContent = seconds < 120 ? `for ${seconds} s` : `for ${Math.floor(seconds / 60)} min`;
    }
  };
  window.setInterval(tellSince, LOOK_MS);
  new MutationObserver(tellSince).observe(document.getElementById("runs"), { childList: true });

  // The log is asked for while somebody reads it.
  const LONGEST_LOG = 500000; // characters on the page
  const log = document.getElementById("log");
  const lines = document.getElementById("log-lines");
  const read = { run: "", end: 0, whole: false, asking: false };
  const readLog = async () => {
    const run = document.querySelector("#runs .run")?.dataset;
    log.hidden = !run;
    if (!run || !log.open || document.hidden || read.asking) return;
    if (run.run !== read.run) {
      Object.assign(read, { run: run.run, end: 0, whole: false });
      lines.textContent = "";
    }
    if (read.whole) return;
    read.asking = true;
    const ended = "ended" in run;
    try {
      const query = `after=${read.end}&_xsrf=${encodeURIComponent(log.dataset.xsrf)}`;
      const answer = await fetch(`${log.dataset.runs}/${encodeURIComponent(read.run)}/log?${query}`);
      if (answer.ok) addLines(await answer.json(), ended);
    } catch {
      return; // the next look asks again
    } finally {
      read.asking = false;
    }
  };
  const addLines = ({ text, start, end }, ended) => {
    const atEnd = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 40;
    if (start > read.end) lines.append("… older lines are left out …\n");
    if (end < read.end) lines.textContent = ""; // the log was cut
    if (text) lines.append(text);
    if (lines.textContent.length > LONGEST_LOG) lines.textContent = lines.textContent.slice(-LONGEST_LOG / 2);
    read.whole = ended && end === read.end;
    read.end = end;
    if (atEnd) lines.scrollTop = lines.scrollHeight;
  };
  log.addEventListener("toggle", readLog);
  window.setInterval(readLog, LOOK_MS);
})();
