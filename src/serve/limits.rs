//! What a server takes, and how long it waits.

use std::time::Duration;

/// Choices of one prompt.
pub const MAX_N: usize = 8;
/// Stop strings of one request.
pub const MAX_STOP: usize = 4;
/// Bytes of a stop string.
pub const MAX_STOP_BYTES: usize = 1024;
/// Likeliest tokens told beside each.
pub const MAX_LOGPROBS: usize = 20;
/// Messages of a conversation.
pub const MAX_MESSAGES: usize = 4096;

/// What a server takes, and how long it waits.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Sequences that may wait for a free one; more are told to come again later (429).
    pub queue: usize,
    /// Bytes of a request's body.
    pub body: usize,
    /// Tokens of an answer: the most a request may ask for, and what it gets where it asks for none, as far as they fit.
    pub max_tokens: usize,
    /// How long a client may take to send a request, to take an answer that is there for it, and between two requests; and
    /// how long running answers are given when the server ends.
    pub timeout: Duration,
    /// Connections at once; more wait to be accepted.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue: 64,
            body: 4 << 20,
            max_tokens: 1024,
            timeout: Duration::from_secs(30),
            connections: 512,
        }
    }
}
