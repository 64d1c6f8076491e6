//! The migration stub domain.
fn main() {}
