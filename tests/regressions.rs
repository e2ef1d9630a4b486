//! What the fuzz targets once came upon (`fuzz/regressions`), and the small files that they start from (`fuzz/seeds`),
//! through the very functions that `make fuzz` calls.

#[path = "../fuzz/bodies.rs"]
mod bodies;
#[path = "../fuzz/differential.rs"]
mod differential;
mod program;
#[path = "../fuzz/seeds.rs"]
mod seeds;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use program::Folder;

/// A target's name and what it does with a file's bytes.
type Target = (&'static str, fn(&[u8]) -> bool);

const TARGETS: [Target; 9] = [
    ("calibration", bodies::calibration),
    ("checkpoint", bodies::checkpoint),
    ("config", config),
    ("differential", differential::differential),
    ("direction", bodies::direction),
    ("gguf", bodies::gguf),
    ("prompts", bodies::prompts),
    ("report", bodies::report),
    ("template", bodies::template),
];

/// The program reads its own settings: not a part of the library, so it is run.
fn config(data: &[u8]) -> bool {
    let folder = Folder::new();
    folder.file("ggsteer.toml", data);
    let output = folder.run("--quiet --json config");
    let code = output.status.code();
    assert!(matches!(code, Some(0 | 1)), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    code == Some(0)
}

fn folder(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind)
}

/// The files of a target, by name.
fn files(kind: &str, target: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder(kind).join(target)) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn what_was_found_once_is_read_or_refused_and_soon() {
    let mut n = 0;
    for (name, target) in TARGETS {
        for path in files("regressions", name) {
            println!("{}", path.display());
            let start = Instant::now();
            target(&fs::read(&path).unwrap());
            assert!(start.elapsed() < Duration::from_secs(10), "{}", path.display());
            n += 1;
        }
    }
    println!("{n} files");
}

/// A seed that is refused at the door leads nowhere.
#[test]
fn every_seed_is_taken_for_what_it_is() {
    for (name, target) in TARGETS {
        let seeds = files("seeds", name);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        for path in seeds {
            let bytes = fs::read(&path).unwrap();
            assert!(bytes.len() <= 8192, "{}: {} bytes", path.display(), bytes.len());
            assert!(target(&bytes), "{} is refused", path.display());
        }
    }
}

/// `GGSTEER_UPDATE_SEEDS=1` writes them.
#[test]
fn seeds_that_are_no_text_are_as_they_are_made() {
    for (name, bytes) in seeds::all() {
        let path = folder("seeds").join(name);
        if std::env::var_os("GGSTEER_UPDATE_SEEDS").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        assert!(fs::read(&path).is_ok_and(|found| found == bytes), "{name}: run with GGSTEER_UPDATE_SEEDS=1");
    }
}

#[test]
fn every_target_is_replayed_here() {
    let mut entries: Vec<String> = fs::read_dir(folder("fuzz_targets"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    entries.sort();
    assert_eq!(entries, TARGETS.map(|(name, _)| name));
    for kind in ["regressions", "seeds"] {
        for entry in fs::read_dir(folder(kind)).into_iter().flatten() {
            let name = entry.unwrap().file_name();
            assert!(name == ".gitkeep" || entries.iter().any(|e| name == e.as_str()), "{kind}/{name:?}");
        }
    }
}
