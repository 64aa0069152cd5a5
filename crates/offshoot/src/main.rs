//! The `offshoot` binary: arguments, progress, messages and exit codes. What it does is in the libraries.

#![expect(
    unreachable_pub,
    reason = "a binary has no interface; `pub` marks what a module offers to the others"
)]

mod args;
mod command;
mod failure;
mod machine;
mod progress;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

use crate::failure::{Exit, Failure};

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        terminal::complain(&format!("error: offshoot stopped on a mistake of its own: {panic}"));
        terminal::complain("\nhint: please report this with the command and the recipe");
    }));
    let exit = match args::Arguments::try_parse() {
        Err(usage) => {
            // Help and version are asked for; everything else is the user's input.
            let asked = !usage.use_stderr();
            let shown = usage.print().is_ok();
            if asked && shown { Exit::Done } else { Exit::Input }
        }
        Ok(arguments) => match std::panic::catch_unwind(|| command::run(arguments)) {
            Ok(Ok(exit)) => exit,
            Ok(Err(failure)) => report(&failure),
            Err(_) => Exit::Internal,
        },
    };
    ExitCode::from(exit as u8)
}

/// Prints what, where and what to do next.
fn report(failure: &Failure) -> Exit {
    if failure.is_broken_pipe() {
        return Exit::Done;
    }
    terminal::complain(&format!("error: {}", failure.text()));
    if let Some(hint) = &failure.hint {
        terminal::complain(&format!("\nhint: {hint}"));
    }
    failure.exit
}
