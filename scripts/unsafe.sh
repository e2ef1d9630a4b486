#!/bin/sh
# Where unsafe code stands: a table of every file that has some, how much, and whether each block says why it is sound.
#
# The compiler denies it everywhere else (Cargo.toml, `unsafe_code`). Ends with an error where a file has unsafe code
# without asking for it, or asks without having it.
set -eu
cd "$(dirname "$0")/.."

find src tests benches examples fuzz patches -name target -prune -o -name '*.rs' -print 2>/dev/null | LC_ALL=C sort | xargs awk '
    function flush() {
        if (file == "") return
        if ((blocks + functions + externs > 0) != asks) { wrong = wrong "\n" file; }
        if (asks) {
            printf "| `%s` | %d | %d | %d |\n", file, blocks, functions, externs
            files++; b += blocks; f += functions; e += externs
        }
    }
    FNR == 1 { flush(); file = FILENAME; blocks = functions = externs = asks = 0
        if (!head++) { print "| file | blocks | functions | C names |"; print "|---|---:|---:|---:|" } }
    /^#!\[allow\(unsafe_code\)\]/ { asks = 1 }
    { line = $0; sub(/^[ \t]*\/\/.*/, "", line); gsub(/"([^"\\]|\\.)*"/, "", line)
      blocks += gsub(/(^|[^_[:alnum:]])unsafe *\{/, "{", line) + gsub(/unsafe impl/, "", line)
      externs += gsub(/#\[unsafe\(/, "", line) + gsub(/unsafe extern "?C?"? *\{/, "", line)
      functions += gsub(/unsafe (extern *)?fn [a-z_]/, "", line) }
    END { flush(); printf "| **%d files** | %d | %d | %d |\n", files, b, f, e
        if (wrong != "") { print "error: unsafe code and #![allow(unsafe_code)] do not go together in:" wrong >"/dev/stderr"; exit 1 } }
'
