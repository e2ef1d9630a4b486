//! The C header is what cbindgen makes of the source.

use std::fs;
use std::path::Path;

#[test]
fn the_header_is_made_from_the_source() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("include/ggsteer.h");
    let made = cbindgen::Builder::new()
        .with_config(cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap())
        .with_src(root.join("src/plugin/c/handle.rs"))
        .with_src(root.join("src/plugin/c/mod.rs"))
        .generate()
        .unwrap();
    let mut text = Vec::new();
    made.write(&mut text);
    // The sections on safety are for Rust: the sentences before them say the same.
    let text = String::from_utf8(text).unwrap();
    let mut lines: Vec<&str> = Vec::new();
    let mut skips = false;
    for line in text.lines() {
        skips = line.starts_with("// # Safety") || skips && line.starts_with("//");
        if !skips {
            lines.push(line);
        } else if lines.last().is_some_and(|last| last.trim() == "//") {
            lines.pop();
        }
    }
    let made = lines.join("\n") + "\n";
    if std::env::var("GGSTEER_UPDATE_HEADER").is_ok_and(|value| value == "1") {
        fs::write(&path, &made).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == made, "make it again: GGSTEER_UPDATE_HEADER=1 cargo test --release --test plugin header");
}
