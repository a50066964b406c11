#!/usr/bin/env bash
# Shows that the tests can fail: takes the rules of the election out, one after another, and sees
# each time whether the tests notice.
#
# A mutant is a patch in tests/mutants. Its head names the rule that it breaks and the tests that have
# to notice it ("Caught by:", one or more of simulation, table tests, store tests; options of the
# simulation may follow it), and says what then goes wrong. The mutants are made in a copy, and built
# in a directory of their own, so that nothing of them is left where the program is built.
#
# Usage: tests/teeth.sh            all mutants of tests/mutants; some minutes
#        tests/teeth.sh NAME...    those
#        tests/teeth.sh --all      every operator and function of the election, with cargo-mutants,
#                                  against the table tests alone; half an hour
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly target=${CARGO_TARGET_DIR:-$PWD/target}
readonly scratch=$target/teeth
readonly tree=$scratch/tree
readonly log=$scratch/log

# So many elections without a violation mean that the simulation notices nothing.
readonly elections=50000

# How long one run of tests may take: a mutant may well wait for ever.
readonly seconds=300

readonly cargo_mutants_version=27.1.0
readonly cargo_mutants=${XDG_CACHE_HOME:-$HOME/.cache}/lease-exec/cargo-mutants-$cargo_mutants_version/bin/cargo-mutants

# What may survive, as no table test could notice.
readonly exempt=(
    # Reads the real clocks, which no test of the election does.
    'clock\.rs:.* replace read '
    # A write under way is one in doubt as well, and that is asked next.
    'replace Outbox::is_writing -> bool with false'
    # The record that is renewed has our own name in it already.
    'delete field holder .* in Holding::renew'
    # It changes the jitter by less than a nanosecond.
    'replace \^= with \|= in Outbox::fraction'
)

main() {
    mkdir -p "$scratch"
    # The copy has one place, so that what is built of it is built over again and not once more.
    exec 9>"$scratch/lock"
    flock 9
    trap 'rm -rf "$tree" "$log"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM

    if [[ ${1:-} == --all ]]; then
        mutate_everything
        return
    fi

    row MUTANT 'RULE TAKEN OUT' 'CAUGHT BY (AFTER ELECTIONS)' TIME
    local names=("$@") failures=0 name patch
    if ((${#names[@]} == 0)); then
        check_original || failures=$((failures + 1))
        for patch in tests/mutants/*.patch; do
            names+=("$(basename "$patch" .patch)")
        done
    fi

    for name in "${names[@]}"; do
        check "$name" || failures=$((failures + 1))
    done
    ((failures == 0)) || fail "$failures went another way than they have to"
}

# What catches everything catches nothing.
check_original() {
    local start=$SECONDS found=()
    copy
    catch_by simulation 'table tests' 'store tests'
    row '(none)' '' "$(list "${found[@]:-nothing}")" "$((SECONDS - start)) s"
    ((${#found[@]} == 0)) || show_log
}

check() {
    local patch=tests/mutants/$1.patch start=$SECONDS found=()
    [[ -f $patch ]] || fail "there is no $patch"
    local rule expected catchers
    rule=$(head_line 'Rule' "$patch")
    expected=$(head_line 'Caught by' "$patch")
    IFS=, read -ra catchers <<<"${expected//, /,}"

    copy
    if patch --directory "$tree" --strip 1 --fuzz 0 --forward --silent <"$patch" >"$log" 2>&1; then
        catch_by "${catchers[@]}"
    else
        found=('does not apply')
    fi
    row "$1" "$rule" "$(list "${found[@]:-nothing}")" "$((SECONDS - start)) s"
    [[ ${#found[@]} -eq ${#catchers[@]} && ${found[0]} != does* ]] || show_log
}

# Adds those of the given tests that notice the mutant to `found`.
catch_by() {
    local catcher
    for catcher in "$@"; do
        case $catcher in
            simulation | simulation\ *) simulate "${catcher#simulation}" ;;
            'table tests') test_in_copy "$catcher" "$scratch/target" lease-exec-simulation --skip simulation ;;
            # With the dependencies of the program, of which there are many; its binary is not built.
            'store tests') test_in_copy "$catcher" "$target" lease-exec store::json store::kube store::file::tests::versions ;;
            *) fail "there are no tests called '$catcher'" ;;
        esac
    done
}

# Simulates elections until one goes wrong, in the worlds that the option names.
simulate() {
    local options=()
    read -ra options <<<"$1"
    if ! cargo_in_copy "$scratch/target" build --package lease-exec-simulation; then
        found=('does not build')
        return
    fi
    local status=0
    timeout --foreground "$seconds" "$scratch/target/debug/lease-exec-simulation" \
        --until-violation --limit "$elections" "${options[@]}" >"$log" 2>&1 || status=$?
    # 134 is an abort: the election or the simulation panicked.
    case $status in
        0) found+=("simulation after $(sed -n 's/^violated after \([0-9]*\) .*/\1/p' "$log")") ;;
        1) ;;
        134) found+=('simulation by a panic') ;;
        *) found=("does not end: $status") ;;
    esac
}

# Runs the tests of a package in the copy, those of its library that the last arguments select.
test_in_copy() {
    local catcher=$1 package=(--package "$3" --lib)
    if ! cargo_in_copy "$2" test "${package[@]}" --no-run; then
        found=('does not build')
    elif ! cargo_in_copy "$2" test "${package[@]}" -- "${@:4}"; then
        found+=("$catcher")
    fi
}

cargo_in_copy() {
    CARGO_TARGET_DIR=$1 timeout --foreground "$seconds" \
        cargo "$2" --manifest-path "$tree/Cargo.toml" --locked "${@:3}" >"$log" 2>&1
}

# Fails if a mutant survives. Without optimisation a mutant takes a second to build.
mutate_everything() {
    if [[ ! -x $cargo_mutants ]]; then
        env --unset=CARGO_TARGET_DIR cargo install --locked --version "$cargo_mutants_version" \
            --root "${cargo_mutants%/bin/*}" cargo-mutants
    fi
    copy
    # It does not write through symbolic links.
    rm -r "$tree/tests/simulation"
    cp --recursive --dereference tests/simulation "$tree/tests"

    local sources=tests/simulation/src status=0 survivors
    (cd "$tree" && CARGO_TARGET_DIR=$scratch/target "$cargo_mutants" mutants --in-place \
        --package lease-exec-simulation --file "$sources/clock.rs" \
        --file "$sources/election.rs" --file "$sources/election/**" \
        --timeout 20 --build-timeout 300 --output "$scratch" \
        --cargo-arg=--config --cargo-arg=profile.dev.debug=0 \
        --cargo-arg=--config --cargo-arg=profile.dev.package.lease-exec-simulation.opt-level=0 \
        -- --lib --locked -- --skip simulation) || status=$?
    # 2 means survivors, and 3 that tests have waited for ever, which is to notice as well.
    ((status == 0 || status == 2 || status == 3)) || fail "cargo-mutants failed with $status"
    # Its own --exclude-re does not apply to the fields of records.
    survivors=$(printf '%s\n' "${exempt[@]}" |
        grep --invert-match --extended-regexp --file - "$scratch/mutants.out/missed.txt" || true)
    [[ -z $survivors ]] || fail "these survive, and are not exempt:"$'\n'"$survivors"
}

# Copies all that the packages are made of, with the time of now: cargo then builds it again.
copy() {
    rm -rf "$tree"
    mkdir "$tree"
    cp --recursive --no-dereference Cargo.toml Cargo.lock src tests "$tree"
}

head_line() {
    sed -n "s/^$1: //p;/^\$/q" "$2"
}

list() {
    local text
    text=$(printf ', %s' "$@")
    echo "${text#, }"
}

row() {
    printf '%-44s %-38s %-30s %s\n' "$@"
}

show_log() {
    tail -n 40 "$log" | sed 's/^/    /' >&2
    return 1
}

fail() {
    echo "teeth: $*" >&2
    exit 1
}

main "$@"
