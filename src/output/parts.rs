//! Several files that appear together: the parts of a split model.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempPath;

use super::{OutputError, OutputFile, PLACING, sync_folder, temporary};
use crate::gguf::part_paths;

impl OutputFile {
    /// The outputs of a model of `count` parts, begun in place of this one under the names of [`part_paths`]; this one
    /// itself for a single part.
    ///
    /// `inputs` as for [`OutputFile::create`].
    ///
    /// # Errors
    /// See [`OutputError`]; nothing is left behind.
    pub fn into_parts(self, count: usize, inputs: &[&Path]) -> Result<Vec<Self>, OutputError> {
        if count < 2 {
            return Ok(vec![self]);
        }
        self.parts(count, inputs).collect()
    }

    /// What [`OutputFile::into_parts`] would refuse, before long work.
    ///
    /// # Errors
    /// As there.
    pub fn check_parts(&self, count: usize, inputs: &[&Path]) -> Result<(), OutputError> {
        if count < 2 { Ok(()) } else { self.parts(count, inputs).try_for_each(|part| part.map(drop)) }
    }

    fn parts(&self, count: usize, inputs: &[&Path]) -> impl Iterator<Item = Result<Self, OutputError>> {
        part_paths(&self.path, count).into_iter().map(move |path| Self::create(&path, self.force, inputs))
    }
}

/// Writes all `parts` through to the disk, then gives them their paths, the first part last: it is the one by which a
/// model is loaded. Whoever is killed on the way leaves the parts that stood there before, all of them, or no first
/// part, or all of the new ones.
///
/// # Errors
/// As [`OutputFile::commit`]; what stood at the paths before is there again.
///
/// # Panics
/// Without any part.
pub fn commit_parts(mut parts: Vec<OutputFile>) -> Result<(), OutputError> {
    for part in &mut parts {
        part.sync()?;
    }
    let folder = parts[0].folder.clone();
    let mut moves = Moves::default();
    let placing = PLACING.lock();
    let result = moves.all(parts);
    if result.is_err() {
        moves.undo();
    } else {
        drop(moves);
    }
    drop(placing);
    sync_folder(&folder);
    result
}

#[derive(Default)]
struct Moves {
    /// What stood at the paths before, and where it waits; gone when dropped.
    old: Vec<(TempPath, PathBuf)>,
    placed: Vec<PathBuf>,
}

impl Moves {
    fn all(&mut self, mut parts: Vec<OutputFile>) -> Result<(), OutputError> {
        // One file takes the place of another in one step. Several do not: the old first part goes before anything
        // comes, so that no old part is loaded with new ones.
        if parts.len() > 1 {
            for part in parts.iter().filter(|part| part.force) {
                let aside = temporary().make_in(&part.folder, |aside| {
                    if aside.exists() {
                        return Err(io::ErrorKind::AlreadyExists.into());
                    }
                    fs::rename(&part.path, aside)
                });
                match aside {
                    Ok(aside) => self.old.push((aside.into_temp_path(), part.path.clone())),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(source) => return Err(part.fail("move what is there aside", source)),
                }
            }
            sync_folder(&parts[0].folder);
        }
        parts.rotate_left(1);
        for part in parts {
            let path = part.path.clone();
            part.place()?;
            self.placed.push(path);
        }
        Ok(())
    }

    /// In the reverse order: the first part goes first and comes back last.
    fn undo(self) {
        for path in self.placed.iter().rev() {
            let _ = fs::remove_file(path);
        }
        for (aside, path) in self.old.into_iter().rev() {
            let _ = aside.persist(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn begin(folder: &Path, force: bool, word: &str) -> Vec<OutputFile> {
        let out = OutputFile::create(&folder.join("out.gguf"), force, &[]).unwrap();
        let mut parts = out.into_parts(3, &[]).unwrap();
        for (i, part) in parts.iter_mut().enumerate() {
            write!(part, "{word} {i}").unwrap();
        }
        parts
    }

    fn contents(folder: &Path) -> Vec<String> {
        let mut all: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        all.sort();
        all.iter().map(|path| fs::read_to_string(path).unwrap_or_else(|_| "a folder".into())).collect()
    }

    #[test]
    fn parts_appear_together() {
        let dir = tempfile::tempdir().unwrap();
        let parts = begin(dir.path(), false, "new");
        assert!(part_paths(&dir.path().join("out.gguf"), 3).iter().all(|path| !path.exists()));
        commit_parts(parts).unwrap();
        assert_eq!(contents(dir.path()), ["new 0", "new 1", "new 2"]);
        commit_parts(begin(dir.path(), true, "newer")).unwrap();
        assert_eq!(contents(dir.path()), ["newer 0", "newer 1", "newer 2"]);
        let out = OutputFile::create(&dir.path().join("out.gguf"), false, &[]).unwrap();
        assert!(matches!(out.check_parts(3, &[]), Err(OutputError::Exists { .. })));
        assert!(matches!(out.into_parts(3, &[]), Err(OutputError::Exists { .. })));
        assert_eq!(contents(dir.path()).len(), 3);
    }

    #[test]
    fn a_place_that_is_taken_brings_everything_back() {
        let dir = tempfile::tempdir().unwrap();
        let paths = part_paths(&dir.path().join("out.gguf"), 3);
        // Taken meanwhile, without force: the parts placed before it go again.
        let parts = begin(dir.path(), false, "new");
        fs::write(&paths[0], "other").unwrap();
        assert!(matches!(commit_parts(parts), Err(OutputError::Exists { .. })));
        assert_eq!(contents(dir.path()), ["other"]);
        fs::remove_file(&paths[0]).unwrap();

        // A folder that cannot be replaced, with force: the old parts come back. It is put there between the moves.
        commit_parts(begin(dir.path(), false, "old")).unwrap();
        let mut parts = begin(dir.path(), true, "new");
        let mut moves = Moves::default();
        parts[0].path = dir.path().join("none/out-00001-of-00003.gguf");
        assert!(moves.all(parts).is_err());
        moves.undo();
        assert_eq!(contents(dir.path()), ["old 0", "old 1", "old 2"]);
    }

    #[test]
    fn inputs_are_no_outputs_under_the_names_of_parts_either() {
        let dir = tempfile::tempdir().unwrap();
        commit_parts(begin(dir.path(), false, "model")).unwrap();
        let inputs = part_paths(&dir.path().join("out.gguf"), 3);
        let inputs: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
        let out = OutputFile::create(&dir.path().join("out.gguf"), true, &inputs).unwrap();
        assert!(matches!(out.into_parts(3, &inputs), Err(OutputError::IsInput { .. })));
        assert_eq!(contents(dir.path()), ["model 0", "model 1", "model 2"]);
    }
}
