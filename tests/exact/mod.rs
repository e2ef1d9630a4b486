//! Runs that are compared to the last digits: one thread, keys and values in f32, no flash attention.

// Each test binary includes this module whole and uses its own part of it.
#![allow(dead_code)]
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;

use ggsteer::intervention::Intervention;
use ggsteer::runtime::{Item, Model, ModelOptions, Outputs, Session, SessionOptions, Token};

/// For one sequence of at most 64 tokens.
pub fn session(model: &Model) -> Session<'_> {
    let exact = SessionOptions { exact: true, n_threads: 1, ..SessionOptions::default() };
    Session::new(model, SessionOptions { n_ctx: 64, n_batch: 64, n_seq: 1, ..exact }).unwrap()
}

/// `n` tokens of the tiny models' vocabulary.
pub fn tokens(n: i32) -> Vec<Token> {
    (0..n).map(|i| Token(i * 7 % 250)).collect()
}

/// What a model says after each of 40 tokens.
pub fn logits(path: &Path, intervention: Option<Arc<Intervention>>) -> Vec<Vec<f32>> {
    let model = Model::load(path, &ModelOptions::default()).unwrap();
    let (mut session, tokens) = (session(&model), tokens(40));
    let item = Item { seq: 0, start: 0, tokens: &tokens, prompt: true, outputs: Outputs::All, intervention };
    session.decode(&[item], None).unwrap();
    (0..tokens.len()).map(|i| session.logits(i).to_vec()).collect()
}

/// Largest difference of an element, as a part of the largest element.
pub fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let scale = b.iter().flatten().map(|x| f64::from(x.abs())).fold(0.0, f64::max);
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max) / scale
}
