//! Has the crate built anew when the pages that it embeds were.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Also while it is not there: it may come.
    println!("cargo::rerun-if-changed=../../web/dist");
}
