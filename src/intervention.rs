//! Ablation and addition as values.
