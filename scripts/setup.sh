#!/bin/sh
# Makes .venv with everything the demo and the tests need, and the Hub's proxy in .node. Safe to run again.
# usage: scripts/setup.sh          (PYTHON=python3.12 scripts/setup.sh for another interpreter)
set -eu
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$@" >&2; }
stop() { say "" "setup: $1" "       $2"; exit 1; }

find_python() {
    for candidate in ${PYTHON:-python3.11 python3 python3.12 python3.13}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' 2>/dev/null; then
            printf '%s' "$candidate"
            return
        fi
    done
}

python=$(find_python)
[ -n "$python" ] || stop "no Python 3.11 or newer was found." "Install it (apt-get install python3 python3-venv), or name one: make demo PYTHON=/path/to/python3.11"

"$python" -c 'import venv, ensurepip' 2>/dev/null \
    || stop "this Python cannot make virtual environments." "apt-get install python3-venv, then the same command again."

# The CUDA builds of torch are the ones PyPI has; they run without a GPU.
wanted_kb=9000000
if [ ! -e .venv/.ready ]; then
    free_kb=$(df -Pk . | awk 'NR == 2 { print $4 }')
    [ "$free_kb" -ge "$wanted_kb" ] \
        || stop "the disk has $((free_kb / 1000000)) GB free; PyTorch and the rest need $((wanted_kb / 1000000)) GB." "Free some space, then the same command again."
fi

wanted=$(cat pyproject.toml images/singleuser/pyproject.toml scripts/setup.sh | cksum)
if [ "$(cat .venv/.ready 2>/dev/null || true)" = "$wanted" ] && [ -x .node/node_modules/.bin/configurable-http-proxy ]; then
    exit 0
fi

say "Setting up in .venv and .node (about 6 GB, a few minutes the first time) ..."
[ -x .venv/bin/python ] || "$python" -m venv .venv || stop "the virtual environment could not be made." "See the line above."
log=.venv/setup.log
.venv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9' >"$log" 2>&1 || {
    tail -n 3 "$log" >&2
    stop "pip could not install its first package." "Is the network (or the package mirror in your pip configuration) reachable? Details: $log"
}
say "  Python packages ..."
.venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python --editable images/singleuser --editable '.[embedded,postgresql,s3,demo,test]' >"$log" 2>&1 || {
    tail -n 5 "$log" >&2
    stop "the Python packages could not be installed." "A full disk or no network is the usual cause; the lines above say which. The same command goes on from there. Details: $log"
}
say "  configurable-http-proxy ..."
PATH="$PWD/.venv/bin:$PATH" .venv/bin/npm install --silent --no-audit --no-fund --prefix .node configurable-http-proxy@5.3.0 >"$log" 2>&1 || {
    tail -n 5 "$log" >&2
    stop "npm could not install configurable-http-proxy, the Hub's proxy." "Is the npm registry (or your mirror of it) reachable? Details: $log"
}
printf '%s' "$wanted" >.venv/.ready
say "  done."
