#!/usr/bin/env bash
# All tests: first those that start no Ray cluster, on two cores, then the others one after the other. Further arguments go to
# both; a half in which they select nothing is fine.
set -uo pipefail
bin="$1"
shift

run() {
    "$bin/python" -m pytest "$@"
    local status=$?
    [ "$status" -eq 5 ] && return 0
    return "$status"
}

status=0
run -n 2 --dist loadfile -m "not ray and not chaos" "$@" || status=$?
run -m "ray or chaos" "$@" || status=$?
exit "$status"
