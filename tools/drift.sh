#!/usr/bin/env bash
# Fails, with a diff, when a generated file in the repository is not what its source generates today.
set -euo pipefail
cd "$(dirname "$0")/.."

fresh="$(mktemp -d)"
trap 'rm -rf "$fresh"' EXIT
tools/generate.sh all "$fresh"

status=0
for path in orchestrator/adapters/grpc/pb docs/{job,model,cluster}.schema.json docs/state-machine.md \
    manifests/crd/trainingjobs.yaml; do
    diff --recursive --unified --new-file --exclude=__pycache__ "$path" "$fresh/$path" || status=1
done
[ "$status" = 0 ] || echo "drift: generated files are out of date: run 'make generate' and commit" >&2
exit "$status"
