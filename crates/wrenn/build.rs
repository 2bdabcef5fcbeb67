//! Takes the static guest and shim into the binary, where `cargo xtask build` has put them.
//!
//! A plain `cargo build` works without them: that `wrenn` says at run time what it lacks.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// The programs, by the name of the constant in `src/embedded.rs`.
const PROGRAMS: [&str; 2] = ["envd", "wrenn-shim"];

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=WRENN_GUEST_DIR");
    let from = env::var_os("WRENN_GUEST_DIR").map(PathBuf::from);
    let to = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for program in PROGRAMS {
        embed(from.as_deref().map(|folder| folder.join(program)).as_deref(), &to, program)?;
    }
    Ok(())
}

/// Writes an expression of type `Option<&[u8]>` for one program.
fn embed(from: Option<&Path>, to: &Path, program: &str) -> io::Result<()> {
    let mut expression = "None".to_owned();
    if let Some(from) = from {
        // Also while it is not there: it may come.
        println!("cargo::rerun-if-changed={}", from.display());
        if from.is_file() {
            // A copy, so that the binary under construction and the one embedded cannot differ.
            fs::copy(from, to.join(program))?;
            expression = format!("Some(include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{program}\")))");
        }
    }
    fs::write(to.join(format!("{program}.rs")), expression)
}
