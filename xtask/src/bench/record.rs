//! What the measuring program says, one JSON object per line of its standard output.
//!
//! Both sides compile this file: `xtask`, which reads, and `benches/microvm`, which measures.

use serde::{Deserialize, Serialize};

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Record {
    /// What is measured with, said once: VMM, version, accelerator.
    Vmm(String),
    /// What is being done now, for people who wait.
    Doing(String),
    /// A value of a round.
    Value {
        /// From 1.
        round: usize,
        /// What was measured.
        name: String,
        /// Such as `ms`.
        unit: String,
        /// How much.
        value: f64,
    },
    /// A measurement that could not be taken, and why.
    Failed {
        /// From 1.
        round: usize,
        /// Which part of the round.
        part: String,
        /// The error and its causes.
        why: String,
    },
}
