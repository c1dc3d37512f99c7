#!/usr/bin/env bash
# Makes .venv what requirements.lock says, and installs the project into it. `make setup` calls it when the lock or
# pyproject.toml is newer than the last time. pip uses the machine's own configuration, so a machine that offers a
# CPU build of torch gets it, and any other gets PyPI's.
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3}"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "setup: $python is older than 3.11 or missing; name another one: make setup PYTHON=python3.11" >&2
    exit 1
fi

echo "setup: .venv from requirements.lock (about a minute)" >&2
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install -qq --disable-pip-version-check --requirement requirements.lock
.venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
.venv/bin/python -m pip check >/dev/null || { .venv/bin/python -m pip check >&2; exit 1; }

# Importing torch takes three times as long without .pyc files, and pip may have been told not to write them. Left out: a
# file of torch's own tests in the syntax of Python 3.12.
site="$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
.venv/bin/python -m compileall -q -j 0 -x 'testing/_internal/py312_' "$site/torch" "$site/ray" >&2
echo "setup: done" >&2
