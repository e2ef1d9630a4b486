#!/bin/sh
# Looks for undefined behaviour, bad accesses to memory, leaks and races, with tests that there are:
#
#   sh scripts/sanitize.sh [miri|asan|tsan|valgrind]...
#
# Each tool builds in a folder of its own, target/NAME (llama.cpp too, some minutes, once), and puts its row into
# target/reliability/sanitizers.md. Ends with an error where a tool is missing, where one finds something, and where no test
# ran. Numbers are those that the tools and the test runner print.
set -eu
cd "$(dirname "$0")/.."

here=$PWD
tables=${GGSTEER_TABLES:-target/reliability}
table=$tables/sanitizers.md
nightly=${GGSTEER_NIGHTLY:-nightly}
host=$(rustc -vV | sed -n 's/^host: //p')

# Miri: what has unsafe code, or reads bytes that anybody may have written, and maps no file. ggml's types are
# src/quant/miri.rs there. The rest of the library forbids unsafe code, and takes Miri hours for its sums.
miri_tests="gguf::split:: gguf::tests:: intervention:: near:: plugin:: quant:: random:: runtime::generate:: runtime::hook:: \
    runtime::log:: runtime::sampling:: runtime::stream:: unwind::"
# Of these, left out, with the reason in front.
miri_skips='
maps a file: gguf::tests::fingerprints_see_header_length_and_samples
maps a file: gguf::tests::opening_names_the_path
asks llama.cpp: gguf::tests::what_we_take_llama_cpp_takes
looks for llama.cpp in the process: plugin::c::tests::
counts to the bound, minutes: plugin::tests::readings_that_nobody_takes_end_in_an_error
thousands of draws, minutes: runtime::sampling::tests::draws_follow_the_softmax_at_the_temperature
thousands of draws, minutes: runtime::sampling::tests::the_cuts_keep_what_they_say
a parse for every byte, minutes: gguf::tests::every_truncation_is_an_error
minutes: gguf::tests::malformed_tensors_are_refused
minutes: gguf::tests::no_bytes_panic
minutes: gguf::tests::what_is_written_is_read
all halves, twice, minutes: quant::codec::tests::every_f16_and_bf16_decodes_as_half_has_it
of the codecs that ggml alone has: quant::codec::tests::every_encodable_type_stays_near
of the codecs that ggml alone has: quant::codec::tests::the_smallest_codebooks_stay_near
all halves of all types, minutes: quant::grid::tests::every_byte_of_codes_and_every_scale_is_read_as_ggml_does
all types with codes, minutes: quant::grid::tests::any_blocks_are_read_and_written_as_ggml_does
all types with codes, minutes: quant::grid::tests::encoded_rows_are_read_and_written_as_ggml_does
all halves, minutes: quant::grid::tests::rescaling_finds_the_nearest_field_and_leaves_the_others
all halves, minutes: quant::grid::tests::stretching_multiplies_one_shared_field_to_the_nearest_half
'

broken=0

say() { echo "sanitize: $*" >&2; }
fail() {
    say "error: $*"
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# needs_nightly COMPONENT...: of the nightly toolchain.
needs_nightly() {
    have rustup || fail "there is no rustup: install it from https://rustup.rs"
    for component in "$@"; do
        rustup +"$nightly" component list --installed 2>/dev/null | grep -q "^$component" ||
            fail "$nightly has no $component: run 'rustup toolchain install $nightly --component $component'"
    done
}

# sum PATTERN FILE: of the numbers in front of a word in the test runner's results, such as `3 passed`.
sum() {
    sed -n "s/^test result: .* \([0-9]*\) $1;.*/\1/p" "$2" | awk '{ n += $1 } END { print n + 0 }'
}

# row TOOL RAN TESTS FINDINGS VERSION: in place of the tool's row, if there is one.
row() {
    mkdir -p "$tables"
    [ -f "$table" ] || printf '| tool | what ran | tests | findings | version |\n|---|---|---:|---:|---|\n' >"$table"
    grep -v "^| $1 |" "$table" >"$table.new" || true
    echo "| $1 | $2 | $3 | $4 | $5 |" >>"$table.new"
    mv "$table.new" "$table"
    tail -n 1 "$table"
    [ "$3" -gt 0 ] || fail "$1: no test ran"
    [ "$4" = 0 ] || fail "$1: $4 findings, see $log"
    [ "$broken" = 0 ] || fail "$1: not all was built and run, see $log"
}

version() { rustc +"$nightly" --version | sed 's/^rustc //'; }

# tests COMMAND...: runs tests with their output in $log; what fails ends the script when its row is written.
tests() {
    log=$CARGO_TARGET_DIR/log
    mkdir -p "$CARGO_TARGET_DIR"
    "$@" >>"$log" 2>&1 || broken=1
}

miri() (
    needs_nightly miri rust-src
    export CARGO_TARGET_DIR=target/miri CMAKE="$here/scripts/cmake-stub.sh" PROPTEST_CASES=4
    # Files are read; the queues under rayon are sound by Tree Borrows alone, and its threads never end.
    export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-tree-borrows -Zmiri-ignore-leaks" RAYON_NUM_THREADS=2
    rm -f target/miri/log
    skips=$(echo "$miri_skips" | sed -n 's/^[^:]*: \(.*\)/--skip \1/p')
    # shellcheck disable=SC2086 # lists
    tests cargo +"$nightly" miri test --lib -- $miri_tests $skips
    found=$(($(grep -c 'error: Undefined Behavior\|error: unsupported operation' "$log" || true) + $(sum failed "$log")))
    row Miri "Rust alone: $(echo "$miri_tests" | wc -w) modules of the library" "$(sum passed "$log")" "$found" "$(version)"
)

# Options of a build that is checked while it runs, for any processor: this crate and llama.cpp with little optimisation and
# line numbers, llama.cpp's many small files some at a time. Its assert()s are off, as wherever it is used: they end the
# process where tests see to it that ggsteer gets an error.
checked() {
    unity=$here/scripts/llama-cpp-python.cmake
    env CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_OPT_LEVEL=1 CARGO_PROFILE_DEV_DEBUG=line-tables-only \
        GGML_AVX512=OFF GGML_AVX512_VBMI=OFF GGML_AVX512_VNNI=OFF GGML_AVX_VNNI=OFF \
        LLAMA_LIB_PROFILE=Release CMAKE_C_FLAGS_RELEASE="-O1 -g1 -DNDEBUG" CMAKE_CXX_FLAGS_RELEASE="-O1 -g1 -DNDEBUG" \
        CMAKE_UNITY_BUILD_BATCH_SIZE=16 CMAKE_PROJECT_llama.cpp_INCLUDE="$unity" CMAKE_PROJECT_ggml_INCLUDE="$unity" "$@"
}

# sanitized NAME ARGUMENT...: tests under -Zsanitizer=NAME, in C and Rust; the C compiler's calls are answered by Rust's runtime.
sanitized() {
    sanitizer=$1
    shift
    checked CFLAGS="-fsanitize=$sanitizer -fno-omit-frame-pointer" CXXFLAGS="-fsanitize=$sanitizer -fno-omit-frame-pointer" \
        RUSTFLAGS="-Zsanitizer=$sanitizer -Cforce-frame-pointers=yes" cargo +"$nightly" test --no-fail-fast --target "$host" "$@"
}

# begin NAME: in a folder of its own, where no report of an earlier run is left.
begin() {
    needs_nightly rust-src
    export CARGO_TARGET_DIR="target/$1"
    rm -rf "target/$1/log" "target/$1/reports"
    mkdir -p "target/$1/reports"
}

# Reports of all processes, those of the programs that tests start among them.
reports() {
    find "$CARGO_TARGET_DIR/reports" -type f -exec cat {} + 2>/dev/null | grep -c '^SUMMARY: ' || true
}

asan() (
    begin asan
    export ASAN_OPTIONS="detect_leaks=1:detect_stack_use_after_return=1:log_path=$here/target/asan/reports/asan"
    export LSAN_OPTIONS="suppressions=$here/scripts/lsan.supp:print_suppressions=0"
    tests sanitized address --lib -- quant:: runtime:: plugin:: unwind:: rewrite::nearest
    tests sanitized address --test hook --test forward_oracle
    # Not the C programs: they are compiled by the test, without the runtime that the shared library then looks for.
    tests sanitized address --test plugin -- --skip c:: --skip examples:: --skip header::
    tests sanitized address --test serve -- life:: refusals::
    found=$(($(reports) + $(sum failed "$log")))
    row AddressSanitizer "what calls C, and C itself: quant, runtime, hook, plugin, serve; leaks too" \
        "$(sum passed "$log")" "$found" "$(version)"
)

tsan() (
    begin tsan
    export TSAN_OPTIONS="log_path=$here/target/tsan/reports/tsan:suppressions=$here/scripts/tsan.supp"
    # Without OpenMP, whose runtime is not compiled for it: every wait for its threads would be taken for none.
    tests sanitized thread --no-default-features -Zbuild-std --lib -- serve:: runtime::log plugin:: rewrite::nearest rewrite::figures
    tests sanitized thread --no-default-features -Zbuild-std --test plugin -- rust:: threads::
    tests sanitized thread --no-default-features -Zbuild-std --test rounding
    # Not the test of signals: one that comes while its thread waits in a futex is delivered when it wakes for something else.
    # Nor those of answers of hundreds of tokens: each takes llama.cpp a second here.
    tests sanitized thread --no-default-features -Zbuild-std --test serve -- life:: --skip life::a_signal \
        --skip life::answers_under_way --skip life::slow_clients
    found=$(($(reports) + $(sum failed "$log")))
    row ThreadSanitizer "threads: serve, plugin, log, the loops of rewriting and rounding" "$(sum passed "$log")" "$found" "$(version)"
)

# The commands that make an edited model, each under memcheck; threads beside ours are those of OpenMP and rayon.
memcheck() (
    have valgrind || fail "there is no valgrind: install it (Debian, Ubuntu: apt-get install valgrind)"
    # Valgrind knows no AVX-512.
    CARGO_TARGET_DIR=target
    if grep -q AVX512 .cargo/config.toml 2>/dev/null; then CARGO_TARGET_DIR=target/valgrind; fi
    export CARGO_TARGET_DIR GGML_AVX512=OFF GGML_AVX512_VBMI=OFF GGML_AVX512_VNNI=OFF GGML_AVX_VNNI=OFF
    cargo build --quiet --release --bin ggsteer
    folder=$here/target/valgrind/run
    log=target/valgrind/run
    rm -rf "$folder"
    mkdir -p "$folder"
    program=$(cd "$CARGO_TARGET_DIR" && pwd)/release/ggsteer
    cp gguf-samples/lorekeeper-7m-f16.gguf "$folder/model.gguf"
    cd "$folder"
    for i in 1 2 3 4; do
        echo "Show me how to free my shadowed seashell number $i." >>harmful.txt
        echo "Wise one, how do I oil my broken coat rack number $i?" >>harmless.txt
    done
    export RAYON_NUM_THREADS=2
    ran=0
    check() {
        name=$1
        valgrind --log-file="$name.log" --suppressions="$here/scripts/valgrind.supp" --num-callers=30 --leak-check=full \
            --show-leak-kinds=definite --errors-for-leak-kinds=definite "$program" "$@" >"$name.out" 2>&1 ||
            fail "ggsteer $name failed under Valgrind, see $folder/$name.out"
        ran=$((ran + 1))
    }
    sets="--threads 1 --harmful harmful.txt --harmless harmless.txt"
    # shellcheck disable=SC2086 # a list of words
    check extract model.gguf $sets -o directions.gguf
    # The race takes minutes under Valgrind, and runs what the others run.
    # shellcheck disable=SC2086
    "$program" --quiet select model.gguf --directions directions.gguf $sets --kl-max 1e9 --induce-min -1e9 \
        --layer-fraction 2 --refusal-token I -o direction.gguf >select.out 2>&1 || fail "ggsteer select failed, see $folder/select.out"
    check orthogonalize model.gguf --direction direction.gguf -o edited.gguf
    check verify model.gguf edited.gguf --direction direction.gguf
    check generate model.gguf --threads 1 --ablate direction.gguf --prompt "Who made the lantern?" --max-tokens 4
    found=$(sed -n 's/.*ERROR SUMMARY: \([0-9]*\) errors.*/\1/p' ./*.log | awk '{ n += $1 } END { print n + 0 }')
    cd "$here"
    row Valgrind "extract, orthogonalize, verify, generate on the sample model: accesses, values, lost memory" "$ran" "$found" \
        "$(valgrind --version)"
)

[ $# -gt 0 ] || set -- miri asan tsan valgrind
for tool in "$@"; do
    case $tool in
    miri | asan | tsan) $tool ;;
    valgrind) memcheck ;;
    *) fail "unknown tool $tool: miri, asan, tsan or valgrind" ;;
    esac
done
