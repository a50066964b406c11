#!/usr/bin/env bash
# Builds lease-exec for the test of the image, and prints the binary's path. Nothing else goes to
# standard output.
#
# It is the release build but for the C library, which is glibc, linked statically, where the
# Dockerfile takes musl: that way the toolchain's own target will do, on any machine. The first time
# it takes minutes.
#
# Usage: binary=$(tests/static-binary.sh)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Cargo describes the package to the tests that it runs, and they to us. Build scripts that look at
# these variables, as ring's does, would run again each time we are called the other way.
for name in CARGO_CRATE_NAME CARGO_MANIFEST_DIR CARGO_MANIFEST_PATH CARGO_PRIMARY_PACKAGE "${!CARGO_PKG_@}"; do
    unset "$name"
done

target=$(rustc --version --verbose | sed -n 's/^host: //p')
# With --target the flags are for the program alone, and not for build scripts.
RUSTFLAGS='-C target-feature=+crt-static' cargo build --locked --release --bin lease-exec \
    --target "$target" --message-format json-render-diagnostics |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p'
