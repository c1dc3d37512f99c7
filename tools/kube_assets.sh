#!/usr/bin/env bash
# The real control plane that the Kubernetes tests run: etcd, kube-apiserver, kube-controller-manager, kube-scheduler 1.20.2.
# Debian's source package is the newest one that holds them in full and can be had from a distribution's own mirror; building
# takes about three minutes on two cores and 1.6 GB of scratch space, once: the result (250 MB) is kept in a cache folder.
#
#   tools/kube_assets.sh [DEST]      prints the folder of the binaries; all else goes to stderr
#
# DEST is by default ~/.cache/orchestrator/kube/1.20.2. Newer binaries (`setup-envtest use -p path`) do as well: name their
# folder in KUBEBUILDER_ASSETS and this script is not called at all.
set -euo pipefail

version=1.20.2
dest="${1:-${XDG_CACHE_HOME:-$HOME/.cache}/orchestrator/kube/$version}"
parts=(kube-apiserver kube-controller-manager kube-scheduler)
export DEBIAN_FRONTEND=noninteractive
apt=(apt-get -o DPkg::Lock::Timeout=300 -qq)

say() { echo "kube_assets: $*" >&2; }
fail() {
    say "$*"
    say "or name a folder with etcd, ${parts[*]} in KUBEBUILDER_ASSETS (setup-envtest use -p path)"
    exit 1
}

complete() {
    local part
    for part in "${parts[@]}" etcd; do [ -x "$dest/$part" ] || return 1; done
    command -v kubectl >/dev/null || return 1
    new_kubectl
}

# The manifests have kustomize components, which kubectl knows since 1.21.
new_kubectl() {
    local minor
    minor="$(kubectl version --client -o json 2>/dev/null | sed -n 's/.*"minor": *"\([0-9]*\).*/\1/p' | head -1)"
    [ "${minor:-0}" -ge 21 ] && return
    say "$(command -v kubectl) is older than 1.21 (Debian bookworm's is): put a newer one on PATH"
    exit 1
}

mkdir -p "$(dirname "$dest")"
complete && { echo "$dest"; exit 0; }
exec 9>"$dest.lock"
flock 9 # two runs at once build once
complete && { echo "$dest"; exit 0; }

[ "$(id -u)" -eq 0 ] || fail "building the control plane installs Debian packages, and this is not root: run it as root"
command -v apt-get >/dev/null || fail "building the control plane needs Debian's apt-get, which is not here"

scratch="$(mktemp -d /tmp/kube-assets.XXXXXX)"
trap 'rm -rf "$scratch"' EXIT

wanted=()
command -v kubectl >/dev/null || wanted+=(kubernetes-client)
if ! [ -x "$dest/kube-scheduler" ]; then
    wanted+=(golang-1.19-go golang-github-modern-go-reflect2-dev etcd-server rsync make gcc jq dpkg-dev xz-utils)
fi
say "installing ${wanted[*]}"
"${apt[@]}" update >"$scratch/apt.log" 2>&1 || true # a mirror that is away for a moment matters only if the next line fails
"${apt[@]}" install -y --no-install-recommends "${wanted[@]}" >>"$scratch/apt.log" 2>&1 ||
    { tail -20 "$scratch/apt.log" >&2; fail "apt-get could not install ${wanted[*]} (Debian bookworm has them)"; }
complete && { echo "$dest"; exit 0; }

# Sources come from the machine's own Debian mirrors, through lists of our own: its apt configuration is left alone.
mkdir -p "$scratch/apt/lists/partial" "$scratch/apt/cache/archives/partial" "$scratch/apt/sources"
for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [ -e "$list" ] || continue
    sed -n 's/^deb /deb-src /p' "$list" >"$scratch/apt/sources/$(basename "$list" .list).list"
done
for list in /etc/apt/sources.list.d/*.sources; do
    [ -e "$list" ] || continue
    sed 's/^Types:.*/Types: deb-src/' "$list" >"$scratch/apt/sources/$(basename "$list")"
done
source_apt=("${apt[@]}" -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$scratch/apt/sources"
    -o "Dir::State::lists=$scratch/apt/lists" -o "Dir::Cache=$scratch/apt/cache")
say "fetching the source package"
cd "$scratch"
{ "${source_apt[@]}" update && "${source_apt[@]}" source kubernetes; } >>"$scratch/apt.log" 2>&1 ||
    { tail -20 "$scratch/apt.log" >&2; fail "apt-get could not fetch the source package kubernetes"; }
cd kubernetes-*/
[ -d cmd/kube-apiserver ] || fail "the source package $(basename "$PWD") has no API server in it; Debian bookworm's 1.20 has"

# Go >= 1.18 breaks the vendored reflect2 1.0.1; Debian's is newer.
rm -rf vendor/github.com/modern-go/reflect2
cp -rL /usr/share/gocode/src/github.com/modern-go/reflect2 vendor/github.com/modern-go/reflect2
rm -f vendor/github.com/modern-go/reflect2/go.mod
export PATH="/usr/lib/go-1.19/bin:$PATH" HOME="$scratch/home" GOPATH="$PWD/.go" GOCACHE="$scratch/go-cache"
export CGO_ENABLED=0 GOPROXY=off GOFLAGS='' KUBE_GIT_VERSION_FILE="$scratch/version"
mkdir -p "$HOME" .go/src/k8s.io
ln -s ../../.. .go/src/k8s.io/kubernetes
printf "KUBE_GIT_%s\n" "COMMIT='debian'" "TREE_STATE='clean'" "VERSION='v$version'" "MAJOR='1'" "MINOR='20'" >"$scratch/version"
say "building ${parts[*]} (about three minutes)"
make WHAT="${parts[*]/#/cmd/}" GOLDFLAGS="-s -w" >"$scratch/make.log" 2>&1 ||
    { tail -30 "$scratch/make.log" >&2; fail "the build failed"; }

made="$(mktemp -d "$dest.XXXXXX")" # beside the goal, so that the last move is one rename
chmod 755 "$made"
cp "${parts[@]/#/_output/bin/}" "$made/"
cp "$(command -v etcd)" "$made/"
rm -rf "$dest"
mv "$made" "$dest"
complete || fail "$dest is not complete after the build"
echo "$dest"
