//! A mapped file that others cut short.
//!
//! Whoever reads where a mapped file has ended meanwhile, or where its disk fails, is sent SIGBUS, which ends a program
//! without a word. Here it ends with one, whether the map is ours or llama.cpp's.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::io::Write as _;
use std::mem::MaybeUninit;

use crate::output;
use crate::unwind::caught;

/// Where a mapped file ends or fails while it is read, ends the program with `error: …` on stderr, exit code 1, and no
/// unfinished output left, in place of a signal. For programs, not for libraries: it holds for the whole process.
/// Linux only; elsewhere nothing changes.
pub fn exit_on_cut_file() {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zeros is a valid action, and the handler has the signature that SA_SIGINFO asks for; it makes no calls
    // that a signal handler may not make (signal-safety(7)).
    unsafe {
        let new = action.assume_init_mut();
        new.sa_sigaction = handler as *const () as usize;
        new.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, new, std::ptr::null_mut());
    }
}

extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel passes the signal's own information.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code != libc::BUS_ADRERR {
        // SAFETY: by default the signal ends the program, when the faulting instruction runs again.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // Whatever happens: not back to what cannot be read.
    let _ = caught(|| tell(address));
    // SAFETY: ends the process at once, without the handlers that other threads could disturb.
    unsafe { libc::_exit(1) };
}

/// Names the file, and takes away the unfinished outputs.
fn tell(address: usize) {
    let mut message = Message { bytes: [0; 512], len: 0 };
    let mut path = Message { bytes: [0; 512], len: 0 };
    find(address, &mut path);
    let name = if path.len == 0 { b"a file" } else { &path.bytes[..path.len] };
    for part in [b"error: ", name, b": became shorter, or its disk failed, while it was being read\n"] {
        let _ = message.write(part);
    }
    // SAFETY: plain system calls.
    unsafe { libc::write(2, message.bytes.as_ptr().cast(), message.len) };
    output::abandon(&|path| {
        // SAFETY: a NUL-terminated path.
        unsafe { libc::unlink(path.as_ptr()) };
    });
}

/// Bytes of a fixed length at most: a signal handler allocates nothing.
struct Message {
    bytes: [u8; 512],
    len: usize,
}

impl std::io::Write for Message {
    fn write(&mut self, more: &[u8]) -> std::io::Result<usize> {
        let n = more.len().min(self.bytes.len() - self.len);
        self.bytes[self.len..self.len + n].copy_from_slice(&more[..n]);
        self.len += n;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The path of the file mapped at `address`, from /proc/self/maps: lines `START-END MODE OFFSET DEVICE INODE PATH`.
fn find(address: usize, path: &mut Message) {
    // SAFETY: a NUL-terminated path, and no file but for reading.
    let file = unsafe { libc::open(c"/proc/self/maps".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if file < 0 {
        return;
    }
    let mut line = Message { bytes: [0; 512], len: 0 };
    let mut buffer = [0u8; 512];
    loop {
        // SAFETY: reads into a buffer of this length.
        let n = unsafe { libc::read(file, buffer.as_mut_ptr().cast(), buffer.len()) };
        let Ok(n @ 1..) = usize::try_from(n) else { return };
        for &byte in &buffer[..n] {
            if byte != b'\n' {
                let _ = line.write(&[byte]);
                continue;
            }
            if let Some(found) = path_in(&line.bytes[..line.len], address) {
                let _ = path.write(found);
                return;
            }
            line.len = 0;
        }
    }
}

/// The path in a line of /proc/self/maps, where its range holds `address`.
fn path_in(line: &[u8], address: usize) -> Option<&[u8]> {
    let text = std::str::from_utf8(&line[..line.iter().position(|&b| b == b' ')?]).ok()?;
    let (start, end) = text.split_once('-')?;
    let number = |hex| usize::from_str_radix(hex, 16).ok();
    let path = &line[line.iter().position(|&b| b == b'/')?..];
    (number(start)?..number(end)?).contains(&address).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgufFile;
    use crate::unwind::tests::{WORDS, armed};

    #[test]
    fn a_line_of_the_map_tells_its_file() {
        let line = b"7f00-7f10 r--s 00000000 08:01 42                   /a folder/model.gguf";
        assert_eq!(path_in(line, 0x7f00), Some(&b"/a folder/model.gguf"[..]));
        assert_eq!(path_in(line, 0x7f0f), Some(&b"/a folder/model.gguf"[..]));
        for (line, address) in
            [(&line[..], 0x7f10), (b"7f00-7f10 rw-p 0 00:00 0", 0x7f00), (b"", 0), (b"/ /", 0)]
        {
            assert_eq!(path_in(line, address), None);
        }
    }

    /// Run again in a child, which cuts its own file.
    #[test]
    fn a_file_cut_short_is_named_and_the_output_goes() {
        const FOLDER: &str = "GGSTEER_TEST_CUT";
        if let Some(folder) = std::env::var_os(FOLDER) {
            let folder = std::path::Path::new(&folder);
            if folder.join("panic").exists() {
                let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
                // SAFETY: all zeros are an information, of no address, and this is one of a failed read.
                let info = unsafe { info.assume_init_mut() };
                info.si_code = libc::BUS_ADRERR;
                armed(|| handler(libc::SIGBUS, info, std::ptr::null_mut()));
            }
            exit_on_cut_file();
            let path = folder.join("model.gguf");
            let file = GgufFile::open(&path).unwrap();
            let mut out = output::OutputFile::create(&folder.join("out.gguf"), false, &[]).unwrap();
            out.write_all(b"begun").unwrap();
            std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
            let sum: u64 =
                file.tensors().iter().flat_map(|t| file.tensor_data(t)).map(|&b| u64::from(b)).sum();
            unreachable!("read to the end, {sum}");
        }
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/gguf-samples/lorekeeper-7m-f16.gguf");
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(sample, folder.path().join("model.gguf")).unwrap();
        let run = || {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            child.args(["a_file_cut_short_is_named", "--test-threads=1", "--nocapture"]);
            child.env(FOLDER, folder.path()).output().unwrap()
        };
        let output = run();
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(words.contains("model.gguf: became shorter"), "{words}");
        let names: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["model.gguf"]);

        // What goes wrong in there does not bring the program back.
        std::fs::write(folder.path().join("panic"), "").unwrap();
        let output = run();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && words.contains(WORDS), "{output:?}");
    }
}
