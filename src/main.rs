//! Start-up order and the one printed error.
fn main() {}
