//! `offshoot completions` and `offshoot man`: generated from the same definitions as the help.

use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Arguments;
use crate::failure::Failure;
use crate::terminal::say;

/// Prints the completion script.
pub fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "offshoot", &mut script);
    say(&String::from_utf8_lossy(&script))?;
    Ok(())
}

/// Writes one page for the tool and one for each command.
pub fn man(out: &Path) -> Result<(), Failure> {
    let place = || out.display().to_string();
    std::fs::create_dir_all(out).with_context(place)?;
    clap_mangen::generate_to(Arguments::command(), out).with_context(place)?;
    say(&format!("manual pages are in {}", out.display()))?;
    Ok(())
}
