//! The training loop and the methods that make and derive families.
