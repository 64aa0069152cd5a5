//! Files to examples to batches of plain numbers: images, augmentation, masks, splits and a deterministic loader.
