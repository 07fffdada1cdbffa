// For NODE_OPTIONS=--require of configurable-http-proxy, which has no setting for it.
//
// Node ends a request whose body takes longer than five minutes (http.Server's requestTimeout): a site with a thin line
// would send its model again and again, and never to its end. Who sends nothing is cut off by the federation service.
"use strict";

const LONGEST_MS = 24 * 3600 * 1000;

for (const module of [require("node:http"), require("node:https")]) {
  const createServer = module.createServer;
  module.createServer = (...options) => Object.assign(createServer(...options), { requestTimeout: LONGEST_MS });
}
require("node:module").syncBuiltinESMExports();
