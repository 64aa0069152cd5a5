//! Architectures that can be viewed: forward passes, weights in and out, and materialize.
