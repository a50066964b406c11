#!/usr/bin/env bash
# Runs all tests, having got what they need beside Rust: the tools that are missing, a control plane
# and a static binary. The first run on a machine takes half an hour or more; later ones are quick.
#
# Usage: tests/run.sh [ARGUMENT OF cargo test...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

main() {
    has_rust || {
        echo 'run: please install Rust first; the version it takes is in Cargo.toml' >&2
        exit 1
    }

    local tools=(busybox cc chrt flock ip kill mount musl nsenter podman prlimit runc setpriv setsid
        strace unshare)
    # A container has more than one user id, which podman needs help with unless root runs it.
    ((EUID == 0)) || tools+=(newuidmap)
    tests/tools.sh "${tools[@]}"

    # The tests that need these would make them too, but then other tests would run, and be slowed
    # down, at the same time.
    local assets
    assets=$(tests/control-plane.sh)
    tests/static-binary.sh >/dev/null

    echo "run: on $("$assets/kube-apiserver" --version) with etcd$("$assets/etcd" --version | sed -n 's/^etcd Version://p')" >&2
    # Most of them wait for lease durations to pass, and not for a processor.
    export RUST_TEST_THREADS=${RUST_TEST_THREADS:-4}
    # What a test writes there is no failure, and nothing that may be overlooked.
    local not_applicable=${CARGO_TARGET_DIR:-target}/tmp/not-applicable status=0
    rm -f "$not_applicable"
    cargo test --locked "$@" || status=$?
    if [[ -e $not_applicable ]]; then
        cat "$not_applicable"
        echo "$(wc -l <"$not_applicable") tests were not applicable"
    fi
    return "$status"
}

# Whether cargo works; where rustup is there but no toolchain, it gets one.
has_rust() {
    [[ -n $(type -P cargo) ]] && cargo --version &>/dev/null && return
    [[ -n $(type -P rustup) ]] && rustup toolchain install stable --profile minimal >&2 && cargo --version &>/dev/null
}

main "$@"
