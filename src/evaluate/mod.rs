//! Refusal rates, first-token KL and the reports made of them.
