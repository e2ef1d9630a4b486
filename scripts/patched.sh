#!/bin/sh
# Builds llama.cpp and llama-cpp-2 with the patches in patches/, and ggsteer on them.
#
#   sh scripts/patched.sh          build
#   sh scripts/patched.sh test     and run the tests that are of the patched build
#   sh scripts/patched.sh bench    and time decoding: bare, with the projection in the graph, with the hook
#
# The sources are those that cargo has fetched for the pinned versions; copies are patched, in target/patched. What
# the patches do not touch is taken over from the ordinary build, and everything is kept until a patch changes.
set -eu
cd "$(dirname "$0")/.."

made_for=0.1.160

root=$PWD
target=${CARGO_TARGET_DIR:-target}
case $target in /*) ;; *) target=$root/$target ;; esac
out=$target/patched
build=$out/build
say() { echo "patched: $*" >&2; }
fail() {
    say "error: $*"
    exit 1
}

for crate in llama-cpp-sys-2 llama-cpp-2; do
    pinned=$(sed -n "s/^$crate = { version = \"=\([^\"]*\)\".*/\1/p" Cargo.toml)
    [ "$pinned" = "$made_for" ] ||
        fail "Cargo.toml pins $crate $pinned, the patches are made for $made_for: see patches/README.md"
done
command -v git >/dev/null 2>&1 || fail "git is missing, which applies the patches"

# Where cargo has unpacked a crate.
source_of() {
    cargo metadata --format-version 1 --locked | tr ',' '\n' |
        sed -n "s|^\"manifest_path\":\"\(.*/$1-$made_for\)/Cargo.toml\"\$|\1|p"
}

# A patched copy of a crate: copy_of CRATE PATCHES FOLDER. Files that are not patched keep their dates, and are not compiled anew.
copy_of() {
    from=$(source_of "$1")
    [ -d "$from" ] || fail "cargo has no source of $1 $made_for"
    rm -rf "$out/$1"
    cp -pR "$from" "$out/$1"
    for patch in patches/"$2"/*.patch; do
        # Not as a part of this repository, whose git would leave the files out.
        (cd "$out/$1/$3" && GIT_CEILING_DIRECTORIES=$PWD/.. git apply --whitespace=nowarn "$root/$patch") ||
            fail "$patch does not apply to $1 $made_for"
    done
}

stamp=$({ cat patches/*/*.patch && echo $made_for; } | cksum)
if [ "$(cat "$out/stamp" 2>/dev/null || true)" != "$stamp" ]; then
    mkdir -p "$out"
    rm -f "$out/stamp"
    copy_of llama-cpp-sys-2 llama.cpp llama.cpp
    copy_of llama-cpp-2 llama-cpp-2 .
    cmake=$out/llama-cpp-sys-2/llama.cpp/CMakeLists.txt
    # What builds graphs and reads arguments compiles faster so; ggml, which computes, is built as ever.
    awk '/^add_subdirectory\(src\)$/ { print "set(CMAKE_CXX_FLAGS_RELEASE \"-O1 -DNDEBUG\")" } { print }' \
        "$cmake" >"$cmake.new"
    mv "$cmake.new" "$cmake"
    # The crate has llama.cpp's libraries, and none of its programs: one that starts as they do.
    printf '\nadd_executable(logits common/logits.cpp)\ntarget_link_libraries(logits PRIVATE llama-common)\n' \
        >>"$cmake"
    echo "$stamp" >"$out/stamp"
fi
cp -p tests/patched/logits.cpp "$out/llama-cpp-sys-2/llama.cpp/common/"

# ggsteer on them: its own source, but for the one file that the patch of llama-cpp-2 makes superfluous.
rm -rf "$out/ggsteer"
mkdir -p "$out/ggsteer"
cp -pR Cargo.lock README.md benches prompt-sets src tests "$out/ggsteer/"
ln -s "$root/gguf-samples" "$out/ggsteer/gguf-samples"
rm "$out/ggsteer/src/main.rs"
cp -p patches/llama-cpp-2/params.rs "$out/ggsteer/src/runtime/params.rs"
cp -p patches/llama-cpp-2/eval_callback.rs "$out/ggsteer/tests/"
{
    sed '/^\[\[bin\]\]/,/^$/d' Cargo.toml
    printf '\n[workspace]\n\n[patch.crates-io]\n'
    printf 'llama-cpp-2 = { path = "../llama-cpp-2" }\nllama-cpp-sys-2 = { path = "../llama-cpp-sys-2" }\n'
} >"$out/ggsteer/Cargo.toml"

# Other crates are built the same: taken over once.
release=$target/release
if [ ! -d "$build" ] && [ -d "$release/deps" ]; then
    mkdir -p "$build.new/release"
    for part in .fingerprint build deps; do
        mkdir "$build.new/release/$part"
        (cd "$release/$part" && find . -mindepth 1 -maxdepth 1 ! -name '*ggsteer*' ! -name '*llama[-_]cpp*' \
            ! -name '.*' -print) >"$out/list"
        (cd "$release/$part" && tar -cf - -T "$out/list") | (cd "$build.new/release/$part" && tar -xpf -)
    done
    rm "$out/list"
    mv "$build.new" "$build"
fi

run() { (cd "$out/ggsteer" && CARGO_TARGET_DIR=$build cargo "$@"); }
# Compiled faster; what computes is in ggml.
tests='--release --offline --config profile.release.package.ggsteer.opt-level=1
    --test patched --test hook --test eval_callback'
# shellcheck disable=SC2086 # tests is a list
case ${1:-build} in
build)
    run test --no-run $tests
    echo "$build"/release/build/llama-cpp-sys-2-*/out/build/bin/logits
    ;;
test) GGSTEER_PATCHED=1 run test $tests -- --nocapture --skip outside ;;
bench) run bench --offline --bench projection ;;
*) fail "usage: sh scripts/patched.sh [build|test|bench]" ;;
esac
