#!/usr/bin/env bash
# Installs those of the given programs that are missing, from Debian's packages or, where they are
# parts of Rust, with rustup. With nothing missing it does nothing, and needs neither root nor Debian.
#
# Usage: tests/tools.sh PROGRAM...
set -euo pipefail

main() {
    local missing=() packages=() program
    for program in "$@"; do
        is_there "$program" || missing+=("$program")
    done
    for program in "${missing[@]}"; do
        case $program in
            clippy | musl | rustfmt) add_to_rust "$program" ;;
            *)
                # Several words are several packages.
                # shellcheck disable=SC2207
                packages+=($(packages_of "$program"))
                ;;
        esac
    done
    ((${#packages[@]} > 0)) || return 0
    [[ -n $(type -P apt-get) ]] ||
        fail "please install ${missing[*]} (only on Debian can this be done for you)"
    local as_root=()
    if ((EUID != 0)); then
        [[ -n $(type -P sudo) ]] ||
            fail "please install the packages ${packages[*]} as root (there is no sudo to do it with)"
        as_root=(sudo)
    fi

    echo "tools: installing ${packages[*]}" >&2
    # On a machine that has just been started, apt is often at work already. Nothing is removed: a
    # package in the way of ours is for the user to decide about.
    as_root+=(env DEBIAN_FRONTEND=noninteractive apt-get --quiet --yes
        --option DPkg::Lock::Timeout=600 --no-remove)
    "${as_root[@]}" update >&2
    "${as_root[@]}" install --no-install-recommends "${packages[@]}" >&2
}

is_there() {
    case $1 in
        # Only a static one runs in a container that has no libraries.
        busybox) [[ -n $(type -P busybox) ]] && ! ldd "$(type -P busybox)" &>/dev/null ;;
        # rustup leaves a program of that name also where the component is missing.
        clippy) cargo clippy --version &>/dev/null ;;
        musl) [[ -d $(rustc --print target-libdir --target "$(musl_target)") ]] ;;
        rustfmt) cargo fmt --version &>/dev/null ;;
        *) [[ -n $(type -P "$1") ]] ;;
    esac
}

add_to_rust() {
    local what=(component add "$1")
    [[ $1 != musl ]] || what=(target add "$(musl_target)")
    echo "tools: rustup ${what[*]}" >&2
    [[ -n $(type -P rustup) ]] && timeout 120 rustup "${what[@]}" >&2 && return
    # The static binary can be linked with another libc.
    [[ $1 == musl ]] || fail "please install $1 for this Rust, which rustup can't do here"
    echo 'tools: there is no musl for Rust here, so the static binary will be linked with glibc' >&2
}

musl_target() {
    rustc --version --verbose | sed -n 's/^host: \([^-]*\)-.*/\1-unknown-linux-musl/p'
}

packages_of() {
    case $1 in
        busybox) echo busybox-static ;;
        cc) echo gcc libc6-dev ;;
        chrt | flock | nsenter | prlimit | setpriv | setsid | unshare) echo util-linux ;;
        ip) echo iproute2 ;;
        kill | ps) echo procps ;;
        newuidmap) echo uidmap ;;
        *) echo "$1" ;;
    esac
}

fail() {
    echo "tools: $*" >&2
    exit 1
}

main "$@"
