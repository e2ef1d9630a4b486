//! Appending bytes of another file without carrying them through memory.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;

use super::OutputFile;

/// File systems share data in whole blocks of their own, mostly this long.
pub const BLOCK: u64 = 4096;

/// Below this a system call or two more are not worth it.
const SMALL: usize = 1 << 16;

impl OutputFile {
    /// Appends `range` of `bytes`, which are those of `file`, all of it. Where the file system can clone and the range
    /// lies here as it lies there, up to multiples of [`BLOCK`], the blocks are shared, not copied; returns the bytes
    /// that are. Elsewhere the kernel copies where it can.
    ///
    /// # Errors
    /// The file system's answer, with the path.
    pub fn append(&mut self, file: &File, bytes: &[u8], range: Range<usize>) -> io::Result<u64> {
        if range.len() < SMALL {
            self.write_all(&bytes[range])?;
            return Ok(0);
        }
        let (mut at, end) = (range.start as u64, range.end as u64);
        let in_step = at % BLOCK == self.position % BLOCK;
        let shares = in_step && self.can_share(file);
        let mut middle = end - at;
        if shares {
            let head = at.next_multiple_of(BLOCK);
            self.write_all(&bytes[at as usize..head as usize])?;
            at = head;
            middle = (end - at) / BLOCK * BLOCK;
        }
        let copied = self.copy(file, at, middle)?;
        self.write_all(&bytes[(at + copied) as usize..range.end])?;
        Ok(if shares { copied } else { 0 })
    }

    /// Whether blocks of `file` can be shared here, found by trying with a file that nobody sees.
    fn can_share(&mut self, file: &File) -> bool {
        #[cfg(target_os = "linux")]
        let folder = &self.folder;
        #[cfg(target_os = "linux")]
        let probe = || {
            let scratch = tempfile::tempfile_in(folder);
            scratch.is_ok_and(|scratch| rustix::fs::ioctl_ficlone(scratch, file).is_ok())
        };
        #[cfg(not(target_os = "linux"))]
        let probe = || {
            let _ = file;
            false
        };
        *self.can_share.get_or_insert_with(probe)
    }

    /// Lets the kernel append up to `len` bytes of `file` from `at` on; it shares blocks by itself where it can. Returns
    /// how many it did: what is left must be written, by which any failure that stays shows itself.
    #[cfg(target_os = "linux")]
    fn copy(&mut self, file: &File, at: u64, len: u64) -> io::Result<u64> {
        self.flush()?;
        let mut from = at;
        while from < at + len {
            let left = (at + len - from).min(1 << 26) as usize;
            match rustix::fs::copy_file_range(file, Some(&mut from), self.file.get_ref(), None, left) {
                Ok(n @ 1..) => self.position += n as u64,
                Ok(0) | Err(_) => break,
            }
            self.sync_meanwhile()?;
        }
        Ok(from - at)
    }

    #[cfg(not(target_os = "linux"))]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps)]
    fn copy(&mut self, _: &File, _: u64, _: u64) -> io::Result<u64> {
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every combination of places, within and across blocks, long and short.
    #[test]
    fn appended_ranges_are_the_bytes_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        std::fs::write(dir.path().join("in"), &bytes).unwrap();
        let file = File::open(dir.path().join("in")).unwrap();
        for at in [0, 1, 4095, 4096, 5000] {
            for (start, end) in
                [(0, 300_000), (0, 0), (4096, 4096 * 50), (5000, 299_999), (904, 70_000), (7, 70)]
            {
                let path = dir.path().join("out");
                let mut out = OutputFile::create(&path, true, &[]).unwrap();
                out.write_all(&vec![7; at]).unwrap();
                let shared = out.append(&file, &bytes, start..end).unwrap();
                assert!(shared.is_multiple_of(BLOCK) && shared <= (end - start) as u64);
                out.write_all(b"end").unwrap();
                assert_eq!(out.position(), (at + end - start + 3) as u64);
                out.commit().unwrap();
                let expected = [&vec![7; at][..], &bytes[start..end], b"end"].concat();
                assert!(std::fs::read(&path).unwrap() == expected, "{at}, {start}..{end}");
            }
        }
    }
}
