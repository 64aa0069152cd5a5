//! Drives the real binary from outside.

#[test]
fn nothing() {}
