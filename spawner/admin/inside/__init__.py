"""Scripts that `checks` runs inside short-lived containers at a site: standard library only, one JSON object printed.

Each ends itself after `alarm` seconds, so that the engine never waits for one that hangs on a dead file server.
"""
