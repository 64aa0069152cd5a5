//! The crate from the outside: real files of every format, hostile files, augmentation, loader and sheet.

mod augmentation;
mod fixtures;
mod formats;
mod hostile;
mod joined;
mod loading;
mod sheet;
