//! Folders of prompt files: a dataset as it lies in a repository, or in the hub's cache on this machine.
//!
//! Which split a file belongs to, its name says, as the hub has it: `train` (or `training`), `validation`
//! (`valid`, `val`, `dev`) or `test` (`testing`, `eval`, `evaluation`) as a word of the file's name or of a
//! folder it lies in, or whatever stands before `-00000-of-00001`. Where no name says, all is `train`. A
//! README's list of files is not read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::PromptError;
use super::formats::{EXTENSIONS, extension};

/// The split that is meant where none is named.
pub(super) const TRAIN: &str = "train";

/// How deep below a folder files are looked for.
const DEPTH: usize = 5;

/// The prompt files below a folder, as paths from there with forward slashes.
pub(super) fn list(root: &Path) -> Result<Vec<String>, PromptError> {
    let mut files = Vec::new();
    walk(root, "", DEPTH, &mut files)?;
    files.sort();
    Ok(files)
}

fn walk(folder: &Path, below: &str, depth: usize, files: &mut Vec<String>) -> Result<(), PromptError> {
    let failed = |source| PromptError::Read { path: folder.into(), source };
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = format!("{below}{}", entry.file_name().to_string_lossy());
        // A link to a folder may lead round in a circle; one to a file is how the cache holds all of them.
        if entry.file_type().map_err(failed)?.is_dir() {
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            if depth > 0 && !hidden {
                walk(&entry.path(), &format!("{name}/"), depth - 1, files)?;
            }
        } else if is_data(&name) && entry.path().is_file() {
            files.push(name);
        }
    }
    Ok(())
}

/// Whether a file can hold prompts: by its extension, and not one of those that describe a dataset.
pub(super) fn is_data(file: &str) -> bool {
    const OTHERS: [&str; 5] =
        ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"];
    let name = file.rsplit('/').next().expect("there is always a last piece");
    let hidden = file.split('/').any(|piece| piece.starts_with('.'));
    !hidden && !OTHERS.contains(&name) && EXTENSIONS.contains(&extension(Path::new(name)).as_str())
}

/// Of the files of the dataset `at`, those of one split in their order.
pub(super) fn choose(
    at: &str,
    files: &[String],
    below: Option<&str>,
    split: Option<&str>,
) -> Result<Vec<String>, PromptError> {
    if let Some(file) = below.filter(|below| files.iter().any(|file| file == below)) {
        return match split {
            None => Ok(vec![file.to_owned()]),
            Some(split) => Err(PromptError::NoSplits { path: at.into(), split: split.to_owned() }),
        };
    }
    let folder = below.map_or(String::new(), |below| format!("{below}/"));
    let files: Vec<&String> = files.iter().filter(|file| file.starts_with(&folder)).collect();
    // A folder that is itself called train is one split, whatever the names in it.
    let mut splits: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for file in &files {
        if let Some(split) = split_of(&file[folder.len()..]) {
            splits.entry(split).or_default().push(file);
        }
    }
    if splits.is_empty() {
        splits.insert(TRAIN.to_owned(), files.iter().map(|file| file.as_str()).collect());
    }
    if files.is_empty() {
        return Err(PromptError::NoFiles { at: at.to_owned() });
    }
    let found = || splits.keys().cloned().collect();
    let chosen = match split.map(|split| (split, canonical(split).unwrap_or(split))) {
        Some((_, name)) if splits.contains_key(name) => &splits[name],
        Some((split, _)) if splits.contains_key(split) => &splits[split],
        Some((split, _)) => {
            return Err(PromptError::UnknownSplit { at: at.into(), split: split.into(), found: found() });
        }
        None if splits.contains_key(TRAIN) => &splits[TRAIN],
        None if splits.len() == 1 => splits.values().next().expect("there is one"),
        None => return Err(PromptError::WhichSplit { at: at.into(), found: found() }),
    };
    pieces(at, &folder, chosen)
}

/// Files that differ in their numbers only, in the order of these.
fn pieces(at: &str, folder: &str, files: &[&str]) -> Result<Vec<String>, PromptError> {
    let mut names: BTreeMap<String, &str> = BTreeMap::new();
    for file in files {
        names.entry(numbers(file).0).or_insert(file);
    }
    if names.len() > 1 {
        // The first few say enough.
        let found = names.values().take(8).map(|file| file[folder.len()..].to_owned()).collect();
        return Err(PromptError::WhichFile { at: at.into(), found });
    }
    let mut files: Vec<String> = files.iter().map(|&file| file.to_owned()).collect();
    files.sort_by_key(|file| numbers(file).1);
    Ok(files)
}

/// Whether no piece of `NAME-00000-of-00003` is missing.
pub(super) fn is_complete(files: &[String]) -> bool {
    let total = files.first().and_then(|file| shard(stem(file))).map(|(_, total)| total);
    total.is_none_or(|total| files.len() as u64 == total)
}

/// A path with its numbers, and the fingerprints of old shard names, cut out; and the numbers.
fn numbers(path: &str) -> (String, Vec<u64>) {
    let (mut rest, mut found) = (String::new(), Vec::new());
    let mut digits = String::new();
    let hashed = shard(stem(path)).is_some();
    let mut flush = |digits: &mut String, rest: &mut String| {
        if !digits.is_empty() {
            found.push(digits.parse().unwrap_or(u64::MAX));
            rest.push('#');
            digits.clear();
        }
    };
    for piece in path.split_inclusive(['-', '.']) {
        let word = piece.trim_end_matches(['-', '.']);
        if hashed && word.len() == 16 && word.bytes().all(|b| b.is_ascii_hexdigit()) {
            rest.push_str("##");
            continue;
        }
        for c in piece.chars() {
            if c.is_ascii_digit() {
                digits.push(c);
            } else {
                flush(&mut digits, &mut rest);
                rest.push(c);
            }
        }
        flush(&mut digits, &mut rest);
    }
    (rest, found)
}

/// The name of a file without folders and extension.
fn stem(file: &str) -> &str {
    let name = file.rsplit('/').next().expect("there is always a last piece");
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// `NAME-00000-of-00003`, perhaps with a fingerprint after it: the name and the number of pieces.
fn shard(stem: &str) -> Option<(&str, u64)> {
    let (before, after) = stem.split_once("-of-")?;
    let (name, index) = before.rsplit_once('-')?;
    let total = after.split('-').next()?;
    let number = |digits: &str| digits.len() >= 5 && digits.bytes().all(|b| b.is_ascii_digit());
    (number(index) && number(total)).then(|| Some((name, total.parse().ok()?)))?
}

/// The split that a file's name, or else the innermost folder that tells, puts it in.
fn split_of(file: &str) -> Option<String> {
    let (folders, _) = file.rsplit_once('/').unwrap_or(("", file));
    let stem = stem(file);
    let name = shard(stem).map(|(name, _)| name);
    let by_name = canonical(name.unwrap_or(stem)).or(name).map(str::to_owned);
    by_name.or_else(|| folders.rsplit('/').find_map(canonical).map(str::to_owned))
}

/// The usual name of the split that a word of `name` means.
fn canonical(name: &str) -> Option<&'static str> {
    name.split(|c: char| !c.is_alphanumeric()).find_map(|word| match word.to_lowercase().as_str() {
        "train" | "training" => Some(TRAIN),
        "validation" | "valid" | "val" | "dev" => Some("validation"),
        "test" | "testing" | "eval" | "evaluation" => Some("test"),
        _ => None,
    })
}

/// The folder with the files of `revision` in a dataset's folder of the hub's cache, if it is there; a commit
/// names it itself, a branch or tag through a file under `refs`.
pub(super) fn snapshot(dataset: &Path, revision: &str) -> Option<PathBuf> {
    let commit = std::fs::read_to_string(dataset.join("refs").join(revision));
    let commit = commit.as_deref().map_or(revision, str::trim);
    let plain = !commit.is_empty() && commit.bytes().all(|b| b.is_ascii_alphanumeric());
    Some(dataset.join("snapshots").join(commit)).filter(|folder| plain && folder.is_dir())
}

/// Where the files of a local folder are: below the snapshot of `main`, or the only one, if it is a folder of
/// the cache.
pub(super) fn root(folder: &Path) -> PathBuf {
    let snapshots = folder.join("snapshots");
    if !snapshots.is_dir() {
        return folder.to_path_buf();
    }
    let only = || {
        let mut all = std::fs::read_dir(&snapshots).ok()?.filter_map(Result::ok).map(|entry| entry.path());
        all.next().filter(|_| all.next().is_none())
    };
    snapshot(folder, super::spec::MAIN).or_else(only).unwrap_or_else(|| folder.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(files: &[&str], below: Option<&str>, split: Option<&str>) -> Result<Vec<String>, String> {
        let files: Vec<String> = files.iter().map(|&file| file.to_owned()).collect();
        choose("set", &files, below, split).map_err(|e| e.to_string())
    }

    #[test]
    fn splits_go_by_the_words_of_file_and_folder_names() {
        let files = ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"];
        assert_eq!(chosen(&files, None, None).unwrap(), [files[0]]);
        assert_eq!(chosen(&files, None, Some("test")).unwrap(), [files[1]]);
        assert_eq!(chosen(&files, None, Some("eval")).unwrap(), [files[1]]);
        let files = ["my_dev.csv", "my-training.csv", "notes.txt"];
        assert_eq!(chosen(&files, None, Some("validation")).unwrap(), [files[0]]);
        assert_eq!(chosen(&files, None, None).unwrap(), [files[1]]);
        let files = ["train/1.json", "test/1.json"];
        assert_eq!(chosen(&files, None, Some("test")).unwrap(), [files[1]]);
        // Of a name that says nothing, all is train; of one that has pieces, its own.
        assert_eq!(chosen(&["prompts.csv"], None, Some("train")).unwrap(), ["prompts.csv"]);
        let files = ["data/mild-00000-of-00001.parquet", "data/sharp-00000-of-00001.parquet"];
        assert_eq!(chosen(&files, None, Some("sharp")).unwrap(), [files[1]]);
    }

    #[test]
    fn pieces_come_in_the_order_of_their_numbers() {
        let files = ["train-10.csv", "train-9.csv", "train-100.csv"];
        assert_eq!(chosen(&files, None, None).unwrap(), ["train-9.csv", "train-10.csv", "train-100.csv"]);
        let hashed = [
            "data/train-00001-of-00002-0123456789abcdef.parquet",
            "data/train-00000-of-00002-fedcba9876543210.parquet",
        ];
        assert_eq!(chosen(&hashed, None, None).unwrap(), [hashed[1], hashed[0]]);
        let owned = |files: &[&str]| files.iter().map(|&f| f.to_owned()).collect::<Vec<_>>();
        assert!(is_complete(&owned(&hashed)) && !is_complete(&owned(&hashed[..1])));
        assert!(is_complete(&owned(&files)));
    }

    #[test]
    fn a_path_inside_takes_a_file_or_a_folder() {
        let files = ["en/train.csv", "fr/train.csv", "fr/test.csv"];
        assert_eq!(chosen(&files, Some("fr/test.csv"), None).unwrap(), ["fr/test.csv"]);
        assert_eq!(chosen(&files, Some("fr"), None).unwrap(), ["fr/train.csv"]);
        assert_eq!(chosen(&files, Some("fr"), Some("test")).unwrap(), ["fr/test.csv"]);
        assert!(chosen(&files, Some("fr/test.csv"), Some("test")).unwrap_err().contains("no splits"));
        assert_eq!(
            chosen(&files, Some("de"), None).unwrap_err(),
            format!("set: no prompt file in it, expected {}", crate::prompts::error::FORMATS)
        );
    }

    #[test]
    fn what_is_not_settled_is_asked_for() {
        for (files, split, message) in [
            (
                &["data/train-00000-of-00001.parquet"][..],
                Some("final"),
                "set: no split \"final\", found train",
            ),
            (
                &["val.csv", "test.csv"],
                None,
                "set: which split holds the prompts? found test, validation; write [test] after it",
            ),
            (
                &["harmful.csv", "harmless.csv"],
                None,
                "set: which file holds the prompts? found harmful.csv, harmless.csv; write set/harmful.csv",
            ),
            (
                &["en/train.csv", "fr/train.csv"],
                None,
                "set: which file holds the prompts? found en/train.csv, fr/train.csv; write set/en/train.csv",
            ),
        ] {
            assert_eq!(chosen(files, None, split).unwrap_err(), message);
        }
    }

    #[test]
    fn files_about_a_dataset_are_no_data() {
        for file in ["README.md", ".cache/a.txt", "dataset_infos.json", "a/state.json", "a.zip", "LICENSE"] {
            assert!(!is_data(file), "{file}");
        }
        assert!(is_data("a/b.JSONL") && is_data("train.txt"));
    }
}
