//! A sandbox's whole life under an agent: paused, resumed, stopped, destroyed, and its agent killed at any moment.

mod adoption;
mod agent;
mod cycles;
pub mod damage;
mod full;
pub mod kill;
mod model;
mod on_demand;
mod pause;
mod races;
