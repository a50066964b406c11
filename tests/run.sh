#!/usr/bin/env bash
# Runs all tests, having got what they need beside Rust: the tools that are missing, a control plane
# and a static binary. The first run on a machine takes some twenty minutes; later ones are quick.
#
# Usage: tests/run.sh [ARGUMENT OF cargo test...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

main() {
    if [[ -z $(type -P cargo) ]]; then
        echo 'run: please install Rust first; the version it takes is in Cargo.toml' >&2
        exit 1
    fi

    local tools=(busybox cc chrt flock ip kill mount nsenter podman prlimit runc setpriv setsid strace
        unshare)
    # A container has more than one user id, which podman needs help with unless root runs it.
    ((EUID == 0)) || tools+=(newuidmap)
    tests/tools.sh "${tools[@]}"

    # The tests that need these would make them too, but then other tests would run, and be slowed
    # down, at the same time.
    tests/control-plane.sh >/dev/null
    tests/static-binary.sh >/dev/null

    cargo test --locked "$@"
}

main "$@"
