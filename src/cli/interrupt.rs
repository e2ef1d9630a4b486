//! Ctrl-C while there is work to be saved.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// While it lives, the first signal to stop is noted, for the work to be saved. The next, and any after this has been
/// dropped, ends the program at once.
pub struct Interrupt {
    wanted: Arc<AtomicBool>,
    at_once: Arc<AtomicBool>,
}

impl Interrupt {
    /// Catches Ctrl-C and the polite kill.
    pub fn catch() -> Result<Self> {
        let caught = Self { wanted: Arc::default(), at_once: Arc::default() };
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal finds the flag unset, and sets it.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&caught.at_once))
                .and_then(|_| flag::register(signal, Arc::clone(&caught.at_once)))
                .and_then(|_| flag::register(signal, Arc::clone(&caught.wanted)))
                .context("cannot catch Ctrl-C")?;
        }
        Ok(caught)
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
