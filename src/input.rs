//! Files that are read whole, up to a bound.
//!
//! A file may be longer than memory (a sparse one costs its maker nothing), have no end (a device), or grow while it is
//! read: so each reader says how much it can want, and looks at what it has read and not at what it was told.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The most bytes of a text: prompts, a text for perplexity. 1 GiB.
pub const TEXT: u64 = 1 << 30;

/// The most bytes of JSON: a document takes some ten times as much memory once it is read. 256 MiB.
pub const JSON: u64 = 1 << 28;

/// The most bytes of what somebody writes by hand: settings, a chat template, phrases. 16 MiB.
pub const BY_HAND: u64 = 1 << 24;

/// The bytes of a file, if they are no more than `most`.
///
/// # Errors
/// The file system's; [`io::ErrorKind::FileTooLarge`], with the bound; [`io::ErrorKind::OutOfMemory`].
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    read_from(&mut File::open(path)?, most)
}

/// As [`read`], as text.
///
/// # Errors
/// As [`read`]; [`io::ErrorKind::InvalidData`] for what is not UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read(path, most)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "stream did not contain valid UTF-8"))
}

/// As [`read`], from an open file, from where it stands.
///
/// # Errors
/// As [`read`].
pub fn read_from(file: &mut File, most: u64) -> io::Result<Vec<u8>> {
    let too_long = |found: String| {
        let why = format!("has {found} bytes, and {most} at most are read of such a file");
        io::Error::new(io::ErrorKind::FileTooLarge, why)
    };
    let length = file.metadata()?.len();
    if length > most {
        return Err(too_long(length.to_string()));
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length as usize)?;
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most { Err(too_long(format!("more than {most}"))) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_bound() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words");
        std::fs::write(&path, "words").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"words");
        let error = read(&path, 4).unwrap_err();
        assert_eq!(error.to_string(), "has 5 bytes, and 4 at most are read of such a file");
        std::fs::write(&path, b"\xff").unwrap();
        assert_eq!(read_text(&path, 4).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    /// What a device or a pipe says of its length is 0.
    #[cfg(unix)]
    #[test]
    fn a_file_without_an_end_is_left_at_the_bound() {
        let error = read(Path::new("/dev/zero"), 100).unwrap_err();
        assert_eq!(error.to_string(), "has more than 100 bytes, and 100 at most are read of such a file");
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
