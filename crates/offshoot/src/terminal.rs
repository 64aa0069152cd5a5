//! The only place that writes to the terminal: results to standard output, everything else to standard error.

use std::io::{self, Write};

/// Writes `text` and a newline to standard output.
///
/// # Errors
/// If it is closed; a closed pipe is not a mistake.
pub fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Writes `text` and a newline to standard error; there is nowhere to report that it is closed.
pub fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
