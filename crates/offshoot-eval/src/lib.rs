//! The one yardstick: a child and held-out data in, a scorecard out.
