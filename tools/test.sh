#!/usr/bin/env bash
# All tests: those marked `chaos` come last and two at a time, the others four at a time, because most of them wait. Further
# arguments go to both halves; one in which they select nothing is fine.
set -uo pipefail
bin="$1"
shift

# Hosts are network namespaces in some tests; who may make them may install what that takes.
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null && ! { command -v ip && command -v tc && command -v nft; } >/dev/null; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq iproute2 nftables
fi

run() {
    "$bin/python" -m pytest "$@"
    local status=$?
    [ "$status" -eq 5 ] && return 0
    return "$status"
}

status=0
run -n 4 --dist loadfile --no-loadscope-reorder -m "not chaos" "$@" || status=$?
run -n 2 --dist loadfile --no-loadscope-reorder -m chaos "$@" || status=$?
exit "$status"
