//! Residual-stream means over two prompt sets, at every post-instruction position and block.
//!
//! Shapes: a [`Means`] holds `n_pos × n_block × n_embd` sums in f64, position −1 (the last token) first.
#![forbid(unsafe_code)]

use crate::runtime::{CapturePlan, Error, Job, Prompt, Session, Site};

/// Running means of the stream at the output of each block, for the last `n_pos` positions of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Means {
    n_pos: usize,
    n_block: usize,
    n_embd: usize,
    /// Rows added per (position, block).
    counts: Vec<u64>,
    sums: Vec<f64>,
}

impl Means {
    /// Nothing measured yet.
    #[must_use]
    pub fn new(n_pos: usize, n_block: usize, n_embd: usize) -> Self {
        let cells = n_pos * n_block;
        Self { n_pos, n_block, n_embd, counts: vec![0; cells], sums: vec![0.0; cells * n_embd] }
    }

    /// Means as they were computed earlier; `values` in the order of [`Means::mean`]'s positions −1, −2, … then blocks.
    ///
    /// # Panics
    /// Where `values` is not `n_pos · n_block · n_embd` long.
    #[must_use]
    pub fn from_means(n_pos: usize, n_block: usize, n_embd: usize, values: &[f32]) -> Self {
        assert_eq!(values.len(), n_pos * n_block * n_embd);
        let sums = values.iter().map(|&x| f64::from(x)).collect();
        Self { n_pos, n_block, n_embd, counts: vec![1; n_pos * n_block], sums }
    }

    /// (positions, blocks, width).
    #[must_use]
    pub fn shape(&self) -> (usize, usize, usize) {
        (self.n_pos, self.n_block, self.n_embd)
    }

    fn cell(&self, position: i32, block: usize) -> usize {
        let back = usize::try_from(-1 - position).expect("positions are negative");
        assert!(back < self.n_pos && block < self.n_block, "position {position}, block {block}");
        back * self.n_block + block
    }

    /// Adds one row (`n_embd`) seen at `position` (−1 is the last) of a prompt, at the output of `block`.
    pub fn add(&mut self, position: i32, block: usize, row: &[f32]) {
        let cell = self.cell(position, block);
        self.counts[cell] += 1;
        let sums = &mut self.sums[cell * self.n_embd..][..self.n_embd];
        sums.iter_mut().zip(row).for_each(|(s, &x)| *s += f64::from(x));
    }

    /// The mean (`n_embd`) at `position` and `block`; NaN where nothing was added.
    #[must_use]
    pub fn mean(&self, position: i32, block: usize) -> Vec<f64> {
        let cell = self.cell(position, block);
        let n = self.counts[cell] as f64;
        self.sums[cell * self.n_embd..][..self.n_embd].iter().map(|s| s / n).collect()
    }

    /// Prompts seen at the last position.
    #[must_use]
    pub fn n(&self) -> u64 {
        self.counts.first().copied().unwrap_or(0)
    }
}

/// The means of the two sets, whose differences are the candidate directions.
#[derive(Debug, Clone, PartialEq)]
pub struct Contrast {
    /// Over the prompts that show the behaviour.
    pub harmful: Means,
    /// Over those that do not.
    pub harmless: Means,
}

impl Contrast {
    /// mean(harmful) − mean(harmless), `n_embd`, at `position` and the output of `block`.
    #[must_use]
    pub fn difference(&self, position: i32, block: usize) -> Vec<f32> {
        let (a, b) = (self.harmful.mean(position, block), self.harmless.mean(position, block));
        a.iter().zip(&b).map(|(a, b)| (a - b) as f32).collect()
    }

    /// Every (position, block) measured, the last position first.
    pub fn candidates(&self) -> impl Iterator<Item = (i32, usize)> + use<> {
        let (n_pos, n_block, _) = self.harmful.shape();
        (1..=n_pos as i32).flat_map(move |back| (0..n_block).map(move |block| (-back, block)))
    }
}

/// Post-instruction positions that all prompts share.
#[must_use]
pub fn shared_positions<'a>(prompts: impl IntoIterator<Item = &'a Prompt>) -> usize {
    prompts.into_iter().map(|p| p.n_post.min(p.tokens.len())).min().unwrap_or(0).max(1)
}

/// Runs every prompt once and averages the stream at its last `n_pos` positions; `step` is called after each prompt.
///
/// # Errors
/// As [`Session::prefill`].
pub fn measure(
    session: &mut Session<'_>,
    prompts: &[Prompt],
    n_pos: usize,
    step: &mut dyn FnMut(),
) -> Result<Means, Error> {
    let model = session.model();
    let mut means = Means::new(n_pos, model.n_block(), model.n_embd());
    let jobs: Vec<Job<'_>> =
        prompts.iter().map(|p| Job { tokens: &p.tokens, n_out: n_pos, intervention: None }).collect();
    let plan = CapturePlan { stream: true, ..CapturePlan::default() };
    let mut sink = |_: usize, position: i32, site: Site<'_>, row: &[f32]| {
        if let Site::Block(block) = site {
            means.add(position, block, row);
        }
    };
    session.prefill(&jobs, Some((&plan, &mut sink)), &mut |_, _| step())?;
    Ok(means)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_of_means() {
        let mut harmful = Means::new(2, 3, 2);
        harmful.add(-2, 1, &[1.0, 2.0]);
        harmful.add(-2, 1, &[3.0, 6.0]);
        let mut harmless = Means::new(2, 3, 2);
        harmless.add(-2, 1, &[1.0, 1.0]);
        let contrast = Contrast { harmful, harmless };
        assert_eq!(contrast.difference(-2, 1), [1.0, 3.0]);
        assert!(contrast.difference(-1, 0)[0].is_nan(), "nothing measured there");
        let all: Vec<_> = contrast.candidates().collect();
        assert_eq!((all.len(), all[0], all[5]), (6, (-1, 0), (-2, 2)));
    }
}
