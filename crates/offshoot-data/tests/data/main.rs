//! The crate from the outside: real files of every format, hostile files, augmentation, loader and sheet; text,
//! tokenizers, corpora and windows.

mod augmentation;
mod corpus;
mod fixtures;
mod formats;
mod hostile;
mod joined;
mod loading;
mod sheet;
mod text;
mod tokenizer;
mod windows;
