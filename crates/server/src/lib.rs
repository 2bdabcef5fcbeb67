//! The control plane.

pub mod proxy;
