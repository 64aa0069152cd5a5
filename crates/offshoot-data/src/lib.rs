//! Files to examples to batches of plain numbers: images, augmentation, masks, splits and a deterministic loader.
//!
//! The way of an example: [`source::open`] finds out what a path holds and gives a [`Source`]; [`summary::summarize`]
//! describes it and [`split::split`] divides it by content; [`loader::Loader`] turns it into [`loader::Batch`]es of
//! augmented crops ([`augment::MultiCrop`]) and patch masks ([`mask::BlockMasks`]). Every random choice comes from
//! [`rng::Rng`], keyed by what it decides, so that the same seed gives the same bytes for any number of threads.

pub mod augment;
pub mod dataset;
pub mod error;
pub mod image;
pub mod loader;
pub mod mask;
pub mod rng;
pub mod sheet;
pub mod source;
pub mod split;
pub mod summary;
pub mod text;

pub use augment::evaluation::Prepare;
pub use augment::{Blur, CropSpec, Crops, MultiCrop};
pub use dataset::{Dataset, Measured};
pub use error::DataError;
pub use image::Image;
pub use loader::evaluation::{Prepared, evaluation_batches};
pub use loader::{Batch, Batches, Loader, LoaderConfig};
pub use mask::BlockMasks;
pub use offshoot_family::catalog::Preprocessing;
pub use rng::Rng;
pub use source::{Labels, Source, open};
pub use split::{Split, SplitShares, Splits, content_hashes, split};
pub use summary::{Summary, summarize};
