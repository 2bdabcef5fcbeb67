//! A sandbox's whole life under an agent: paused, resumed, stopped, destroyed, and its agent killed at any moment.

mod adoption;
mod agent;
mod cycles;
mod damage;
mod full;
mod kill;
mod model;
mod pause;
mod races;
