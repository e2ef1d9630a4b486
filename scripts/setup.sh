#!/bin/sh
# Makes this machine able to build ggsteer: finds or installs CMake and libclang, and picks ggml's options.
#
# llama.cpp is compiled with CMake, and its Rust bindings are generated with libclang. Missing ones come from the
# system's packages where that needs no password, else as Python wheels into .tools/. What was found is written to
# .cargo/config.toml, the one place from which make and plain cargo take it, so that there is one build of llama.cpp.
# A run that finds everything in place changes nothing and says nothing.
#
# With the argument `test` it also finds or installs what only tests need: Python's GGUF reader and OpenAI client, curl,
# strace, a Chromium, and llama-cpp-python, which is compiled (three minutes on 2 cores, once).
#
# GGSTEER_SETUP=wheels takes the wheels even where the system could give the packages.
set -eu
cd "$(dirname "$0")/.."

cmake_wheel='cmake==3.31.6'
libclang_wheel='libclang==18.1.1'
gguf_wheel='gguf==0.19.0'
openai_wheel='openai==3.57.0'
llama_source='llama-cpp-python==0.3.36'
wheels=.tools/python
log=.tools/setup.log
config=.cargo/config.toml
marker='# Written by scripts/setup.sh for this machine. Delete it to build for any processor.'

say() { echo "setup: $*" >&2; }
fail() {
    say "error: $*"
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }
# The first argument that is a file; fails where none is.
first_file() {
    for file in "$@"; do
        if [ -f "$file" ]; then
            echo "$file"
            return 0
        fi
    done
    return 1
}
forced_wheels() { [ "${GGSTEER_SETUP:-}" = wheels ]; }

system_cmake() { ! forced_wheels && { [ -n "${CMAKE:-}" ] || have cmake; }; }
wheel_cmake() { [ -x "$wheels/cmake/data/bin/cmake" ]; }

# Looks where bindgen looks.
system_libclang() {
    forced_wheels && return 1
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    if [ "$(uname)" = Darwin ]; then
        tools=$(xcode-select -p 2>/dev/null || true)
        first_file "$tools/usr/lib/libclang.dylib" \
            "$tools/Toolchains/XcodeDefault.xctoolchain/usr/lib/libclang.dylib" \
            /opt/homebrew/opt/llvm/lib/libclang.dylib /usr/local/opt/llvm/lib/libclang.dylib >/dev/null
        return
    fi
    prefix=$(llvm-config --prefix 2>/dev/null || echo /usr)
    for folder in "$prefix/lib" /usr/lib/llvm-*/lib /usr/lib64/llvm*/lib /usr/lib /usr/lib64 /usr/lib/*-linux-* \
        /usr/local/lib /usr/local/llvm*/lib; do
        for file in "$folder"/libclang.so "$folder"/libclang.so.* "$folder"/libclang-[0-9]*.so \
            "$folder"/libclang-[0-9]*.so.*; do
            [ -f "$file" ] && return 0
        done
    done
    return 1
}
wheel_libclang() { first_file "$wheels"/clang/native/libclang.so "$wheels"/clang/native/libclang.dylib >/dev/null; }

# The compiler's own headers (stddef.h and the like), for a libclang that came without clang's.
compiler_headers() {
    first_file "$("${CC:-cc}" -print-file-name=include 2>/dev/null)/stddef.h" \
        "$("${CC:-cc}" -print-resource-dir 2>/dev/null)/include/stddef.h"
}
clang_headers() {
    first_file /usr/lib/llvm-*/lib/clang/*/include/stddef.h /usr/lib/clang/*/include/stddef.h \
        /usr/lib64/clang/*/include/stddef.h /usr/local/lib/clang/*/include/stddef.h >/dev/null
}

# Runs a command as root, if that needs no password.
can_be_root() { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

why='llama.cpp is compiled with CMake, its Rust bindings are made with libclang'

# install_packages CMAKE_PACKAGE LIBCLANG_PACKAGE COMMAND...: installs what is missing, as one line and a log.
install_packages() {
    packages=
    system_cmake || packages=" $1"
    system_libclang || packages="$packages $2"
    shift 2
    say "installing$packages with $1: $why"
    # shellcheck disable=SC2086 # packages is a list
    "$installer" "$@" $packages >>"$log" 2>&1
}

try_system() {
    forced_wheels && return 1
    installer=as_root
    if have brew; then
        installer=env
        install_packages cmake llvm brew install
    elif have apt-get && can_be_root; then
        as_root apt-get update >>"$log" 2>&1 || true
        install_packages cmake libclang-dev apt-get install --yes --no-install-recommends
    elif have dnf && can_be_root; then
        install_packages cmake clang-devel dnf install --assumeyes
    else
        return 1
    fi
}

# pip_install FOLDER PACKAGE...: wheels into a folder of their own.
pip_install() {
    folder=$1
    shift
    mkdir -p .tools
    if python3 -m pip --version >>"$log" 2>&1; then
        pip='python3 -m pip'
    else
        python3 -m venv .tools/venv >>"$log" 2>&1 || return 1
        pip=.tools/venv/bin/pip
    fi
    # shellcheck disable=SC2086 # pip is a command line
    PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 \
        $pip install --only-binary :all: --upgrade --target "$folder" "$@" >>"$log" 2>&1
}

try_wheels() {
    have python3 || return 1
    list=
    system_cmake || wheel_cmake || list=$cmake_wheel
    system_libclang || wheel_libclang || list="$list $libclang_wheel"
    say "installing" $list "from PyPI into $wheels: $why"
    # shellcheck disable=SC2086 # list is a list
    pip_install "$wheels" $list
}

ready() { { system_cmake || wheel_cmake; } && { system_libclang || wheel_libclang; }; }

have cargo || fail "there is no cargo: install Rust from https://rustup.rs"
have "${CXX:-c++}" || fail "there is no C++ compiler: install one (Debian, Ubuntu: apt-get install g++)"
if ! ready; then
    mkdir -p .tools
    : >"$log"
    try_system || true
    ready || try_wheels || true
    if ! ready; then
        tail -n 5 "$log" >&2
        fail "CMake and libclang could not be installed (see $log): install them, for instance with" \
            "'sudo apt-get install cmake libclang-dev', and run this again"
    fi
fi

# test_wheel FOLDER MODULE WHEEL WHY: what a test needs of Python's packages, where there is a Python.
test_wheel() {
    have python3 && ! PYTHONPATH=$1 python3 -c "import $2" 2>/dev/null || return 0
    say "installing $3 from PyPI into $1: $4"
    pip_install "$1" "$3" ||
        fail "$3 could not be installed (see $log): install pip or venv (Debian: python3-venv)"
}
# system_package NAME [OPTION OF BREW]: from the system's packages, as well as that goes.
system_package() {
    if have apt-get && can_be_root; then
        as_root apt-get update >>"$log" 2>&1 || true
        as_root apt-get install --yes --no-install-recommends "$1" >>"$log" 2>&1 || true
    elif have dnf && can_be_root; then
        as_root dnf install --assumeyes "$1" >>"$log" 2>&1 || true
    elif have brew; then
        # shellcheck disable=SC2086 # no option, or one
        brew install ${2:-} "$1" >>"$log" 2>&1 || true
    fi
}
if [ "${1:-}" = test ]; then
    mkdir -p .tools
    test_wheel .tools/gguf gguf "$gguf_wheel" "a test reads our files with Python's GGUF reader"
    test_wheel .tools/openai openai "$openai_wheel" "tests talk to the server with OpenAI's own client"
    if ! have curl; then
        say "installing curl: a test talks to the server with it"
        system_package curl
        have curl || fail "curl could not be installed (see $log): install it"
    fi
    if [ "$(uname)" = Linux ] && ! have strace; then
        say "installing strace: a test makes system calls fail with it"
        system_package strace
        have strace || say "strace could not be installed (see $log): the test of what a failing disk does will be skipped"
    fi
fi

# Tests open pages in a browser.
has_chromium() {
    [ -n "${CHROMIUM:-}" ] && return 0
    for name in chromium chromium-browser google-chrome google-chrome-stable chrome; do
        have "$name" && return 0
    done
    first_file "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome" \
        /Applications/Chromium.app/Contents/MacOS/Chromium >/dev/null
}
if [ "${1:-}" = test ] && [ "${GGSTEER_NO_BROWSER:-}" != 1 ] && ! has_chromium; then
    say "installing chromium: tests open pages in a browser"
    system_package chromium --cask
    has_chromium || fail "chromium could not be installed (see $log): install it, or say where a Chromium or Chrome is" \
        "with CHROMIUM=/path, or leave its tests out with GGSTEER_NO_BROWSER=1"
fi

# A test steers llama-cpp-python, which brings a llama.cpp of its own. It is built for any processor, and for building fast
# rather than for running fast.
llama=.tools/llama-cpp-python
if [ "${1:-}" = test ] && [ "${GGSTEER_NO_LLAMA_CPP_PYTHON:-}" != 1 ] && [ "$(cat "$llama/source" 2>/dev/null)" != "$llama_source" ]; then
    mkdir -p .tools
    say "building $llama_source from PyPI in $llama, three minutes on 2 cores: a test runs the plugin in it"
    options="-DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF"
    options="$options -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF -DCMAKE_UNITY_BUILD_BATCH_SIZE=16"
    for project in llama.cpp ggml; do
        options="$options -DCMAKE_PROJECT_${project}_INCLUDE=$PWD/scripts/llama-cpp-python.cmake"
    done
    rm -rf "$llama"
    if have python3 && (
        if ! system_cmake; then PATH="$PWD/$wheels/cmake/data/bin:$PATH"; fi
        export PATH CFLAGS='-O1 -DNDEBUG' CXXFLAGS='-O1 -DNDEBUG' CMAKE_ARGS="$options"
        export CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(getconf _NPROCESSORS_ONLN)}"
        pip_install "$llama" --no-binary llama-cpp-python --config-settings=cmake.build-type=None "$llama_source"
    ); then
        echo "$llama_source" >"$llama/source"
    else
        # Not an end to all tests: this one says that it is left out, and what was told here.
        rm -rf "$llama"
        mkdir -p "$llama"
        tail -n 20 "$log" >"$llama/failed"
        say "$llama_source could not be built (see $log): its test will be SKIPPED; look there for what it lacks"
    fi
fi

# ggml's options for this processor, as lines NAME=ON. Measured with scripts/flags-bench.sh on a processor with AVX-512 (12
# blocks of 1024): against the AVX2 baseline the three AVX-512 options give prefill x1.25 (Q8_0), x1.26 (Q4_K) and
# x1.52 (F16), decode x0.99 to x1.05, and decode of eight sequences x1.19 to x1.24. AVX_VNNI is not measured.
# /proc/cpuinfo is what the kernel lets programs use: -march=native asks the processor alone, and then faults where
# the kernel has not enabled AMX. Elsewhere (macOS, ARM) ggml's defaults stand.
processor_flags() {
    [ -r /proc/cpuinfo ] && [ "$(uname -m)" = x86_64 ] || return 0
    features=" $(sed -n 's/^flags[^:]*://p' /proc/cpuinfo | head -n 1) "
    has() {
        for feature in "$@"; do
            case $features in *" $feature "*) ;; *) return 1 ;; esac
        done
    }
    # What every build takes for granted, switched off where the processor lacks it.
    has sse4_2 || echo GGML_SSE42=OFF
    has avx || echo GGML_AVX=OFF
    has avx2 || echo GGML_AVX2=OFF
    has fma || echo GGML_FMA=OFF
    has f16c || echo GGML_F16C=OFF
    has bmi2 || echo GGML_BMI2=OFF
    compiles() { "${CC:-cc}" "$@" -x c -fsyntax-only /dev/null 2>/dev/null; }
    if has avx512f avx512cd avx512bw avx512dq avx512vl && compiles -mavx512f; then
        echo GGML_AVX512=ON
        if has avx512vbmi && compiles -mavx512vbmi; then echo GGML_AVX512_VBMI=ON; fi
        if has avx512_vnni && compiles -mavx512vnni; then echo GGML_AVX512_VNNI=ON; fi
    fi
    if has avx_vnni && compiles -mavxvnni; then echo GGML_AVX_VNNI=ON; fi
}

# The file's text: [env] reaches the build scripts of llama-cpp-sys-2 and bindgen.
config_text() {
    echo "$marker"
    echo "[env]"
    for flag in $flags; do
        echo "${flag%%=*} = \"${flag#*=}\""
    done
    if ! system_cmake; then
        echo "CMAKE = { value = \"$wheels/cmake/data/bin/cmake\", relative = true }"
    fi
    if ! system_libclang; then
        echo "LIBCLANG_PATH = { value = \"$wheels/clang/native\", relative = true }"
    fi
    if ! system_libclang || { [ "$(uname)" = Linux ] && [ -z "${LIBCLANG_PATH:-}" ] && ! clang_headers; }; then
        headers=$(compiler_headers) || fail "${CC:-cc} does not say where its stddef.h is"
        echo "BINDGEN_EXTRA_CLANG_ARGS = \"-isystem ${headers%/stddef.h}\""
    fi
}

# llama.cpp's RPC backend, for `--rpc` and `ggsteer worker`. Without RDMA: ggml would link libibverbs wherever it finds
# it, and the program would then not start on a machine without.
flags="$(processor_flags) GGML_RPC=ON GGML_RPC_RDMA=OFF"
text=$(config_text)
if [ ! -e "$config" ] || [ "$(head -n 1 "$config")" = "$marker" ]; then
    if [ "$text" != "$(cat "$config" 2>/dev/null || true)" ]; then
        mkdir -p .cargo
        echo "$text" >"$config.new"
        mv "$config.new" "$config"
    fi
else
    for line in $flags; do
        grep -q "^${line%%=*} *=" "$config" || missing="${missing:-} $line"
    done
    [ -z "${missing:-}" ] || say "$config is not ours and stays as it is; its [env] lacks$missing"
fi

# CMake does not look at its options again once it has run, so a llama.cpp built with others is built anew.
for cache in "${CARGO_TARGET_DIR:-target}"/release/build/llama-cpp-sys-2-*/out/build/CMakeCache.txt; do
    [ -f "$cache" ] || continue
    for option in SSE42 AVX AVX2 FMA F16C BMI2 AVX512 AVX512_VBMI AVX512_VNNI AVX_VNNI RPC; do
        wanted=$(printenv "GGML_$option" || sed -n "s/^GGML_$option = \"\(.*\)\"/\1/p" "$config")
        case $option in AVX512* | AVX_VNNI | RPC) default=OFF ;; *) default=ON ;; esac
        found=$(sed -n "s/^GGML_$option:[A-Z]*=//p" "$cache")
        if [ -n "$found" ] && [ "$found" != "${wanted:-$default}" ]; then
            say "llama.cpp was built with other options (GGML_$option=$found): building it again"
            cargo clean --quiet --release -p llama-cpp-sys-2
            break 2
        fi
    done
done
