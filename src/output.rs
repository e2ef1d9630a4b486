//! Whole-or-absent output files.
