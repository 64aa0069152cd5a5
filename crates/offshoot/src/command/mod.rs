//! One file per command.

mod bench;
mod cluster;
mod corpus;
mod data;
mod demo;
mod eval;
mod export;
mod family;
mod generate;
mod images;
mod import;
mod init;
mod perplexity;
mod pick;
mod plan;
mod pretrain;
mod report;
mod shell;
mod text;

use crate::args::{Arguments, Command};
use crate::failure::{Exit, Failure};

/// Does what was asked for.
///
/// # Errors
/// Whatever went wrong, with a hint and whose mistake it was.
pub fn run(arguments: Arguments) -> Result<Exit, Failure> {
    match arguments.command {
        Command::Demo(args) => return demo::run(&args),
        Command::Pretrain(args) => return pretrain::run(&args),
        Command::Cluster(args) => return cluster::run(&args),
        Command::Data(args) => data::run(&args)?,
        Command::Import(args) => import::run(&args)?,
        Command::Tokenizer(command) => corpus::tokenizer(&command)?,
        Command::Tokenize(args) => corpus::tokenize(&args)?,
        Command::Family(args) => family::run(&args)?,
        Command::Eval(args) => eval::run(&args)?,
        Command::Generate(args) => generate::run(&args)?,
        Command::Pick(args) => pick::run(&args)?,
        Command::Plan(args) => plan::run(&args)?,
        Command::Export(args) => export::run(&args)?,
        Command::Report(args) => report::run(&args)?,
        Command::Bench(args) => bench::run(&args)?,
        Command::Completions { shell } => shell::completions(shell)?,
        Command::Man { out } => shell::man(&out)?,
    }
    Ok(Exit::Done)
}
