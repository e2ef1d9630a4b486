//! Ctrl-C while there is work to be saved, and while the model speaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Between [`Interrupt::hold`] and its end, the first signal to stop is noted, for the work to be saved. The next, and any
/// before or after, ends the program at once.
pub struct Interrupt {
    wanted: Arc<AtomicBool>,
    at_once: Arc<AtomicBool>,
}

impl Interrupt {
    /// Catches Ctrl-C and the polite kill.
    pub fn catch() -> Result<Self> {
        let caught = Self { wanted: Arc::default(), at_once: Arc::new(AtomicBool::new(true)) };
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal finds the flag unset, and sets it.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&caught.at_once))
                .and_then(|_| flag::register(signal, Arc::clone(&caught.at_once)))
                .and_then(|_| flag::register(signal, Arc::clone(&caught.wanted)))
                .context("cannot catch Ctrl-C")?;
        }
        Ok(caught)
    }

    /// From here on there is something to be saved.
    pub fn hold(&self) {
        self.at_once.store(false, Ordering::Relaxed);
    }

    /// Whether the signal has come.
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.at_once.store(true, Ordering::Relaxed);
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
