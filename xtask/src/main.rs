//! Automation
fn main() {}
