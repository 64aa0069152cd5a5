//! The nouns of offshoot as plain data: architecture, space, view, budget, scorecard, recipe and the catalog on disk.
//!
//! A **parent** is trained once; a **view** says how one **child**'s tensors follow from the parent's; a **catalog** keeps
//! a family of views with their **scorecards** on disk. Nothing in this crate knows a tensor library, reads the clock or
//! opens the network, so every other crate may depend on it.

pub mod architecture;
pub mod budget;
pub mod catalog;
pub mod files;
pub mod ledger;
pub mod quantity;
pub mod recipe;
pub mod scorecard;
pub mod space;
pub mod view;

pub use architecture::{
    Architecture, Decoder, DecoderKind, Projected, ResNet, ResNetNorm, RopeScaling, StrideOn, Swin, Vit,
};
pub use budget::Budget;
pub use catalog::{Catalog, CatalogError, Child, ParentRef, TrainingCost};
pub use ledger::{Ledger, Phase, Spent};
pub use scorecard::{Scorecard, Split};
pub use space::{Axis, Shape, Space};
pub use view::{Operator, View};
