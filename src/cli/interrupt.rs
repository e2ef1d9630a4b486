//! Ctrl-C and the polite kill: they end the program at once and leave nothing unfinished, unless there is work to be saved
//! or a model speaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// What the next signal does: end the program, nothing but once, nothing where it is Ctrl-C, or nothing.
static NEXT: AtomicU8 = AtomicU8::new(END);
const END: u8 = 0;
const SAVE: u8 = 1;
const STOP_ANSWER: u8 = 2;
const SERVE: u8 = 3;

/// From here on, signals to stop take away unfinished outputs before they end the program.
#[cfg(unix)]
pub fn leave_nothing() -> Result<()> {
    let mut signals =
        signal_hook::iterator::Signals::new([SIGINT, SIGTERM]).context("cannot catch Ctrl-C")?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            let caught = match NEXT.load(Ordering::SeqCst) {
                SAVE => NEXT.compare_exchange(SAVE, END, Ordering::SeqCst, Ordering::SeqCst).is_ok(),
                STOP_ANSWER => signal == SIGINT,
                next => next == SERVE,
            };
            if !caught {
                ggsteer::output::abandon_then(|| {
                    let _ = signal_hook::low_level::emulate_default_handler(signal);
                });
            }
        }
    });
    Ok(())
}

/// From here on, whoever serves deals with them.
pub fn serves() {
    NEXT.store(SERVE, Ordering::SeqCst);
}

/// Between [`Interrupt::hold`] and its end, the first signal to stop is noted, for the work to be saved. The next, and any
/// before or after, ends the program at once.
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Catches Ctrl-C and the polite kill.
    pub fn catch() -> Result<Self> {
        let wanted = Arc::default();
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal finds the flag unset, and sets it.
            #[cfg(not(unix))]
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&wanted))?;
            flag::register(signal, Arc::clone(&wanted)).context("cannot catch Ctrl-C")?;
        }
        Ok(Self(wanted))
    }

    /// From here on there is something to be saved.
    #[allow(clippy::unused_self)]
    pub fn hold(&self) {
        NEXT.store(SAVE, Ordering::SeqCst);
    }

    /// Whether the signal has come.
    pub fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        NEXT.store(END, Ordering::SeqCst);
    }
}

/// From [`Stop::catch`] on, Ctrl-C ends nothing but what asks for it.
#[derive(Clone)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Catches Ctrl-C.
    pub fn catch() -> Result<Self> {
        let wanted = Arc::default();
        flag::register(SIGINT, Arc::clone(&wanted)).context("cannot catch Ctrl-C")?;
        NEXT.store(STOP_ANSWER, Ordering::SeqCst);
        Ok(Self(wanted))
    }

    /// A Ctrl-C from before counts no more.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether it came.
    pub fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
