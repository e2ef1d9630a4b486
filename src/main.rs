//! The ggsteer program.
fn main() {}
