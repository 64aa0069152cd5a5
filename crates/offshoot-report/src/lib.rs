//! A catalog in, one self-contained HTML page out.
