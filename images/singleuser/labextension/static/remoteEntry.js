// JupyterLab's part of the client package: a line in the status bar for each Flower client of this server, and the way to
// the projects on the Hub. What is shown comes from the server extension (federator/lab_status.py).
//
// Written by hand, so that there is nothing to build: JupyterLab loads this file as a module federation container, which
// hands it the modules that it shares and asks it for "./extension".
"use strict";

(() => {
  const NAME = "notebook-federator";
  const OPEN = "notebook-federator:open-projects";
  const INTERVAL_MS = 10000;
  const LONGEST_INTERVAL_MS = 120000;
  const SHOWN_AT_MOST = 2; // clients, each with a link of its own
  const ICON = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" width="16" height="16">
    <g class="jp-icon3" fill="#616161"><circle cx="12" cy="5" r="3.4"/><circle cx="18.7" cy="9.8" r="3.4"/>
    <circle cx="16.1" cy="17.6" r="3.4"/><circle cx="7.9" cy="17.6" r="3.4"/><circle cx="5.3" cy="9.8" r="3.4"/></g>
    <circle class="jp-icon-warn0" fill="#f37524" cx="12" cy="12" r="3.2"/></svg>`;

  let shared = {};

  const load = async (module) => {
    const [offered] = Object.values(shared[module]);
    return (await offered.get())();
  };

  // "Flower: Lungs - working, round 3 of 10"
  const sentence = ({ project, state, detail }) => `Flower: ${project} - ${state}${detail ? `, ${detail}` : ""}`;

  const link = (text, url, title) => {
    const anchor = document.createElement("a");
    anchor.textContent = text;
    anchor.href = url;
    anchor.target = "_blank";
    anchor.rel = "noopener";
    anchor.title = title;
    Object.assign(anchor.style, {
      color: "inherit",
      padding: "0 6px",
      maxWidth: "36em",
      overflow: "hidden",
      textOverflow: "ellipsis",
      whiteSpace: "nowrap",
    });
    return anchor;
  };

  const links = ({ clients, projects_url }) => {
    if (clients.length > SHOWN_AT_MOST) {
      const working = clients.filter((one) => one.state === "working").length;
      return [link(`Flower: ${clients.length} clients, ${working} working`, projects_url, clients.map(sentence).join("\n"))];
    }
    return clients.map((one) => link(sentence(one), one.url, "Open the project's page on the Hub"));
  };

  const makePlugin = async () => {
    const [{ ICommandPalette }, { ILauncher }, { IStatusBar }, { LabIcon }, { ServerConnection }, { Poll }, { Widget }] =
      await Promise.all(
        [
          "@jupyterlab/apputils",
          "@jupyterlab/launcher",
          "@jupyterlab/statusbar",
          "@jupyterlab/ui-components",
          "@jupyterlab/services",
          "@lumino/polling",
          "@lumino/widgets",
        ].map(load),
      );

    const ask = async (settings) => {
      const answer = await ServerConnection.makeRequest(`${settings.baseUrl}federator/status`, {}, settings);
      if (!answer.ok) throw new ServerConnection.ResponseError(answer);
      return answer.json();
    };

    // The links keep their places while nothing changes, so that the keyboard's focus stays on them.
    const show = (node, status) => {
      const fresh = links(status);
      const changed = fresh.map((one) => one.outerHTML).join() !== [...node.children].map((one) => one.outerHTML).join();
      if (changed) node.replaceChildren(...fresh);
    };

    const addStatus = (statusBar, settings, first) => {
      const item = new Widget();
      item.addClass("federator-status");
      Object.assign(item.node.style, { display: "flex", alignItems: "center" });
      statusBar.registerStatusItem(`${NAME}:clients`, { align: "left", item, rank: 10 });
      show(item.node, first);
      const poll = new Poll({
        name: `${NAME}:clients`,
        standby: "when-hidden",
        frequency: { interval: INTERVAL_MS, backoff: true, max: LONGEST_INTERVAL_MS },
        factory: async () => show(item.node, await ask(settings)),
      });
      item.disposed.connect(() => poll.dispose());
    };

    return {
      id: `${NAME}:clients`,
      description: "Shows this server's Flower clients and links to their projects.",
      autoStart: true,
      optional: [ICommandPalette, ILauncher, IStatusBar],
      activate: async (app, palette, launcher, statusBar) => {
        const settings = app.serviceManager.serverSettings;
        let first;
        try {
          first = await ask(settings);
        } catch (error) {
          console.info("Flower clients are not shown: this server belongs to no federation, or does not answer.", error);
          return;
        }
        app.commands.addCommand(OPEN, {
          label: "Federation projects",
          caption: "Open my federated projects on the Hub",
          icon: new LabIcon({ name: `${NAME}:flower`, svgstr: ICON }),
          describedBy: { args: { type: "object", properties: {} } },
          execute: () => {
            window.open(first.projects_url, "_blank", "noopener");
          },
        });
        palette?.addItem({ command: OPEN, category: "Federation" });
        launcher?.add({ command: OPEN, category: "Other", rank: 10 });
        if (statusBar) addStatus(statusBar, settings, first);
      },
    };
  };

  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB[NAME] = {
    init: (scope) => {
      shared = scope;
    },
    get: async () => {
      const plugin = await makePlugin();
      return () => ({ __esModule: true, default: plugin });
    },
  };
})();
