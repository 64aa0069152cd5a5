//! Train one large parent once and derive a whole family of small models from it.

fn main() {}
