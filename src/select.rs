//! Choosing the direction by the paper's rules.
