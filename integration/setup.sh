# shellcheck shell=bash
# Sourced by the scripts beside it. Installs what they need from Debian's packages and leaves
# $repo (this checkout), $GRIT_CACHE (what is worth keeping between runs) and $python (an
# interpreter with the project's dependencies, but not the project, installed).
set -euo pipefail

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
export GRIT_CACHE=${GRIT_CACHE:-/var/cache/grit-runtime}
export PYTHONPATH=$repo
export GRPC_ENABLE_FORK_SUPPORT=0 # tests fork, and enter namespaces: a child with threads cannot

if [[ $EUID -ne 0 ]]; then
    echo "$0: needs root: nodes are made of mounts, namespaces and cgroups" >&2
    exit 1
fi

install_packages() {
    local package missing=()
    for package in "$@"; do
        if [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) != installed ]]; then
            missing+=("$package")
        fi
    done
    if ((${#missing[@]})); then
        apt-get -qq update
        DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends \
            "${missing[@]}" >/dev/null
    fi
}

list_dependencies() {
    /usr/bin/python3 - "$repo/pyproject.toml" <<'PYTHON'
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
print(*project["dependencies"], *project["optional-dependencies"]["dev"], sep="\n")
PYTHON
}

# One environment a list of dependencies; a stamp tells a whole one from one cut short, and a
# lock that lasts as long as the run keeps it from being removed under it.
make_venv() {
    local key venv old
    key=$({ list_dependencies; /usr/bin/python3 --version; } | sha256sum | cut -c 1-16)
    venv=$GRIT_CACHE/venv-$key
    python=$venv/bin/python
    mkdir -p "$GRIT_CACHE"
    exec {lock}>"$GRIT_CACHE/venv.lock"
    flock "$lock"
    if [[ ! -e $venv/complete ]]; then
        for old in "$GRIT_CACHE"/venv-*; do
            [[ ! -e $old ]] || flock --nonblock "$old" rm -rf -- "$old" || true
        done
        /usr/bin/python3 -m venv "$venv"
        list_dependencies >"$venv/requirements.txt"
        "$python" -m pip install -qq --requirement "$venv/requirements.txt"
        touch "$venv/complete"
    fi
    exec {in_use}<"$venv"
    flock --shared "$in_use"
    exec {lock}>&-
}

install_packages busybox-static ca-certificates debian-archive-keyring gcc iproute2 libc6-dev \
    mmdebstrap python3-venv shellcheck
make_venv
