//! A sandbox's whole life under an agent: paused, resumed, stopped, destroyed, and its agent killed at any moment.

mod adoption;
pub mod agent;
mod cycles;
pub mod damage;
pub mod full;
pub mod kill;
mod model;
mod on_demand;
mod pause;
mod races;
