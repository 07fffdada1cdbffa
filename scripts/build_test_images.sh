#!/bin/sh
# Builds the images that the tests start, and the base that they share, in one engine. No registry is needed: the base is
# made from Debian's packages. Safe to run again: what has not changed is not built.
# usage: scripts/build_test_images.sh [DOCKER_HOST]          e.g. unix:///run/docker.sock; else the engine `docker` knows
set -eu
cd "$(dirname "$0")/.."
[ $# -eq 0 ] || export DOCKER_HOST="$1"
export DOCKER_BUILDKIT=1

torch=torch==2.13.0  # the same as in images/test-base/Dockerfile
debian=bookworm
debian_python=3.11
base=notebook-federator/test-base
label=org.notebook-federator.inputs
# The build machine's own certificate authorities, if it has any.
certificates=/usr/local/share/ca-certificates
[ -d "$certificates" ] || certificates=/dev/null

say() { printf '%s\n' "$@" >&2; }
stop() { say "" "build_test_images: $1" "       $2"; exit 1; }

# BuildKit is in every client of Docker 20.10; later ones need their buildx plugin for it.
find_docker() {
    for candidate in docker /usr/bin/docker; do
        if "$candidate" buildx version >/dev/null 2>&1 || "$candidate" --version 2>/dev/null | grep -q 'version 20\.10'; then
            printf '%s' "$candidate"
            return
        fi
    done
}

sum() { sha256sum | cut -c 1-64; }

# One sum over the names and contents of all files below these paths.
sum_of() { find "$@" -name __pycache__ -prune -o -type f -print0 | sort -z | xargs -0 sha256sum | sum; }

made_from() { "$docker" image inspect --format "{{index .Config.Labels \"$label\"}}" "$1" 2>/dev/null || true; }

# build TAG INPUTS ARGUMENTS...: unless the image is from these inputs already.
build() {
    tag=$1 inputs=$2
    shift 2
    [ "$(made_from "$tag")" != "$inputs" ] || return 0
    say "  $tag ..."
    "$docker" build --network host --progress plain --label "$label=$inputs" --tag "$tag" "$@" >"$work/log" 2>&1 || {
        tail -n 30 "$work/log" >&2
        stop "$tag could not be built." "The lines above say why. The same command goes on from there."
    }
}

build_base() {
    [ "$(made_from "$base")" != "$base_inputs" ] || return 0
    command -v mmdebstrap >/dev/null || stop "mmdebstrap is not here." "apt-get install mmdebstrap, then the same command again."
    python=python3
    [ ! -x .venv/bin/python ] || python=.venv/bin/python
    say "  Debian ..."
    mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3,python3-venv "$debian" "$work/debian.tar" \
        || stop "mmdebstrap could not make the base." "It needs Debian's packages (or your mirror of them); the lines above say more."
    "$docker" import --change "LABEL $label=$debian" "$work/debian.tar" "$base:debian" >/dev/null
    mkdir "$work/context" "$work/context/certificates" "$work/context/wheels"
    find "$certificates" -name '*.crt' -exec cp {} "$work/context/certificates" \;
    "$python" -m pip download -qq --no-deps --python-version "$debian_python" --only-binary :all: \
        --dest "$work/context/wheels" "$torch" || stop "pip could not download $torch." "The lines above say why."
    build "$base" "$base_inputs" --file images/test-base/Dockerfile "$work/context"
}

build_postgresql() {
    image=notebook-federator/test-postgresql
    inputs=$(echo "$debian $(sum_of images/test-postgresql)" | sum)
    [ "$(made_from "$image:test")" != "$inputs" ] || return 0
    say "  Debian with PostgreSQL ..."
    mmdebstrap --quiet --variant=minbase --include=postgresql "$debian" "$work/postgresql.tar" \
        || stop "mmdebstrap could not make the database's base." "It needs Debian's packages (or your mirror of them); the lines above say more."
    "$docker" import "$work/postgresql.tar" "$image:debian" >/dev/null
    build "$image:test" "$inputs" --file images/test-postgresql/Dockerfile images/test-postgresql
}

docker=$(find_docker)
[ -n "$docker" ] || stop "no Docker client with BuildKit was found." "apt-get install docker.io (or docker-buildx-plugin)"
"$docker" version >/dev/null 2>&1 || stop "no Docker engine answers at ${DOCKER_HOST:-its usual address}." "Start it, or name another: scripts/build_test_images.sh unix:///path/to/docker.sock"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

base_inputs=$(echo "$debian $torch $(sum_of images/test-base "$certificates")" | sum)
client="$base_inputs $(sum_of .dockerignore images/singleuser images/requirements_of.py)"
service="$client $(sum_of README.md pyproject.toml hub_service spawner)"

build_base
build_postgresql
build notebook-federator/singleuser:test "$(echo "$client" | sum)" \
    --build-arg BASE_IMAGE="$base" --file images/singleuser/Dockerfile .
build notebook-federator/aggregator:test "$(echo "$service $(sum_of images/aggregator)" | sum)" \
    --build-arg BASE_IMAGE="$base" --build-arg APP_PACKAGES="torch scikit-learn pandas xgboost-cpu>=3.2,<4" --file images/aggregator/Dockerfile .
build notebook-federator/hub:test "$(echo "$service $(sum_of images/hub jupyterhub_config.py)" | sum)" \
    --build-arg BASE_IMAGE="$base" --file images/hub/Dockerfile .
# What these took the place of, unless a container still uses it.
"$docker" image prune --force --filter "label=$label" >/dev/null
