#!/bin/sh
# Notebook Federator: takes back what isolates a site's notebook servers. Run as root on the host of the site's Docker engine.
# Running it again changes nothing. What stays: the chain DOCKER-USER and the bridge-nf-call switches, which Docker uses too.
set -eu

@SETTINGS@

fail() { echo "notebook-federator: $*" >&2; exit 2; }
[ "$(id -u)" = 0 ] || fail "run this as root: it changes firewall rules"
for needed in iptables ip6tables docker; do
    command -v "$needed" > /dev/null || fail "there is no $needed here; install it"
done
docker version > /dev/null 2>&1 || fail "Docker does not answer at ${DOCKER_HOST:-its usual socket}; start it"

# The network goes first: no server is ever on it without the rules.
if [ -n "$(docker network ls --quiet --filter "name=^$NETWORK\$")" ]; then
    servers=$(docker ps --filter "network=$NETWORK" --format '{{.Names}}' | sort | tr '\n' ' ')
    [ -z "$servers" ] || fail "these servers run on $NETWORK; stop them from the Hub, then come again: $servers"
    docker network rm "$NETWORK" > /dev/null
fi

unhook() {
    while iptables -w -t "$1" -C "$2" "$3" "$BRIDGE" -j "$4" 2> /dev/null; do
        iptables -w -t "$1" -D "$2" "$3" "$BRIDGE" -j "$4"
    done
}
unhook filter DOCKER-USER -i "$FROM"
unhook filter INPUT -i "$FROM"
unhook mangle POSTROUTING -o "$TO"
if iptables -w -F "$FROM" 2> /dev/null; then iptables -w -X "$FROM"; fi
if iptables -w -t mangle -F "$TO" 2> /dev/null; then iptables -w -t mangle -X "$TO"; fi
while ip6tables -w -t raw -C PREROUTING -i "$BRIDGE" -j DROP 2> /dev/null; do
    ip6tables -w -t raw -D PREROUTING -i "$BRIDGE" -j DROP
done
echo "Network $NETWORK and its rules are gone."
