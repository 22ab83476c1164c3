# Shared by the set-up scripts (POSIX sh): what they say, Debian packages, Python venvs.
# Invariant: with nothing missing each call is quick, changes nothing and asks no server.

cd "$(dirname "$0")/../.." || exit 1

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# need_packages PACKAGE... installs the Debian packages that are missing, or says how to.
need_packages() {
    if ! command -v dpkg-query >/dev/null; then
        say "not a Debian system: make sure that you have what these packages hold: $*"
        return 0
    fi
    missing=
    for package in "$@"; do
        dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -q '^installed' \
            || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        die "Debian packages are missing. Run these, then make again:
    sudo apt-get update
    sudo apt-get install -y --no-install-recommends$missing"
    fi
    say "installing Debian packages:$missing"
    # shellcheck disable=SC2086 # a list of package names
    if apt-cache show $missing >/dev/null 2>&1 && apt_get install $missing; then
        return 0
    fi
    # No package lists yet, or lists too old for the archive.
    say "fetching the package lists first"
    # shellcheck disable=SC2086
    apt_get update && apt_get install $missing || die "apt-get could not install:$missing"
}

apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 \
        -o APT::Install-Recommends=false "$@" </dev/null
}

# need_python: a python3 that can make a venv with pip in it.
need_python() {
    if ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
        need_packages python3 python3-venv
        python3 -c 'import venv, ensurepip' || die "this python3 cannot make a venv: $(command -v python3)"
    fi
}

# need_venv DIR REQUIREMENTS makes DIR, or brings it up to date with the requirements file.
# The copy of that file in DIR is written last, so a half-made venv is never taken for a whole one.
need_venv() {
    # A venv holds absolute paths: one that was moved, or whose Python is gone, is made anew.
    if cmp -s "$2" "$1/requirements.txt" && [ "$(cat "$1/home" 2>/dev/null)" = "$PWD/$1" ] && [ -x "$1/bin/python" ]; then
        return 0
    fi
    need_python
    if [ "$(cat "$1/home" 2>/dev/null)" != "$PWD/$1" ] || ! "$1/bin/python" -m pip --version >/dev/null 2>&1; then
        say "making $1 with $(python3 --version)"
        python3 -m venv --clear "$1" || die "could not make the venv $1"
    fi
    say "installing into $1: $(grep -v '^#' "$2" | tr '\n' ' ')"
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check -r "$2" </dev/null \
        || die "pip could not install $2"
    printf '%s\n' "$PWD/$1" >"$1/home"
    cp "$2" "$1/requirements.txt"
}
