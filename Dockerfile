# An image with nothing but lease-exec, to copy it from into other images:
#
#     COPY --from=lease-exec:dev /lease-exec /lease-exec
#     ENTRYPOINT ["/lease-exec", "--lease", "NAME", "--"]

# The compiler runs on the building machine's own architecture and compiles for the image's: under
# emulation it would take many times as long. Its version is one that the tests have passed with.
FROM --platform=$BUILDPLATFORM rust:1.95.0-slim-bookworm AS build
ARG TARGETARCH
WORKDIR /source

# aws-lc is mostly C, and cc looks for a compiler under musl's name. glibc's does as well for what it
# takes of a C library; its jitter is left out as in .cargo/config.toml. In cross-compiling, the linker
# has to be Rust's own, and not a compiler that is told by -Wl what to tell it. Packed, the list of what
# to adjust to the address at which the program is loaded takes 4 KB in place of 310; a linker that can't
# pack it says so, and goes on.
RUN set -eu; \
    native=$(dpkg --print-architecture); \
    architecture=${TARGETARCH:-$native}; \
    case $architecture in \
        amd64) machine=x86_64 package=gcc-x86-64-linux-gnu ;; \
        arm64) machine=aarch64 package=gcc-aarch64-linux-gnu ;; \
        *) echo "there is no image for $architecture" >&2; exit 1 ;; \
    esac; \
    target=$machine-unknown-linux-musl; \
    rustup target add "$target"; \
    mkdir .cargo; \
    printf '%s\n' >.cargo/config.toml \
        '[build]' "target = '$target'" \
        '[env]' "CC_${machine}_unknown_linux_musl = '$machine-linux-gnu-gcc'" \
        "AWS_LC_SYS_NO_JITTER_ENTROPY = '1'" \
        "[target.$target]"; \
    pack=-Wl,-z,pack-relative-relocs; \
    if [ "$architecture" != "$native" ]; then \
        apt-get update; \
        apt-get install --yes --no-install-recommends "$package" "libc6-dev-$architecture-cross"; \
        printf '%s\n' >>.cargo/config.toml "linker = 'rust-lld'"; \
        pack=-zpack-relative-relocs; \
    fi; \
    printf '%s\n' >>.cargo/config.toml "rustflags = ['-C', 'link-arg=$pack']"

COPY Cargo.toml Cargo.lock ./
COPY src src
# musl, because a static glibc would load NSS modules of the image that the program is copied into.
RUN cargo build --locked --release --bin lease-exec && \
    cp target/*-unknown-linux-musl/release/lease-exec /lease-exec

# tests/it/image.rs builds this stage alone, around a program of its own.
FROM scratch
LABEL org.opencontainers.image.title="lease-exec" \
      org.opencontainers.image.description="Run a command only while holding a Kubernetes Lease" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /lease-exec /lease-exec
USER 65532:65532
ENTRYPOINT ["/lease-exec"]
