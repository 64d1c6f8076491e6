//! The dom0 side of the migration stub domain.
fn main() {}
