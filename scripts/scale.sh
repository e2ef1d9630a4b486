#!/bin/sh
# Rewrites and verifies models of random weights: scripts/scale.sh [GB], up to so many gigabytes, 20 where none is given.
#
# Writes target/reliability/scale.md. Takes some minutes, and a disk of twice the size and 3 GB more; all of it is removed
# again, however this ends.
set -eu
cd "$(dirname "$0")/.."

gb=${1:-20}
target=${CARGO_TARGET_DIR:-target}
if [ "$(uname -s)" != Linux ]; then
    echo "error: this needs Linux: memory is read from /proc" >&2
    exit 1
fi
mkdir -p "$target/reliability"
df -Pk "$target" | awk -v gb="$gb" 'NR == 2 {
    need = 2 * gb + 3; free = $4 * 1024 / 1e9
    printf "%.1f GB of disk needed, %.1f GB free\n", need, free
    if (gb !~ /^[0-9.]+$/ || free < need) {
        print "error: name a smaller size: scripts/scale.sh 2" >"/dev/stderr"
        exit 1
    }
}'
cargo build --release --bin ggsteer --example scale

folder=$(mktemp -d "$target/scale.XXXXXX")
pid=
trap 'rm -rf "$folder"' EXIT
trap '[ -z "$pid" ] || { kill "$pid"; wait "$pid" || :; } 2>/dev/null; exit 130' INT TERM
"$target/release/examples/scale" "$gb" "$folder" "$target/reliability/scale.md" &
pid=$!
wait "$pid"
