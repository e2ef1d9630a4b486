#!/bin/sh
# In CMake's place (CMAKE=scripts/cmake-stub.sh) where llama.cpp is never linked: `cargo check`, and Miri, which runs no C.
# The bindings are still made from llama.cpp's headers; its libraries are an empty one.
set -eu
[ "${1:-}" != --version ] || exit 0
# The build script runs this in OUT_DIR/build, and looks for libraries in OUT_DIR/lib.
mkdir -p ../lib
printf '!<arch>\n' >../lib/libllama.a
