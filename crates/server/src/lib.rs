//! The control plane.

pub mod db;
