//! What a stranger's template may take of memory and time.
//!
//! A template runs out of fuel ([`template`](super::template)), but fuel counts steps. A list that holds another one
//! twice, which holds another one twice, and so on, takes few steps to make; to write it out, or to compare two of them,
//! takes longer than anybody waits and more memory than there is, and nothing asks for fuel meanwhile. So a program ends
//! there, with `error: …` and exit code 1, as it does where a mapped file is cut short. A library's host is not ended: it
//! has the fuel, and what it writes is bounded.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::output;

/// Bytes that a piece of work may hold at once: fuel allows a quarter of it in one text.
const MEMORY: i64 = 512 << 20;
/// How long it may take. What is no trap takes milliseconds.
const TIME: Duration = Duration::from_secs(5);
/// The stack on which it runs: fuel allows some hundred thousand lists, each in another, and whoever lets go of them or
/// writes them goes as deep. It is memory only where it is used.
const STACK: usize = 512 << 20;

thread_local! {
    /// Bytes that this thread may still take.
    static LEFT: Cell<i64> = const { Cell::new(i64::MAX) };
}

/// Whether this is a program that may be ended.
static ARMED: AtomicBool = AtomicBool::new(false);
/// When each piece of work that runs began.
static RUNNING: Mutex<BTreeMap<u64, Instant>> = Mutex::new(BTreeMap::new());

/// The system's allocator, for a program to set as its global one; with it [`exit_past_bounds`] bounds memory.
#[derive(Debug)]
pub struct Allocator;

// SAFETY: every call is handed on to the system's allocator as it came. Counting takes no memory: the thread's counter
// is a plain number that needs neither a constructor nor a destructor.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's duties are those of this call.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        give(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        give(layout.size());
        take(size);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

fn take(n: usize) {
    // A thread that ends has no counter any more.
    let _ = LEFT.try_with(|left| {
        if left.get() == i64::MAX {
            return;
        }
        left.set(left.get().saturating_sub(i64::try_from(n).unwrap_or(i64::MAX)));
        if left.get() < 0 && ARMED.load(Ordering::Relaxed) {
            exit("takes more than 512 MB of memory");
        }
    });
}

fn give(n: usize) {
    let _ = LEFT.try_with(|left| {
        if left.get() != i64::MAX {
            left.set(left.get().saturating_add(n as i64).min(i64::MAX - 1));
        }
    });
}

fn exit(why: &str) -> ! {
    // From here on memory is not counted: this may be within the allocator.
    let _ = LEFT.try_with(|left| left.set(i64::MAX));
    let _ = writeln!(std::io::stderr(), "error: chat template: {why}; give another one with --chat-template");
    output::abandon(&|path| {
        let _ = path.to_str().map(std::fs::remove_file);
    });
    // Not `exit`: other threads are at work on what its handlers would take down.
    signal_hook::low_level::exit(1)
}

/// Ends the program with `error: …` on stderr, exit code 1 and no unfinished output left where a chat template goes past
/// the bounds. For programs, not for libraries: it holds for the whole process.
pub fn exit_past_bounds() {
    if ARMED.swap(true, Ordering::Relaxed) {
        return;
    }
    #[cfg(target_os = "linux")]
    stack::exit_past_its_end();
    let watch = || loop {
        thread::sleep(Duration::from_millis(100));
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        if running.values().any(|begun| begun.elapsed() > TIME) {
            exit("takes more than 5 seconds");
        }
    };
    // Without it, templates go on as they do in a library.
    let _ = thread::Builder::new().name("bounds".into()).spawn(watch);
}

/// A list that holds itself goes past the end of any stack.
#[cfg(target_os = "linux")]
mod stack {
    use std::ffi::{c_int, c_void};
    use std::mem::MaybeUninit;
    use std::sync::OnceLock;

    use super::LEFT;
    use crate::output;
    use crate::unwind::caught;

    /// What was done about SIGSEGV before: the standard library's own handler.
    static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

    pub(super) fn exit_past_its_end() {
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: all zeros is a valid action, and the handler has the signature that SA_SIGINFO asks for; it makes no
        // calls that a signal handler may not make (signal-safety(7)). It has a stack of its own, which the standard
        // library gives every thread it starts.
        unsafe {
            libc::sigaction(libc::SIGSEGV, std::ptr::null(), before.as_mut_ptr());
            let _ = BEFORE.set(before.assume_init());
            let new = action.assume_init_mut();
            new.sa_sigaction = past_the_end as *const () as usize;
            new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGSEGV, new, std::ptr::null_mut());
        }
    }

    pub(super) extern "C" fn past_the_end(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
        // A plain number of this thread's: not counting means that it is not at work on a template.
        if LEFT.get() == i64::MAX {
            let before = BEFORE.get().map_or(std::ptr::null(), std::ptr::from_ref);
            // SAFETY: as it was; when the faulting instruction runs again, that handler is called.
            unsafe { libc::sigaction(libc::SIGSEGV, before, std::ptr::null_mut()) };
            return;
        }
        // Whatever happens: not back to where there is no stack.
        let _ = caught(tell);
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(1) };
    }

    fn tell() {
        let words =
            b"error: chat template: takes more than 512 MB of stack; give another one with --chat-template\n";
        // SAFETY: a plain system call.
        unsafe { libc::write(2, words.as_ptr().cast(), words.len()) };
        output::abandon(&|path| {
            // SAFETY: a NUL-terminated path.
            unsafe { libc::unlink(path.as_ptr()) };
        });
    }
}

/// Runs `work` on a stack of its own and, in a program that asked for it, within the bounds.
///
/// # Errors
/// Where the system gives no thread with such a stack.
pub(super) fn within<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let counted = || {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let running = || RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        running().insert(number, Instant::now());
        LEFT.set(MEMORY);
        let result = work();
        LEFT.set(i64::MAX);
        running().remove(&number);
        result
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, counted)?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_goes_deeper_than_a_thread_of_the_usual_size() {
        fn deep(n: usize) -> usize {
            let here = std::hint::black_box([n; 64]);
            if n == 0 { 0 } else { deep(n - 1) + usize::from(here[63] == n) }
        }
        assert_eq!(within(|| deep(100_000)).unwrap(), 100_000);
    }

    /// Run again in a child, which it ends.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_goes_wrong_past_the_end_of_the_stack_does_not_bring_the_program_back() {
        use crate::unwind::tests::{WORDS, armed};

        const CHILD: &str = "GGSTEER_TEST_STACK";
        if std::env::var_os(CHILD).is_some() {
            LEFT.set(MEMORY);
            armed(|| stack::past_the_end(libc::SIGSEGV, std::ptr::null_mut(), std::ptr::null_mut()));
            unreachable!("it came back");
        }
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["what_goes_wrong_past_the_end", "--test-threads=1", "--nocapture"]).env(CHILD, "");
        let output = child.output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && words.contains(WORDS), "{output:?}");
    }

    #[test]
    #[should_panic(expected = "as it was")]
    fn a_panic_comes_out_as_it_was() {
        within(|| panic!("as it was")).unwrap();
    }
}
