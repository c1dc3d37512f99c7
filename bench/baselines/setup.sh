#!/usr/bin/env bash
# Makes the environment of one measured system on demand and prints the path of its python as the last line.
# Usage: setup.sh torchrun|torchft    PYTHON=... picks the interpreter. Made again when its requirements change.
set -euo pipefail
name=${1:?usage: setup.sh torchrun|torchft}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
requirements=$here/requirements-$name.txt
[ -f "$requirements" ] || { echo "no such system: $name" >&2; exit 2; }
mkdir -p "$root/.bench"
[ -f "$root/.bench/.gitignore" ] || echo '*' > "$root/.bench/.gitignore"
venv=$root/.bench/$name-venv
exec 9> "$root/.bench/$name.lock"
flock 9 # two benches at once make it once
want=$(sha256sum < "$requirements")
if [ "$(cat "$venv/.made-from" 2>/dev/null)" != "$want" ]; then
  rm -rf "$venv"
  python=${PYTHON:-$([ -x "$root/.venv/bin/python" ] && echo "$root/.venv/bin/python" || echo python3)}
  "$python" -m venv "$venv" >&2
  # --no-deps: the file pins everything, so nothing can drag in another torch.
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-deps -r "$requirements" >&2
  "$venv/bin/python" -m pip check >&2
  echo "$want" > "$venv/.made-from"
fi
echo "$venv/bin/python"
