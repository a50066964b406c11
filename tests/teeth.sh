#!/usr/bin/env bash
# Shows that the tests can fail: takes the rules of the election out, or the mechanisms of the
# supervisor, one after another, and sees each time whether the tests notice.
#
# A mutant is a patch. Those of the election are in tests/mutants. Their heads name the rule that is
# broken and the tests that have to notice it ("Caught by:", one or more of simulation, table tests,
# store tests; options of the simulation may follow it), and say what then goes wrong. Those of the
# supervisor are in tests/mutants/supervisor. Their heads name what is taken out ("Takes out:") and
# the tests that each have to fail, of tests/it or, if they begin with supervisor::, of the library.
#
# The mutants are made in a copy, and built in a directory of their own, so that nothing of them is
# left where the program is built.
#
# Usage: tests/teeth.sh            all mutants of the election; some minutes. Of the supervisor's only
#                                  whether they can be made and name tests that there are
#        tests/teeth.sh NAME...    those of the election; what happened in the world in which the
#                                  simulation noticed the last of them is kept in target/teeth/history
#        tests/teeth.sh --supervisor          all mutants of the supervisor; more than an hour, as
#                                             root, after tests/run.sh has set all up
#        tests/teeth.sh --supervisor NAME...  those
#        tests/teeth.sh --all      every operator and function of the election, with cargo-mutants,
#                                  against the table tests alone; half an hour
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly target=${CARGO_TARGET_DIR:-$PWD/target}
readonly scratch=$target/teeth
readonly tree=$scratch/tree
readonly log=$scratch/log
readonly history=$scratch/history

# So many elections without a violation mean that the simulation notices nothing.
readonly elections=50000

# How long one run of tests may take: a mutant may well wait for ever. Building has no limit: it ends.
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

# Whether the mutants were named, so that somebody wants to know how they are noticed.
keeps_history=

main() {
    mkdir -p "$scratch"
    # The copy has one place, so that what is built of it is built over again and not once more.
    exec 9>"$scratch/lock"
    flock 9
    trap 'rm -rf "$tree" "$log" "$scratch/said"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM

    case ${1:-} in
        --all) mutate_everything ;;
        --supervisor) check_supervisor "${@:2}" ;;
        *) check_election "$@" ;;
    esac
}

# === The election ===

check_election() {
    row MUTANT 'RULE TAKEN OUT' 'CAUGHT BY (AFTER ELECTIONS)' TIME
    local names=("$@") failures=0 name patch
    if ((${#names[@]} == 0)); then
        check_heads_of_supervisor || failures=$((failures + 1))
        check_original || failures=$((failures + 1))
        for patch in tests/mutants/*.patch; do
            names+=("$(basename "$patch" .patch)")
        done
    else
        keeps_history=yes
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
    if mutate "$patch"; then
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
    if ! cargo_in_copy "$scratch/target" 0 build --package lease-exec-simulation; then
        found=('does not build')
        return
    fi
    local status=0
    timeout --foreground "$seconds" "$scratch/target/debug/lease-exec-simulation" \
        --until-violation --limit "$elections" "${options[@]}" >"$log" 2>&1 || status=$?
    # 134 is an abort: the election or the simulation panicked.
    case $status in
        0)
            found+=("simulation after $(sed -n 's/^violated after \([0-9]*\) .*/\1/p' "$log")")
            [[ -z $keeps_history ]] || keep_history "${options[@]}"
            ;;
        1) ;;
        134) found+=('simulation by a panic') ;;
        *) found=("does not end: $status") ;;
    esac
}

# Plays the seed that was found again, for people.
keep_history() {
    local seed
    seed=$(sed -n 's/^violated after .*, with seed \([0-9]*\):.*/\1/p' "$log")
    # It exits with 1, as it finds the violation again.
    "$scratch/target/debug/lease-exec-simulation" --seed "$seed" "$@" >"$history" 2>&1 || true
    echo "teeth: what happened is in $history" >&2
}

# Runs the tests of a package in the copy, those of its library that the last arguments select.
test_in_copy() {
    local catcher=$1 package=(--package "$3" --lib)
    if ! cargo_in_copy "$2" 0 test "${package[@]}" --no-run; then
        found=('does not build')
    elif ! cargo_in_copy "$2" "$seconds" test "${package[@]}" -- "${@:4}"; then
        found+=("$catcher")
    fi
}

# The directory to build in, the number of seconds that it may take (0: any), and what cargo is to do.
cargo_in_copy() {
    CARGO_TARGET_DIR=$1 timeout --foreground "$2" \
        cargo "$3" --manifest-path "$tree/Cargo.toml" --locked "${@:4}" >"$log" 2>&1
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

# === The supervisor ===

readonly supervisor=tests/mutants/supervisor

check_supervisor() {
    local names=("$@") failures=0 name
    build_tests
    if ((${#names[@]} == 0)); then
        check_heads_of_supervisor || failures=$((failures + 1))
        check_supervisor_itself || failures=$((failures + 1))
        for name in "$supervisor"/*.patch; do
            names+=("$(basename "$name" .patch)")
        done
    fi
    for name in "${names[@]}"; do
        check_mechanism "$name" || failures=$((failures + 1))
    done
    ((failures == 0)) || fail "$failures went another way than they have to"
    echo "all of ${#names[@]} are noticed"
}

# Whether each patch can be applied, and the tests that it names are there. Builds nothing.
check_heads_of_supervisor() {
    local patch test tests failures=0 count=0
    copy
    for patch in "$supervisor"/*.patch; do
        count=$((count + 1))
        if ! mutate "$patch" --dry-run || [[ -z $(head_line 'Takes out' "$patch") ]]; then
            echo "    $patch does not apply, or does not say what it takes out" >&2
            failures=$((failures + 1))
        fi
        read_tests "$patch"
        for test in "${tests[@]:-none}"; do
            if ! grep --recursive --quiet --fixed-strings "fn ${test##*::}()" src tests/it; then
                echo "    $patch is to be caught by $test, which there is not" >&2
                failures=$((failures + 1))
            fi
        done
    done
    row "(supervisor: $count patches)" '' "$failures out of date" ''
    ((failures == 0))
}

# The tests of tests/it find the program at its place in the directory that they were built in, so
# for a mutant that alone is built again. Sets `program_tests`.
build_tests() {
    copy
    if ! cargo_in_copy "$scratch/target" 0 test --package lease-exec --test it --no-run; then
        show_log || fail 'the tests do not build'
    fi
    program_tests=$(sed -n 's/^ *Executable tests.*(\(.*\))$/\1/p' "$log")
    [[ -x $program_tests ]] || fail "there is no $program_tests"
}

# All the tests that mutants are to make fail pass without one.
check_supervisor_itself() {
    local start=$SECONDS patch tests all=()
    for patch in "$supervisor"/*.patch; do
        read_tests "$patch"
        all+=("${tests[@]}")
    done
    mapfile -t tests < <(printf '%s\n' "${all[@]}" | sort --unique)
    copy
    run_tests "${tests[@]}"
    local failed
    failed=$(sed -n 's/^test \(.*\) \.\.\. FAILED$/    \1/p' "$log")
    echo "(none)  $((SECONDS - start)) s"
    [[ -z $failed ]] || {
        printf '%s\n' "these tests fail without a mutant:" "$failed" >&2
        return 1
    }
}

# Whether all the tests that a patch names fail.
check_mechanism() {
    local patch=$supervisor/$1.patch start=$SECONDS test tests survived=0
    [[ -f $patch ]] || fail "there is no $patch"
    read_tests "$patch"
    copy
    if ! mutate "$patch"; then
        echo "$1: does not apply"
        show_log || return
    fi
    if ! run_tests "${tests[@]}"; then
        echo "$1: does not build"
        show_log || return
    fi
    echo "$1: $(head_line 'Takes out' "$patch")  $((SECONDS - start)) s"
    for test in "${tests[@]}"; do
        if grep --quiet --line-regexp "test $test \.\.\. FAILED" "$log"; then
            echo "    $test: $(message_of "$test")"
        else
            echo "    $test: NOT NOTICED"
            survived=1
        fi
    done
    ((survived == 0))
}

# Runs tests with what is in the copy, and leaves what they say in the log.
run_tests() {
    local test of_program=() of_library=()
    for test in "$@"; do
        case $test in
            supervisor::*) of_library+=("$test") ;;
            *) of_program+=("$test") ;;
        esac
    done
    local said=$scratch/said
    : >"$said"
    if ((${#of_program[@]} > 0)); then
        cargo_in_copy "$scratch/target" 0 build --package lease-exec --bin lease-exec || return
        # Where this script was started in the background, the shell has it ignore these.
        timeout --foreground "$((seconds * 3))" env --default-signal=INT,QUIT,HUP \
            "$program_tests" --exact "${of_program[@]}" >>"$said" 2>&1 || true
    fi
    if ((${#of_library[@]} > 0)); then
        cargo_in_copy "$scratch/target" 0 test --package lease-exec --lib --no-run || return
        cargo_in_copy "$scratch/target" "$seconds" test --package lease-exec --lib -- \
            --exact "${of_library[@]}" || true
        cat "$log" >>"$said"
    fi
    mv "$said" "$log"
}

# The first line of what a test said when it failed.
message_of() {
    awk -v name="$1" 'found { print; exit } index($0, "thread '"'"'" name "'"'"'") == 1 { found = 1 }' "$log"
}

# Sets `tests`.
read_tests() {
    local named
    named=$(head_line 'Caught by' "$1")
    IFS=, read -ra tests <<<"${named//, /,}"
}

# === The copy ===

# Copies all that the packages and their tests are made of or read, with the time of now: cargo then
# builds it again.
copy() {
    rm -rf "$tree"
    mkdir "$tree"
    find . -mindepth 1 -maxdepth 1 ! -name target ! -name .git \
        -exec cp --recursive --no-dereference --target-directory "$tree" {} +
}

mutate() {
    patch --directory "$tree" --strip 1 --fuzz 0 --forward --silent "${@:2}" <"$1" >"$log" 2>&1
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
