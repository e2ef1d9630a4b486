//! One line for each request, without a word of what was asked.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Instant;

/// What is told of a request when its answer has ended, or its client has gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// GET, POST, …
    pub method: String,
    /// The route as it is written in the documentation; `-` for none.
    pub route: String,
    /// The status; 0 where the client went away before there was one.
    pub status: u16,
    /// Tokens generated, of answers that came to their end.
    pub n_tokens: u64,
    /// Milliseconds from the request's head to the answer's end.
    pub ms: u64,
}

impl fmt::Display for Logged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, route, status, n_tokens, ms } = self;
        write!(f, "{method} {route} {status} {n_tokens} tokens {ms} ms")
    }
}

/// Hears of each request.
pub type Logger = Arc<dyn Fn(&Logged) + Send + Sync>;

/// A request under way; it is told of when the last hold on it goes.
pub(super) struct Entry {
    pub method: String,
    pub route: String,
    status: AtomicU16,
    tokens: AtomicU64,
    begun: Instant,
    logger: Option<Logger>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({} {})", self.method, self.route)
    }
}

impl Entry {
    pub(super) fn begin(method: &str, route: &str, logger: Option<Logger>) -> Arc<Self> {
        Arc::new(Self {
            method: method.into(),
            route: route.into(),
            status: AtomicU16::new(0),
            tokens: AtomicU64::new(0),
            begun: Instant::now(),
            logger,
        })
    }

    pub(super) fn answer(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    pub(super) fn count(&self, n_tokens: usize) {
        self.tokens.fetch_add(n_tokens as u64, Ordering::Relaxed);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(logger) = &self.logger {
            logger(&Logged {
                method: std::mem::take(&mut self.method),
                route: std::mem::take(&mut self.route),
                status: *self.status.get_mut(),
                n_tokens: *self.tokens.get_mut(),
                ms: self.begun.elapsed().as_millis() as u64,
            });
        }
    }
}
