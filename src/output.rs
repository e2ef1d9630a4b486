//! Whole-or-absent output files.
//!
//! An [`OutputFile`] is checked before long work starts, is written beside its final path under another name, and
//! takes that path only when it is complete and on the disk. Whatever fails before, the path is as it was. The parts of
//! a split model are such files together, see [`commit_parts`].
//!
//! ```
//! use std::io::Write;
//!
//! use ggsteer::output::OutputFile;
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("a.txt");
//! let mut out = OutputFile::create(&path, false, &[])?;
//! out.write_all(b"whole")?;
//! assert!(!path.exists());
//! out.commit()?;
//! assert_eq!(std::fs::read(&path)?, b"whole");
//! assert!(OutputFile::create(&path, false, &[]).is_err(), "not without `force`");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod append;
mod parts;

pub use append::BLOCK;
pub use parts::commit_parts;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use std::ffi::{CStr, CString};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use tempfile::{NamedTempFile, TempPath};

/// Bytes written after which they are sent to the disk.
const SYNC: u64 = 64 << 20;

/// Why an output file could not be begun or finished.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The output is one of the files being read, under this or another name.
    #[error("{}: is the input {} itself", .path.display(), .input.display())]
    IsInput {
        /// The output path.
        path: PathBuf,
        /// The input it is the same file as.
        input: PathBuf,
    },
    /// Something is there, and overwriting was not asked for.
    #[error("{}: exists already; overwrite it with --force", .path.display())]
    Exists {
        /// The output path.
        path: PathBuf,
    },
    /// A folder, link, device or pipe is there: never replaced.
    #[error("{}: exists and is {found}, not a regular file", .path.display())]
    NotRegular {
        /// The output path.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// The folder does not exist or is not a folder.
    #[error("{}: no folder {}", .path.display(), .folder.display())]
    NoFolder {
        /// The output path.
        path: PathBuf,
        /// Its parent.
        folder: PathBuf,
    },
    /// A path without a file name.
    #[error("{}: names no file", .path.display())]
    NoName {
        /// The output path.
        path: PathBuf,
    },
    /// The file system said no.
    #[error("{}: cannot {doing}: {source}", .path.display())]
    Io {
        /// The output path.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The file system's answer.
        source: io::Error,
    },
}

/// A file that appears at its path complete, or not at all.
///
/// Bytes go through [`Write`] (buffered) into a temporary file in the same folder; [`OutputFile::commit`] gives it its
/// name. Dropped before that, it leaves nothing.
#[derive(Debug)]
pub struct OutputFile {
    path: PathBuf,
    folder: PathBuf,
    force: bool,
    file: BufWriter<File>,
    /// Bytes written.
    position: u64,
    /// Bytes that the disk has, or will have when `syncing` is done.
    synced: u64,
    syncing: Option<JoinHandle<io::Result<()>>>,
    /// Whether the file system can share blocks with a file it was asked about.
    can_share: Option<bool>,
    /// Where the bytes are until then; gone when dropped.
    temporary: TempPath,
    listed: Listed,
}

impl OutputFile {
    /// Begins the file that will be `path`, after every check that can be made beforehand.
    ///
    /// `inputs` are the files this output is made from: it may be none of them under any name. With `force` an existing
    /// regular file is replaced.
    ///
    /// # Errors
    /// See [`OutputError`]; nothing is left behind.
    pub fn create(path: &Path, force: bool, inputs: &[&Path]) -> Result<Self, OutputError> {
        let at = || path.to_path_buf();
        if path.file_name().is_none() {
            return Err(OutputError::NoName { path: at() });
        }
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        if !folder.is_dir() {
            return Err(OutputError::NoFolder { path: at(), folder });
        }
        for input in inputs {
            if same_file(path, input) {
                return Err(OutputError::IsInput { path: at(), input: input.to_path_buf() });
            }
        }
        match fs::symlink_metadata(path) {
            Ok(meta) if !meta.is_file() => {
                let kind = meta.file_type();
                let found = if kind.is_symlink() {
                    "a symbolic link"
                } else if kind.is_dir() {
                    "a folder"
                } else {
                    "a device or pipe"
                };
                return Err(OutputError::NotRegular { path: at(), found });
            }
            Ok(_) if !force => return Err(OutputError::Exists { path: at() }),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(OutputError::Io { path: at(), doing: "look at it", source });
            }
        }
        let mut builder = temporary();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // As File::create would: the umask takes its share.
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let begun = Listed::begin(|| builder.tempfile_in(&folder));
        let (file, listed) = begun.map_err(|source| OutputError::Io {
            path: at(),
            doing: "create a file in its folder",
            source,
        })?;
        // Apart, for the errors of a `NamedTempFile` name the temporary file.
        let (file, temporary) = file.into_parts();
        let file = BufWriter::with_capacity(1 << 16, file);
        Ok(Self {
            path: at(),
            folder,
            force,
            file,
            position: 0,
            synced: 0,
            syncing: None,
            can_share: None,
            listed,
            temporary,
        })
    }

    /// The path this file will have.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the bytes are until [`OutputFile::commit`], to be read.
    #[must_use]
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// A path by which a library may fill this file of its own accord, never replace it by another. It is good while this
    /// lives, and not for reading: errors would name it.
    #[must_use]
    pub fn fillable(&self) -> PathBuf {
        // By its name, a library that opens it after a signal took it away would make a new one, which stays.
        #[cfg(target_os = "linux")]
        {
            use std::os::fd::AsRawFd;
            let path = PathBuf::from(format!("/proc/self/fd/{}", self.file.get_ref().as_raw_fd()));
            if path.exists() {
                return path;
            }
        }
        self.temporary.to_path_buf()
    }

    /// Bytes written so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The bytes written so far, to be read again under the path they will have.
    ///
    /// # Errors
    /// [`OutputError::Io`] when the disk refuses.
    pub fn reread(&mut self) -> Result<(PathBuf, File), OutputError> {
        let file = self.file.flush().and_then(|()| self.file.get_ref().try_clone());
        file.map(|file| (self.path.clone(), file)).map_err(|source| self.fail("write", source))
    }

    /// Writes everything through to the disk and gives the file its path.
    ///
    /// # Errors
    /// [`OutputError::Io`] when the disk refuses, [`OutputError::Exists`] when something took the path meanwhile and
    /// overwriting was not asked for; nothing is left behind then.
    pub fn commit(mut self) -> Result<(), OutputError> {
        self.sync()?;
        let folder = self.folder.clone();
        let placing = PLACING.lock();
        self.place()?;
        drop(placing);
        sync_folder(&folder);
        Ok(())
    }

    /// Sends what was written to the disk while more is written, so that in the end there is little to wait for.
    fn sync_meanwhile(&mut self) -> io::Result<()> {
        if self.position - self.synced < SYNC || self.syncing.as_ref().is_some_and(|sync| !sync.is_finished())
        {
            return Ok(());
        }
        self.synced()?;
        let file = self.file.get_ref().try_clone()?;
        self.synced = self.position;
        self.syncing = Some(std::thread::spawn(move || file.sync_data()));
        Ok(())
    }

    /// Waits for the sync under way. An error is told but once by the system: it must not get lost.
    fn synced(&mut self) -> io::Result<()> {
        let Some(syncing) = self.syncing.take() else { return Ok(()) };
        syncing.join().unwrap_or_else(|_| Err(io::Error::other("the sync was interrupted")))
    }

    fn sync(&mut self) -> Result<(), OutputError> {
        self.file.flush().map_err(|source| self.fail("write", source))?;
        self.synced().map_err(|source| self.fail("sync", source))?;
        self.file.get_ref().sync_all().map_err(|source| self.fail("sync", source))
    }

    /// Renames what is on the disk to its path.
    fn place(self) -> Result<(), OutputError> {
        let Self { path, force, temporary, listed, .. } = self;
        // No more to be removed: once it is renamed, its name may become another's.
        drop(listed);
        let kept = if force { temporary.persist(&path) } else { temporary.persist_noclobber(&path) };
        kept.map_err(|e| match e.error.kind() {
            io::ErrorKind::AlreadyExists => OutputError::Exists { path },
            _ => OutputError::Io { path, doing: "rename to it", source: e.error },
        })
    }

    fn fail(&self, doing: &'static str, source: io::Error) -> OutputError {
        OutputError::Io { path: self.path.clone(), doing, source }
    }
}

/// The paths of the temporary files under way in this process.
static UNFINISHED: Mutex<Vec<CString>> = Mutex::new(Vec::new());

/// One of them, for as long as this lives.
#[derive(Debug)]
struct Listed(Option<CString>);

impl Listed {
    /// Makes one. It is listed as soon as it is there: [`abandon_then`] finds both or neither.
    fn begin(make: impl FnOnce() -> io::Result<NamedTempFile>) -> io::Result<(NamedTempFile, Self)> {
        let mut all = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
        let file = make()?;
        let path = CString::new(file.path().as_os_str().as_encoded_bytes()).ok();
        all.extend(path.clone());
        Ok((file, Self(path)))
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        if let (Some(path), Ok(mut all)) = (&self.0, UNFINISHED.lock()) {
            all.retain(|other| other != path);
        }
    }
}

/// Has `remove` take away every unfinished output, for a process about to end on the spot. Neither waits nor allocates
/// itself, so that a signal handler may call it.
pub(crate) fn abandon(remove: &dyn Fn(&CStr)) {
    if let Ok(all) = UNFINISHED.try_lock() {
        all.iter().for_each(|path| remove(path));
    }
}

/// Held while files get their names.
static PLACING: Mutex<()> = Mutex::new(());

/// Takes away every unfinished output of this process and calls `end`, which is to end it. Files that are getting their
/// names are waited for; meanwhile none is begun and none gets its name. Not for signal handlers: it waits.
pub fn abandon_then(end: impl FnOnce()) {
    let _placed = PLACING.lock();
    let all = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
    for path in all.iter() {
        let _ = path.to_str().map(fs::remove_file);
    }
    end();
}

/// Names of temporary files: hidden, and known for ours when a killed process leaves them.
fn temporary() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".ggsteer-").suffix(".part");
    builder
}

/// A rename itself reaches the disk with its folder. Some file systems cannot sync a folder: not a failure of the files
/// in it, which are complete.
pub(crate) fn sync_folder(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes).map_err(|e| named(&self.path, &e))?;
        self.position += n as u64;
        self.sync_meanwhile().map_err(|e| named(&self.path, &e))?;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush().map_err(|e| named(&self.path, &e))
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: cannot write: {error}", path.display()))
}

/// Whether two paths lead to one file: by name after links are followed, or by device and inode.
fn same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    if let (Ok(a), Ok(b)) = (fs::metadata(a), fs::metadata(b)) {
        use std::os::unix::fs::MetadataExt;
        if (a.dev(), a.ino()) == (b.dev(), b.ino()) {
            return true;
        }
    }
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn appears_only_on_commit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let mut out = OutputFile::create(&path, false, &[]).unwrap();
        out.write_all(b"words").unwrap();
        assert!(!path.exists());
        out.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"words");
        assert_eq!(names(dir.path()), ["out"]);
    }

    #[test]
    fn dropped_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut out = OutputFile::create(&dir.path().join("out"), false, &[]).unwrap();
        out.write_all(&vec![7; 3 << 20]).unwrap();
        drop(out);
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn existing_needs_force() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        fs::write(&path, b"old").unwrap();
        let error = OutputFile::create(&path, false, &[]).unwrap_err();
        assert!(matches!(error, OutputError::Exists { .. }));
        let mut out = OutputFile::create(&path, true, &[]).unwrap();
        out.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        out.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn taken_meanwhile_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let out = OutputFile::create(&path, false, &[]).unwrap();
        fs::write(&path, b"other").unwrap();
        assert!(matches!(out.commit(), Err(OutputError::Exists { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"other");
        assert_eq!(names(dir.path()), ["out"]);
    }

    #[test]
    fn missing_folder_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none/out");
        assert!(matches!(OutputFile::create(&path, false, &[]), Err(OutputError::NoFolder { .. })));
        fs::write(dir.path().join("none"), b"").unwrap();
        assert!(matches!(OutputFile::create(&path, false, &[]), Err(OutputError::NoFolder { .. })));
        assert!(matches!(OutputFile::create(Path::new(".."), false, &[]), Err(OutputError::NoName { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn no_input_is_overwritten_under_any_name() {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("in");
        fs::write(&input, b"model").unwrap();
        let (soft, hard) = (dir.path().join("soft"), dir.path().join("hard"));
        std::os::unix::fs::symlink(&input, &soft).unwrap();
        fs::hard_link(&input, &hard).unwrap();
        let round = dir.path().join("../").join(dir.path().file_name().unwrap()).join("in");
        for path in [&input, &soft, &hard, &round] {
            let error = OutputFile::create(path, true, &[&input]).unwrap_err();
            assert!(matches!(error, OutputError::IsInput { .. }), "{error}");
        }
        assert_eq!(fs::read(&input).unwrap(), b"model");
    }

    #[cfg(unix)]
    #[test]
    fn devices_links_and_folders_are_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (link, dangling) = (dir.path().join("link"), dir.path().join("dangling"));
        fs::write(dir.path().join("target"), b"").unwrap();
        std::os::unix::fs::symlink(dir.path().join("target"), &link).unwrap();
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &dangling).unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        for path in [&link, &dangling, &dir.path().join("sub"), Path::new("/dev/full")] {
            let error = OutputFile::create(path, true, &[]).unwrap_err();
            assert!(matches!(error, OutputError::NotRegular { .. }), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn permissions_are_those_of_an_ordinary_file() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (ours, plain) = (dir.path().join("ours"), dir.path().join("plain"));
        OutputFile::create(&ours, false, &[]).unwrap().commit().unwrap();
        File::create(&plain).unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }

    /// Run again in a child under a file-size limit: a write past it fails as on a full disk.
    #[cfg(unix)]
    #[test]
    fn a_full_disk_is_named_and_leaves_nothing() {
        const FOLDER: &str = "GGSTEER_TEST_SMALL_DISK";
        if let Some(folder) = std::env::var_os(FOLDER) {
            let path = Path::new(&folder).join("out.gguf");
            let mut out = OutputFile::create(&path, false, &[]).unwrap();
            let error = out.write_all(&vec![1; 4 << 20]).unwrap_err();
            assert!(error.to_string().contains("out.gguf"), "{error}");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let status = std::process::Command::new("bash")
            .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" a_full_disk_is_named --test-threads=1"])
            .arg(std::env::current_exe().unwrap())
            .env(FOLDER, dir.path())
            .output()
            .unwrap();
        assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stdout));
        assert!(String::from_utf8_lossy(&status.stdout).contains("1 passed"));
        assert!(names(dir.path()).is_empty());
    }
}
