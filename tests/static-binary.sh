#!/usr/bin/env bash
# Builds lease-exec as it is shipped, and prints the binary's path. Nothing else goes to standard
# output. The first time it takes minutes.
#
# It is what the Dockerfile builds, for this machine's architecture, linked with musl. Where the
# toolchain has no musl (tests/tools.sh fetches it where it can), it is linked with glibc, as
# statically; that says so.
#
# Usage: binary=$(tests/static-binary.sh)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

main() {
    # Cargo describes the package to the tests that it runs, and they to us. Build scripts that look
    # at these variables, as aws-lc's does, would run again each time we are called the other way.
    local name
    for name in CARGO_CRATE_NAME CARGO_MANIFEST_DIR CARGO_MANIFEST_PATH CARGO_PRIMARY_PACKAGE "${!CARGO_PKG_@}"; do
        unset "$name"
    done

    local host machine
    host=$(rustc --version --verbose | sed -n 's/^host: //p')
    machine=${host%%-*}
    if [[ -d $(rustc --print target-libdir --target "$machine-unknown-linux-musl") ]]; then
        # See the Dockerfile.
        export "CC_${machine}_unknown_linux_musl=${CC:-cc}"
        build "$machine-unknown-linux-musl" -C link-arg=-Wl,-z,pack-relative-relocs
    else
        echo 'static-binary: there is no musl for Rust here, so this is linked with glibc' >&2
        # With --target the flags are for the program alone, and not for build scripts.
        export RUSTFLAGS='-C target-feature=+crt-static'
        build "$host" -C link-arg=-Wl,-z,pack-relative-relocs
    fi
}

# Usage: build TARGET FLAG_FOR_THE_LAST_STEP...
build() {
    cargo rustc --locked --release --bin lease-exec --target "$1" \
        --message-format json-render-diagnostics -- "${@:2}" |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p'
}

main "$@"
