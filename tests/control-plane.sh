#!/usr/bin/env bash
# Finds or builds a real Kubernetes control plane for the tests, and prints the directory that holds
# etcd, etcdctl, kube-apiserver, kube-scheduler, kubectl and client-go-wrapper, which is this project's
# own program on Kubernetes' client-go (tests/client-go). Nothing else goes to standard output.
#
# Usage: assets=$(tests/control-plane.sh [oldest])
#
# The newest control plane that can be had comes from the first of these that is there:
#
# 1. KUBEBUILDER_ASSETS (the convention of the envtest tools), which is taken as it is. etcd and
#    kube-apiserver must be in it; kubectl may be in PATH instead. Tests that need a program that is
#    missing fail, and say so.
# 2. Go, of the version in tests/client-go/go.mod or later, and a module proxy: the current
#    Kubernetes, on any Linux. Go checks every module against tests/client-go/go.sum, and keeps them
#    and its own cache where it always does.
# 3. Debian 12's packages, which are signed, and which every mirror has: the oldest Kubernetes that
#    the tests are for. The machine's own apt configuration and package lists are never changed. Only
#    make, rsync and dpkg-source get installed, if they are missing; everything else, the Go compiler
#    included, is unpacked beside the cache for as long as the build takes.
#
# With "oldest" only the last is tried. The exit code is 3 where nothing can be had. What is built is
# kept in ${XDG_CACHE_HOME:-~/.cache}/lease-exec; each build takes some minutes on two cores.
set -euo pipefail

# The Debian release that has all this. A later one has a later Kubernetes, built in another way.
readonly release=bookworm

# Parts of the cache directories' names: raise them when a change below, or in tests/client-go,
# changes what is built.
readonly debian_recipe=2
readonly current_recipe=1

readonly components=(kube-apiserver kube-scheduler kubectl)

# A command of our own, compiled as one more of Kubernetes' commands.
readonly peer=client-go-wrapper
peer_source=$(cd "$(dirname "${BASH_SOURCE[0]}")/client-go" && pwd)
readonly peer_source

# What apt-get is run by: nothing, except when packages are installed.
as_root=()

main() {
    case ${1:-newest} in
        newest) newest ;;
        oldest) debians ;;
        *) fail "expected nothing or \"oldest\", not \"$1\"" ;;
    esac
}

newest() {
    if [[ -n ${KUBEBUILDER_ASSETS:-} ]]; then
        check_given_assets "$KUBEBUILDER_ASSETS"
        echo "$KUBEBUILDER_ASSETS"
    elif ! current; then
        debians
    fi
}

check_given_assets() {
    local name missing=()
    for name in etcd kube-apiserver; do
        [[ -x $1/$name ]] || fail "KUBEBUILDER_ASSETS is $1, but there is no program $name in it"
    done
    [[ -x $1/kubectl || -n $(type -P kubectl) ]] || missing+=(kubectl)
    for name in kube-scheduler etcdctl "$peer"; do
        [[ -x $1/$name ]] || missing+=("$name")
    done
    ((${#missing[@]} == 0)) ||
        say "KUBEBUILDER_ASSETS is $1, where ${missing[*]} cannot be found: what needs them will fail"
}

# The current Kubernetes, or 1 if there is neither a kept build nor what it takes to make one.
current() {
    local version architecture
    version=$(required k8s.io/kubernetes)
    architecture=$(uname -m)
    set_assets "kubernetes-$version-$architecture-$current_recipe"
    if [[ ! -d $assets ]]; then
        go_is_new_enough || return
        lock_build
        [[ -d $assets ]] || build_in_scratch build_current || return
        unlock_build
    fi
    echo "$assets"
}

# The version that tests/client-go/go.mod takes of a module.
required() {
    awk -v module="$1" '$1 == module && $2 != "=>" { print substr($2, 2); exit }' "$peer_source/go.mod"
}

go_is_new_enough() {
    local wanted present
    wanted=$(awk '$1 == "go" { print $2; exit }' "$peer_source/go.mod")
    # This is the machine's own Go. It would fetch a newer one if it were allowed to.
    present=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null) || return
    present=${present#go}
    [[ $(printf '%s\n' "$wanted" "$present" | sort --version-sort | head -n 1) == "$wanted" ]] || {
        say "Go $present is too old for the current Kubernetes, which takes $wanted"
        return 1
    }
}

debians() {
    check_release
    set_assets "$release-$(dpkg --print-architecture)-$debian_recipe"
    if [[ ! -d $assets ]]; then
        lock_build
        [[ -d $assets ]] || build_in_scratch build_debians
        unlock_build
    fi
    echo "$assets"
}

check_release() {
    local codename=
    if [[ -r /etc/os-release ]]; then
        # shellcheck source=/dev/null
        codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    fi
    [[ $codename == "$release" ]] && return
    say "this builds a control plane with Go" \
        "$(awk '$1 == "go" { print $2; exit }' "$peer_source/go.mod") and a module proxy, or on Debian" \
        "$release; elsewhere set KUBEBUILDER_ASSETS to a directory with etcd, etcdctl, kube-apiserver," \
        "kube-scheduler, kubectl and $peer"
    exit 3
}

# === Builds ===

# The directory of a control plane. It gets its name by one rename when it is complete, so that it
# exists is enough.
set_assets() {
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/lease-exec
    assets=$cache/control-plane-$1
}

# One build at a time. The kernel lets go of the lock when the last process of the build has ended,
# however it ended, so that a lock never outlives what it protects.
lock_build() {
    mkdir -p "$cache"
    exec 9>"$cache/control-plane.lock"
    flock --nonblock 9 || { say 'waiting for another build of a control plane'; flock 9; }
}

unlock_build() {
    exec 9>&-
}

# Builds in a directory beside the final one, so that the last step is a rename on one file system.
# Returns 1 if the build says that it is impossible here.
build_in_scratch() {
    # The lock is held: whatever is still there was left by a build that was killed.
    rm -rf "$cache"/control-plane-scratch.*
    scratch=$(mktemp -d "$cache/control-plane-scratch.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    # apt run by root downloads as another user, where that user can reach the directory.
    chmod 755 "$scratch"
    mkdir "$scratch/assets"
    # Beside the scratch directory, because it must outlive a failure.
    log=$assets.log
    : >"$log"
    say "building a control plane once, into $assets (log: $log)"

    local status=0
    "$1" || status=$?
    ((status != 0)) || mv "$scratch/assets" "$assets" || fail "failed to make $assets"
    rm -rf "$scratch"
    trap - EXIT
    ((status == 0)) || return "$status"
    say 'the control plane is ready'
}

build_current() {
    # A step that fails ends this shell, and that there is no module proxy must not.
    if ! with_go go mod download >>"$log" 2>&1; then
        say "there is no module proxy to be had, so the current Kubernetes can't be built (log: $log)"
        return 1
    fi
    step "compiling etcd and etcdctl" compile_current_etcd
    step "compiling ${components[*]} $peer, which takes minutes" compile_current_kubernetes
    step 'asking the programs for their versions' print_versions
}

build_debians() {
    step "reading the package index of Debian $release" read_package_index
    install_missing_tools
    step 'fetching etcd and Go' unpack_packages etcd-server etcd-client golang-1.19-go golang-1.19-src
    step 'fetching the source of Kubernetes' fetch_kubernetes
    step 'replacing two libraries in it' replace_vendored_libraries
    step "compiling ${components[*]} $peer, which takes minutes" compile_kubernetes
    step 'keeping the programs' collect_programs
    step 'asking the programs for their versions' print_versions
}

# Runs one step of the build, with its output in the log.
step() {
    local title=$1
    shift
    say "$title"
    echo "### $title" >>"$log"
    # A function called in a condition runs without `set -e`, so the shell that runs it must not be
    # the one that asks for its status.
    set +e
    (set -e; "$@") >>"$log" 2>&1 </dev/null
    local status=$?
    set -e
    if ((status != 0)); then
        tail -n 40 "$log" >&2
        fail "failed at this step: $title; the whole log is $log"
    fi
}

print_versions() {
    cd "$scratch/assets"
    ./etcd --version
    ./kube-apiserver --version
    ./kube-scheduler --version
    ./kubectl version --client
}

# === The current Kubernetes, by Go ===

# Go in the directory of the module, and as the machine has it: neither its toolchain nor what is
# compiled depends on the caller's flags.
with_go() {
    (cd "$peer_source" && env -u GOFLAGS -u GOOS -u GOARCH -u GOEXPERIMENT GOTOOLCHAIN=local GOWORK=off \
        CGO_ENABLED=0 "$@")
}

# Usage: compile OUTPUT LINKER_FLAGS PACKAGE...
compile() {
    with_go go build -mod=readonly -trimpath -ldflags "-s -w $2" -o "$scratch/assets/$1" "${@:3}"
}

compile_current_etcd() {
    compile etcd '' go.etcd.io/etcd/server/v3
    compile etcdctl '' go.etcd.io/etcd/etcdctl/v3
}

compile_current_kubernetes() {
    local version package flags=
    version=$(required k8s.io/kubernetes)
    # The programs' version comes from git otherwise, and a module has none.
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        flags+=" -X $package.gitVersion=v$version -X $package.gitMajor=$(cut -d. -f1 <<<"$version")"
        flags+=" -X $package.gitMinor=$(cut -d. -f2 <<<"$version")"
    done
    # One call, which compiles what they share once. Each gets the name of its directory.
    compile '' "$flags" "${components[@]/#/k8s.io/kubernetes/cmd/}"
    compile "$peer" "$flags" .
}

# === Debian's packages ===

# Makes a package index of our own: that of the Debian release alone, with its sources. Where the
# packages come from is read from the machine's own entries, so that a mirror or a proxy that is
# configured there serves us too, and entries that are none of Debian's can't get in the way.
read_package_index() {
    local file
    mkdir -p "$scratch"/apt/{sources,lists/partial}
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [[ ! -r $file ]] || one_line_entries "$file" >>"$scratch/apt/sources/debian.list"
    done
    for file in /etc/apt/sources.list.d/*.sources; do
        [[ ! -r $file ]] || stanza_entries "$file" >>"$scratch/apt/sources/debian.sources"
    done
    cat "$scratch"/apt/sources/*
    grep -q '^Types:\|^ *deb' "$scratch"/apt/sources/* || {
        echo "no entry for main of $release in /etc/apt/sources.list or /etc/apt/sources.list.d"
        return 1
    }
    apt update --error-on=any
}

# Debian's suites are named like the release; other archives name theirs otherwise, or have no
# component main. Example: deb [signed-by=/x.gpg] http://mirror.example/debian bookworm main
one_line_entries() {
    awk -v suite="^$release(-updates|-security)?\$" '
        $1 == "deb" {
            fields = $0
            sub(/^[ \t]*deb[ \t]+(\[[^]]*\][ \t]*)?/, "", fields)
            split(fields, field)
            if (field[2] ~ suite && fields ~ /[ \t]main([ \t]|$)/) {
                print
                sub(/deb/, "deb-src")
                print
            }
        }' "$1"
}

# The same for the stanzas of deb822-style files (sources.list(5)), which may name several suites.
stanza_entries() {
    awk -v suites="\nSuites:([^\n]*[ \t])?$release([ \t\n]|-updates|-security)" '
        BEGIN { RS = ""; ORS = "\n\n" }
        {
            stanza = "\n" $0 "\n"
            if (stanza ~ suites && stanza ~ /\nComponents:([^\n]*[ \t])?main[ \t\n]/ &&
                stanza ~ /\nTypes:([^\n]*[ \t])?deb[ \t\n]/ && stanza !~ /\nEnabled:[ \t]*no/) {
                sub(/\nTypes:[^\n]*/, "\nTypes: deb deb-src", stanza)
                print stanza
            }
        }' "$1"
}

# apt-get with our package index in place of the machine's.
apt() {
    "${as_root[@]}" apt-get --quiet --yes \
        --option Dir::Etc::SourceList=/dev/null \
        --option Dir::Etc::SourceParts="$scratch/apt/sources" \
        --option Dir::State::Lists="$scratch/apt/lists" \
        --option DPkg::Lock::Timeout=600 \
        --option Dir::Cache::pkgcache= \
        --option Dir::Cache::srcpkgcache= \
        "$@"
}

install_missing_tools() {
    local missing=()
    [[ -n $(type -P make) ]] || missing+=(make)
    [[ -n $(type -P rsync) ]] || missing+=(rsync)
    [[ -n $(type -P dpkg-source) ]] || missing+=(dpkg-dev)
    ((${#missing[@]} > 0)) || return 0

    ((EUID == 0)) || [[ -n $(type -P sudo) ]] ||
        fail "please install ${missing[*]} (there is no sudo to do it with)"
    step "installing ${missing[*]}" install_packages "${missing[@]}"
}

install_packages() {
    # A step has a shell of its own, so that this holds for this one only.
    as_root=(env)
    ((EUID == 0)) || as_root=(sudo env)
    as_root+=(DEBIAN_FRONTEND=noninteractive)
    # Descriptor 9 is the lock; nothing that a package starts may keep it.
    apt install --no-install-recommends "$@" 9>&-
}

# Unpacks packages without installing them: no service is started, and root is not needed.
unpack_packages() {
    mkdir -p "$scratch"/{debs,root}
    cd "$scratch/debs"
    apt download "$@"
    local package
    for package in "$@"; do
        dpkg-deb --extract "$package"_*.deb "$scratch/root"
    done
}

# apt checks the source against the signed index before it unpacks it.
fetch_kubernetes() {
    mkdir "$scratch/source"
    cd "$scratch/source"
    apt source --only-source kubernetes
    mv kubernetes-*/ kubernetes
}

# Kubernetes 1.20 vendors reflect2 1.0.1, which reaches into the Go runtime and, compiled by Go 1.18
# or later, panics whenever a map is decoded (annotations, LIST). Debian's packages have versions
# that don't, see https://github.com/kubernetes/client-go/issues/1048.
replace_vendored_libraries() {
    unpack_packages golang-github-modern-go-reflect2-dev golang-github-json-iterator-go-dev
    local library vendored
    for library in github.com/modern-go/reflect2 github.com/json-iterator/go; do
        vendored=$scratch/source/kubernetes/vendor/$library
        rm -rf "$vendored"
        cp -rL "$scratch/root/usr/share/gocode/src/$library" "$vendored"
        # A vendored library has no module file of its own, and its tests need what isn't there.
        find "$vendored" '(' -name '*_test.go' -o -name go.mod -o -name go.sum ')' -delete
    done
}

compile_kubernetes() {
    cd "$scratch/source/kubernetes"
    local version
    # Debian calls it 1.20.5+really1.20.2-1.1, for instance.
    version=$(dpkg-parsechangelog --show-field Version)
    version=${version##*+really}
    version=${version%%[-+]*}
    # The programs' version comes from git otherwise, and a source package has none.
    cat >"$scratch/version" <<END
KUBE_GIT_VERSION=v$version
KUBE_GIT_MAJOR=$(cut -d. -f1 <<<"$version")
KUBE_GIT_MINOR=$(cut -d. -f2 <<<"$version")
END
    mkdir "cmd/$peer"
    cp "$peer_source/main.go" "cmd/$peer"
    # make, because it also generates code that the source lacks. Everything Go needs is vendored.
    local go=$scratch/root/usr/lib/go-1.19
    env -u GOFLAGS -u GOLDFLAGS -u GOPATH -u MAKEFLAGS -u MAKELEVEL \
        PATH="$go/bin:$PATH" GOROOT="$go" GOCACHE="$scratch/go-cache" GOPROXY=off CGO_ENABLED=0 \
        KUBE_GIT_VERSION_FILE="$scratch/version" \
        make WHAT="$(printf 'cmd/%s ' "${components[@]}" "$peer")"
}

collect_programs() {
    cp "$scratch"/root/usr/bin/{etcd,etcdctl} "$scratch/assets"
    local program
    for program in "${components[@]}" "$peer"; do
        cp -L "$scratch/source/kubernetes/_output/bin/$program" "$scratch/assets"
    done
}

# === Words to the user ===

say() {
    echo "control-plane: $*" >&2
}

fail() {
    say "$*"
    exit 1
}

main "$@"
