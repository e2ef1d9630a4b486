#!/bin/sh
# Makes the tables of docs/reliability.md anew and puts each there, between the two comments with its name.
#
#   sh scripts/reliability.sh              all: two hours or more on 2 cores, and 43 GB of disk
#   sh scripts/reliability.sh faults deny  only these
#
# A part that fails ends the script; the page then keeps the tables of that part and of those after it.
set -eu
cd "$(dirname "$0")/.."

tables=target/reliability
page=docs/reliability.md
mkdir -p "$tables"
[ $# -gt 0 ] || set -- unsafe deny faults determinism sanitizers scale fuzz

# Which commit was built, when, on what machine.
made=$(
    changed=$(git status --porcelain -- . ":!$page" | wc -l)
    processor=$(sed -n 's/^model name[[:space:]]*: *//p' /proc/cpuinfo 2>/dev/null | head -n 1)
    printf '`%s`%s, %s, on %s with %s threads, %s' "$(git rev-parse --short=10 HEAD)" \
        "$([ "$changed" = 0 ] || echo ' with changes')" "$(date -u +%F)" "${processor:-$(uname -m)}" \
        "$(getconf _NPROCESSORS_ONLN)" "$(rustc --version | cut -d ' ' -f 1-2)"
)

make_table() {
    case $1 in
    unsafe) sh scripts/unsafe.sh >"$tables/unsafe.md" ;;
    # 2: no advisories here, which the table says.
    deny) sh scripts/deny.sh || [ $? = 2 ] ;;
    faults | determinism) GGSTEER_TABLES=$PWD/$tables cargo test --release --test "$1" ;;
    sanitizers) sh scripts/sanitize.sh ;;
    scale) sh scripts/scale.sh ;;
    fuzz) sh scripts/fuzz.sh ;;
    *)
        echo "reliability: no part '$1': unsafe, deny, faults, determinism, sanitizers, scale, fuzz" >&2
        exit 1
        ;;
    esac
}

# Replaces what stands on the page between the part's comments.
put() {
    grep -q "^<!-- $1 -->$" "$page" || { echo "reliability: $page has no place for '$1'" >&2; exit 1; }
    awk -v part="$1" -v table="$tables/$1.md" -v made="$made" '
        $0 == "<!-- /" part " -->" { inside = 0 }
        !inside { print }
        $0 == "<!-- " part " -->" { inside = 1; while ((getline line <table) > 0) print line; print "\n*" made ".*" }
    ' "$page" >"$tables/page.md"
    cp "$tables/page.md" "$page"
}

for part; do
    echo "reliability: $part" >&2
    rm -f "$tables/$part.md"
    make_table "$part"
    [ -s "$tables/$part.md" ] || { echo "reliability: $part made no table" >&2; exit 1; }
    put "$part"
done
