#!/bin/sh
# The dependencies' licences, sources, bans and security advisories, and those of the fuzz targets' (deny.toml).
#
# Installs cargo-deny into .tools/. The advisories come from RustSec's database on GitHub, which `cargo audit` reads too.
# Where it cannot be had the rest is checked, the missing part is said, and the script ends with 2.
set -eu
cd "$(dirname "$0")/.."

version=0.20.2
deny=.tools/deny/bin/cargo-deny
table=target/reliability/deny.md

[ "$("$deny" --version 2>/dev/null || true)" = "cargo-deny $version" ] ||
    cargo install cargo-deny --quiet --locked --version "$version" --root .tools/deny
mkdir -p target/reliability

missing=0
printf '| lock file | packages | of two versions | licences, sources, bans | advisories |\n|---|---:|---:|---|---|\n' >"$table"
for lock in Cargo.lock fuzz/Cargo.lock; do
    [ -f "$lock" ] || continue
    check() { "$deny" --manifest-path "${lock%.lock}.toml" --config "$PWD/deny.toml" --locked "$@"; }
    check check --hide-inclusion-graph licenses sources bans 2>target/reliability/deny.log || {
        cat target/reliability/deny.log >&2
        exit 1
    }
    twice=$(grep -c '^warning\[duplicate\]' target/reliability/deny.log || true)
    if check fetch db; then
        check check advisories
        advisories=none
    else
        echo "deny: advisories NOT checked: RustSec's database cannot be fetched from here" >&2
        advisories='**not checked**, the database could not be fetched'
        missing=2
    fi
    printf '| `%s` | %s | %s | kept | %s |\n' "$lock" "$(grep -c '^\[\[package\]\]' "$lock")" "$twice" "$advisories" >>"$table"
done
cat "$table"
exit "$missing"
