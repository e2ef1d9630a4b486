#!/bin/sh
# Compares ways to compile ggml for this processor: scripts/flags-bench.sh [ROUNDS] [VARIANT...]
#
# Builds llama.cpp once as shared libraries, and ggml's CPU backend once more for each variant; then runs the variants
# in turn (A B C A B C ...), so that a busy machine slows all of them, and prints medians and their ratio to baseline.
# FLAGS_BENCH_DIR (default target/flags-bench) keeps the builds and the three models, about 600 MB;
# FLAGS_BENCH_MODELS (default "q8_0 q4_k f16") chooses among them; FLAGS_BENCH_THREADS=1 counts processor time instead
# of wall time, for a machine with other work.
set -eu
cd "$(dirname "$0")/.."

rounds=${1:-5}
[ $# -gt 0 ] && shift
variants=${*:-baseline avx512 avx512_vbmi_vnni native_no_amx}
dir=${FLAGS_BENCH_DIR:-target/flags-bench}
threads=${FLAGS_BENCH_THREADS:-$(getconf _NPROCESSORS_ONLN)}
models=${FLAGS_BENCH_MODELS:-q8_0 q4_k f16}
source=$(ls -d "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/llama-cpp-sys-2-0.1.160/llama.cpp 2>/dev/null | head -n 1)
if [ -z "$source" ]; then
    echo "error: llama.cpp's source is not there: run 'cargo fetch' first" >&2
    exit 1
fi
mkdir -p "$dir"

# The CMake options of a variant; native_no_amx is compiler flags instead.
options() {
    case $1 in
        baseline | native_no_amx) ;;
        avx512) echo "-DGGML_AVX512=ON" ;;
        avx512_vbmi) echo "-DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON" ;;
        avx512_vnni) echo "-DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON" ;;
        avx512_vbmi_vnni) echo "-DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON" ;;
        *) echo "error: no variant called $1" >&2; return 2 ;;
    esac
}

build() {
    target=ggml-cpu
    [ "$1" = baseline ] && target=llama
    flags=
    [ "$1" = native_no_amx ] && flags="-march=native -mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    options=$(options "$1") || return
    # shellcheck disable=SC2086 # options is a list
    CFLAGS=$flags CXXFLAGS=$flags cmake -S "$source" -B "$dir/$1" -DCMAKE_BUILD_TYPE=Release \
        -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=OFF -DGGML_OPENMP=ON -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF \
        -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_APP=OFF \
        -DLLAMA_BUILD_COMMON=OFF $options &&
        cmake --build "$dir/$1" --target "$target" -j "$threads"
}

for variant in baseline $(echo "$variants" | tr ' ' '\n' | grep -vx baseline); do
    echo "building $variant" >&2
    build "$variant" >"$dir/$variant.log" 2>&1 || { tail -n 20 "$dir/$variant.log" >&2; exit 1; }
done
"${CXX:-c++}" -O2 -std=c++17 -I"$source/include" -I"$source/ggml/include" scripts/flags-bench.cpp \
    -o "$dir/flags-bench" -L"$dir/baseline/bin" -lllama -lggml -lggml-base -lggml-cpu \
    -Wl,-rpath-link,"$dir/baseline/bin"
for type in q8_0 f16; do
    [ -s "$dir/$type.gguf" ] || cargo run --quiet --release --example random_model -- "$dir/$type.gguf" "$type"
done
[ -s "$dir/q4_k.gguf" ] ||
    LD_LIBRARY_PATH=$dir/baseline/bin "$dir/flags-bench" quantize "$dir/f16.gguf" "$dir/q4_k.gguf"

results=$dir/results.txt
: >"$results"
for type in $models; do
    round=1
    while [ "$round" -le "$rounds" ]; do
        for variant in $variants; do
            libraries=$dir/$variant/bin:$dir/baseline/bin
            speeds=$(LD_LIBRARY_PATH=$libraries "$dir/flags-bench" "$dir/$type.gguf" "$threads") || speeds="crashed"
            echo "$type $variant $speeds" | tee -a "$results" >&2
        done
        round=$((round + 1))
    done
done

# Medians, and their ratio to the first variant.
awk -v variants="$variants" -v models="$models" '
    NF == 5 { n = ++count[$1 " " $2]; for (i = 3; i <= 5; i++) seen[$1 " " $2, i, n] = $i + 0 }
    function median(key, i,    n, a, b, t, v) {
        n = count[key]
        for (a = 1; a <= n; a++) v[a] = seen[key, i, a]
        for (a = 2; a <= n; a++) for (b = a; b > 1 && v[b - 1] > v[b]; b--) { t = v[b]; v[b] = v[b - 1]; v[b - 1] = t }
        return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
    }
    END {
        m = split(variants, list, " ")
        printf "%-5s %-18s %19s %19s %19s\n", "model", "variant", "prefill 512 t/s", "decode 1 t/s", "decode 8 t/s"
        o = split(models, types, " ")
        for (t = 1; t <= o; t++) for (k = 1; k <= m; k++) {
            type = types[t]; key = type " " list[k]
            if (!(key in count)) { printf "%-5s %-18s crashed\n", type, list[k]; continue }
            printf "%-5s %-18s", type, list[k]
            for (i = 3; i <= 5; i++) {
                value = median(key, i)
                if (k == 1) first[i] = value
                printf " %11.1f (x%4.2f)", value, first[i] ? value / first[i] : 0
            }
            printf "\n"
        }
    }' "$results"
