#!/bin/sh
# Fuzzes the readers of whatever a stranger may hand us, and writes what came of it to target/reliability/fuzz.md.
#
#   sh scripts/fuzz.sh                     every target, 120 seconds each, one a core at a time
#   sh scripts/fuzz.sh 600 gguf template   two of them, 600 seconds each
#
# First each target reads what was found before (fuzz/regressions), then it starts from the seeds (fuzz/seeds) and from
# what earlier runs came upon (target/fuzz/corpus). Ends with an error where an input makes a target crash, hang or take
# too much memory, and says how to keep that input.
#
# Needs a nightly toolchain, for the sanitizer; cargo-fuzz it installs itself, in .tools. llama.cpp is taken over as the
# ordinary build has made it: the sanitizer watches the Rust code alone.
set -eu
cd "$(dirname "$0")/.."

cargo_fuzz=0.13.2
toolchain=${GGSTEER_FUZZ_TOOLCHAIN:-nightly}
out=target/fuzz
# What one input may take: seconds, and MB in all and at once.
limits='-timeout=10 -rss_limit_mb=2560 -malloc_limit_mb=1024'

say() { echo "fuzz: $*" >&2; }
fail() {
    say "error: $*"
    exit 1
}

all=$(sed -n 's|^path = "fuzz_targets/\(.*\)\.rs"|\1|p' fuzz/Cargo.toml)

# The largest input of a target: what a small file of its kind takes.
longest() {
    case $1 in
    template | config | report) echo 4096 ;;
    *) echo 8192 ;;
    esac
}

# The files in a folder, where there is such a folder.
files_in() { [ ! -d "$1" ] || find "$1" -type f ! -name '.*' | LC_ALL=C sort; }
count() { wc -l | tr -d ' '; }

# Replays, then fuzzes one target; its row goes to $out/rows.
fuzz() {
    target=$1 seconds=$2
    log=$out/logs/$target.log artifacts=$out/artifacts/$target corpus=$out/corpus/$target
    rm -rf "$artifacts"
    mkdir -p "$artifacts" "$corpus"
    binary=$(find "$out" -path "*/release/$target" -type f | head -n 1)
    set --
    [ ! -f "fuzz/$target.dict" ] || set -- "-dict=fuzz/$target.dict"
    regressions=$(files_in "fuzz/regressions/$target")
    replayed=0
    : >"$log"
    for file in $regressions; do
        # shellcheck disable=SC2086 # limits is a list
        if "$binary" $limits -artifact_prefix="$artifacts/" "$file" >>"$log" 2>&1; then
            replayed=$((replayed + 1))
        else
            cp "$file" "$artifacts/again-$(basename "$file")"
        fi
    done
    seeds=$(files_in "fuzz/seeds/$target" | count)
    say "$target: $replayed of $(echo "$regressions" | grep -c . || true) regressions replayed; $seeds seeds, $seconds seconds"
    # shellcheck disable=SC2086 # limits is a list
    "$binary" $limits "$@" -max_total_time="$seconds" -max_len="$(longest "$target")" -print_final_stats=1 \
        -artifact_prefix="$artifacts/" -close_fd_mask=1 -seed=1 "$corpus" "fuzz/seeds/$target" >>"$log" 2>&1 || true
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -n 1)
    edges=$(sed -n 's/^#.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    # What libFuzzer ends for any reason of its own leaves a file; a run without its last words was ended by another.
    crashes=$(find "$artifacts" -type f ! -name 'slow-unit-*' | count)
    if [ -z "$runs" ] && [ "$crashes" = 0 ]; then
        say "$target: ended before its time; see $log"
        crashes='?'
    fi
    echo "| $target | $seeds | $replayed | ${runs:-0} | ${edges:-0} | $crashes |" >"$out/rows/$target"
}

# Called again, through xargs, for one target.
if [ "${1:-}" = --one ]; then
    fuzz "$3" "$2"
    exit 0
fi

seconds=120
case ${1:-} in
'' | *[!0-9]*) ;;
*)
    seconds=$1
    shift
    ;;
esac
targets=${*:-$all}
for target in $targets; do
    echo "$all" | grep -qx "$target" || fail "there is no target $target; there are" $all
done

[ "$(uname)" = Linux ] || say "tried on Linux alone"
rustup run "$toolchain" rustc --version >/dev/null 2>&1 ||
    fail "there is no $toolchain toolchain, which the sanitizer needs: run 'rustup toolchain install $toolchain --profile" \
        "minimal', or name another nightly in GGSTEER_FUZZ_TOOLCHAIN"
sh scripts/setup.sh
tool=.tools/cargo-fuzz/bin/cargo-fuzz
if [ "$("$tool" --version 2>/dev/null || true)" != "cargo-fuzz $cargo_fuzz" ]; then
    say "installing cargo-fuzz $cargo_fuzz in .tools"
    cargo install --quiet --root .tools/cargo-fuzz --locked "cargo-fuzz@$cargo_fuzz"
fi

# What llama-cpp-sys-2's build script said in the ordinary build, in place of running it again (in cargo's words, an
# override of the crate that links `llama`).
host=$(rustc "+$toolchain" -vV | sed -n 's/^host: //p')
built() { find target/release/build -path '*/llama-cpp-sys-2-*/out/bindings.rs' 2>/dev/null | xargs -r ls -t | head -n 1; }
[ -n "$(built)" ] || cargo build --release
llama=$(dirname "$(dirname "$(built)")")
said() {
    sed -n "s/^cargo:$1=//p" "$llama/output" |
        sed -e "s|$(cat "$llama/root-output")|$PWD/$llama/out|" -e 's/.*/    "&",/'
}
mkdir -p fuzz/.cargo
{
    echo "# Written by scripts/fuzz.sh: llama.cpp as the ordinary build has made it."
    echo "[target.$host.llama]"
    for key in rustc-link-lib rustc-link-search; do
        echo "$key = ["
        said "$key"
        echo "]"
    done
    echo "rustc-env = { OUT_DIR = \"$PWD/$llama/out\" }"
} >fuzz/.cargo/config.toml

say "building, the first time for minutes"
(cd fuzz && RUSTUP_TOOLCHAIN=$toolchain "../$tool" build --fuzz-dir . --target-dir "../$out")

export ASAN_OPTIONS=detect_odr_violation=0:symbolize=0 RAYON_NUM_THREADS=1 OMP_NUM_THREADS=1
XDG_CONFIG_HOME=$PWD/$out/no-settings
TMPDIR=$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")
export XDG_CONFIG_HOME TMPDIR
rm -rf "$out/rows"
mkdir -p "$out/rows" "$out/logs"
# shellcheck disable=SC2086 # targets is a list
printf '%s\n' $targets | xargs -n 1 -P "$(getconf _NPROCESSORS_ONLN)" sh scripts/fuzz.sh --one "$seconds"

tables=${GGSTEER_TABLES:-target/reliability}
mkdir -p "$tables"
{
    echo '| target | seeds | regressions replayed | executions | edge coverage | crashes |'
    echo '|---|---:|---:|---:|---:|---:|'
    for target in $targets; do cat "$out/rows/$target"; done
} >"$tables/fuzz.md"
cat "$tables/fuzz.md"

grep -qv '| 0 |$' "$out"/rows/* || exit 0
for target in $targets; do find "$out/artifacts/$target" -type f ! -name 'slow-unit-*'; done | while read -r file; do
    target=$(basename "$(dirname "$file")")
    say "$target fails on $file; its log is $out/logs/$target.log"
    say "  make it small: (cd fuzz && RUSTUP_TOOLCHAIN=$toolchain ../$tool tmin --fuzz-dir . --target-dir ../$out $target ../$file)"
    say "  keep it:       cp FILE fuzz/regressions/$target/WHAT-IT-IS, which 'cargo test --release --test regressions' reads too"
done
fail "there were crashes"
