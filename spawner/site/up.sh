#!/bin/sh
# Notebook Federator: isolates a site's notebook servers. Run as root on the host of the site's Docker engine.
#
#   From a server: the Hub's address and port, and nothing else.
#   To a server:   connections from the Hub's proxy to the server's published port, and nothing else.
#
# Running it again changes nothing. With the argument "rules" it leaves Docker alone: for a boot, before Docker starts.
set -eu

@SETTINGS@

fail() { echo "notebook-federator: $*" >&2; exit 2; }
[ "$(id -u)" = 0 ] || fail "run this as root: it changes firewall rules"
for needed in iptables iptables-restore ip6tables; do
    command -v "$needed" > /dev/null || fail "there is no $needed here; install iptables"
done

# A packet from one server to another crosses the bridge without being routed. These switches show it to the rules below.
[ -d /proc/sys/net/bridge ] || modprobe br_netfilter || fail "this kernel has no br_netfilter; rules would not see bridges"
echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables
echo 1 > /proc/sys/net/bridge/bridge-nf-call-ip6tables

# Docker sends whatever it forwards through DOCKER-USER before its own rules, and keeps what others put there.
iptables -w -N DOCKER-USER 2> /dev/null || true

# Our two chains, each hooked in before everything else, and each set in one step: at no moment is half of it in force. A hook
# that is there already is taken out and put back in first place.
again() { if iptables -w -t "$@" 2> /dev/null; then shift 2; echo "-D $*"; fi; }
iptables-restore -w --noflush << RULES
*filter
:$FROM - [0:0]
# From a server: answers on connections that were let through.
-A $FROM -m conntrack --ctstate ESTABLISHED -j RETURN
# From a server: new connections to the Hub.
-A $FROM -p tcp -d $HUB --dport $HUB_PORT -j RETURN
# Everything else is refused with an answer: a program that tries fails soon, where DROP would have it wait. "Prohibited"
# also tells a refusal from a host that was reached and has no such port, so that a check can see the difference.
-A $FROM -j REJECT --reject-with icmp-admin-prohibited
# Forwarded by this host, routed or bridged: the internet, other networks, other servers.
$(again filter -C DOCKER-USER -i "$BRIDGE" -j "$FROM")
-I DOCKER-USER -i $BRIDGE -j $FROM
# To this host itself.
$(again filter -C INPUT -i "$BRIDGE" -j "$FROM")
-I INPUT -i $BRIDGE -j $FROM
COMMIT
*mangle
:$TO - [0:0]
# To a server: the Hub's answers, and errors about connections to the Hub ("packet too big").
-A $TO -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN
# To a server: the Hub's proxy. Docker's own rules let it reach published ports only.
-A $TO -p tcp -s $HUB_SOURCE -j RETURN
-A $TO -j DROP
# Only here is everything seen that goes to a server, also what people on this host send to a published port.
$(again mangle -C POSTROUTING -o "$BRIDGE" -j "$TO")
-I POSTROUTING -o $BRIDGE -j $TO
COMMIT
RULES

# Servers have no IPv6. Whatever comes from them by it is dropped before anything looks at it.
if [ -e /proc/net/if_inet6 ]; then
    ip6tables -w -t raw -C PREROUTING -i "$BRIDGE" -j DROP 2> /dev/null ||
        ip6tables -w -t raw -I PREROUTING -i "$BRIDGE" -j DROP
fi

[ "${1:-}" != rules ] || exit 0

command -v docker > /dev/null || fail "there is no docker command here; install it"
docker version > /dev/null 2>&1 || fail "Docker does not answer at ${DOCKER_HOST:-its usual socket}; start it"
iptables -w -C FORWARD -j DOCKER-USER 2> /dev/null ||
    fail "Docker does not use this host's iptables (rootless, or \"iptables\": false in daemon.json): nothing is isolated"

# The servers' network. Its interface has a fixed name, which the rules above go by. Docker's own rule against talk between
# servers (icc) says the same as ours, a second time.
if [ -z "$(docker network ls --quiet --filter "name=^$NETWORK\$")" ]; then
    docker network create --driver bridge ${SUBNET:+--subnet "$SUBNET"} \
        --opt "com.docker.network.bridge.name=$BRIDGE" \
        --opt com.docker.network.bridge.enable_icc=false \
        --label "$LABEL" "$NETWORK" > /dev/null
fi
shown='{{.Driver}} {{index .Options "com.docker.network.bridge.name"}}'
shown="$shown"' {{index .Options "com.docker.network.bridge.enable_icc"}} {{.EnableIPv6}}'
found=$(docker network inspect --format "$shown" "$NETWORK")
[ "$found" = "bridge $BRIDGE false false" ] || fail "there is a network $NETWORK of another make: driver, interface, icc and" \
    "IPv6 are \"$found\", not \"bridge $BRIDGE false false\". Remove it (docker network rm $NETWORK), or choose another --network"
subnet=$(docker network inspect --format '{{(index .IPAM.Config 0).Subnet}}' "$NETWORK")
[ "${SUBNET:-$subnet}" = "$subnet" ] || fail "the network $NETWORK has the subnet $subnet, not $SUBNET." \
    "Remove it (docker network rm $NETWORK), or leave --subnet out"
echo "Network $NETWORK ($subnet, $BRIDGE): servers on it reach $HUB port $HUB_PORT and nothing else."
