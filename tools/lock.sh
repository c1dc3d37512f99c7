#!/usr/bin/env bash
# Writes requirements.lock from what .venv holds: exact versions of everything, transitive ones included. To change a
# version: install it into .venv, run `make lock check`, commit both.
set -euo pipefail
cd "$(dirname "$0")/.."

frozen="$(.venv/bin/python -m pip freeze --all --exclude-editable --exclude pip --exclude orchestrator)"
if grep -n -E '@|://' <<<"$frozen"; then
    echo "lock: .venv holds packages that came from a URL or a file; install them by name first" >&2
    exit 1
fi

new="$(mktemp)"
trap 'rm -f "$new"' EXIT
{
    cat <<'HEAD'
# Written by tools/lock.sh (`make lock`): do not edit.
# Exact versions, transitive ones included, from Python 3.11 on Linux. torch is pinned without a build tag, so that pip takes
# the CPU build where the machine's configuration offers one, else PyPI's CUDA build, whose own pins then choose the
# NVIDIA packages (they are part of that wheel's metadata, exact for a given torch, and so not repeated here).
HEAD
    sed -E 's/^(torch==[^+]+)\+.*/\1/' <<<"$frozen" | LC_ALL=C sort -f
} >"$new"
cat "$new" >requirements.lock
echo "lock: $(grep -c == requirements.lock) packages in requirements.lock" >&2
