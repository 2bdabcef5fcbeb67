//! Builds Wrenn: the static guest and shim first, then the one host binary with both inside, installed for the user.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::cargo;
use crate::ui::Step;
use crate::web;

/// The target of everything static; no musl, the gnu target links statically with `crt-static`.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Programs that are static, by package: the guest's and the one beside each VMM.
const STATIC: [(&str, &str); 2] = [("wrenn-guest", "envd"), ("wrenn-shim", "wrenn-shim")];

/// Largest size of the guest's program: it is in every microVM's memory.
const GUEST_BYTES_MAX: u64 = 5 * 1024 * 1024;

/// How the host binary is built.
#[derive(Clone, Copy, Debug)]
pub enum Profile {
    /// For people.
    Release,
    /// For tests: every program and test of the workspace, in the same build that the test runner makes.
    Dev,
}

/// Builds everything; returns where the host binary was built.
pub fn run(profile: Profile) -> Result<PathBuf> {
    ensure!(cfg!(all(target_arch = "x86_64", target_os = "linux")), "Wrenn runs on x86_64 Linux only, so far");
    static_programs()?;
    web::build()?;
    host_binary(profile)
}

/// Installs the host binary where cargo installs programs; returns its path.
pub fn install(built: &Path) -> Result<PathBuf> {
    let dir = cargo::install_dir().context("neither CARGO_HOME nor a home folder: where should `wrenn` go?")?;
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let (path, fresh) = (dir.join("wrenn"), dir.join(format!(".wrenn-{}", std::process::id())));
    fs::copy(built, &fresh).with_context(|| format!("cannot copy wrenn to {}", fresh.display()))?;
    // A running wrenn keeps the old file; whoever starts one sees the old or the new, never half of it.
    fs::rename(&fresh, &path).with_context(|| format!("cannot put wrenn at {}", path.display()))?;
    eprintln!("    installed: {}", path.display());
    if !std::env::var_os("PATH").is_some_and(|paths| std::env::split_paths(&paths).any(|each| each == dir)) {
        eprintln!("    that folder is not in PATH; add it: export PATH=\"{}:$PATH\"", dir.display());
    }
    Ok(path)
}

fn static_programs() -> Result<()> {
    let step = Step::start_loud("building the static guest and shim");
    // One after the other: built together they would share features, and the shim is small by having few.
    for (package, program) in STATIC {
        let path = static_program(package, program)?;
        let bytes = fs::metadata(&path).with_context(|| format!("cannot find {}", path.display()))?.len();
        ensure!(bytes <= GUEST_BYTES_MAX, "{program} has {bytes} bytes, more than {GUEST_BYTES_MAX}");
        step.note(&format!("{program}: {:.1} MB", bytes as f64 / 1e6));
    }
    step.done("built");
    Ok(())
}

/// Builds one static program; returns its path.
pub fn static_program(package: &str, program: &str) -> Result<PathBuf> {
    let target_dir = cargo::root().join("target/guest");
    cargo::job(["build", "--locked", "--profile", "guest", "--target", TARGET, "--package", package, "--target-dir"])
        .args([&target_dir])
        .without_env("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .show()?;
    let path = target_dir.join(TARGET).join("guest").join(program);
    let elf = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(!has_interpreter(&elf)?, "{program} is not static: it asks for a dynamic loader");
    Ok(path)
}

fn host_binary(profile: Profile) -> Result<PathBuf> {
    let step = Step::start_loud("building wrenn");
    let path = match profile {
        Profile::Release => {
            cargo::job(["build", "--locked", "--package", "wrenn", "--release"]).show()?;
            cargo::target_dir().join("release/wrenn")
        }
        Profile::Dev => {
            // A package alone has other features than in the workspace: everything would be compiled once for each. Not all
            // programs: xtask, which runs, would be put in its own place.
            let programs = ["--bin", "wrenn", "--bin", "wrenn-testbed"];
            cargo::job(["build", "--locked", "--workspace", "--tests"]).args(programs).show()?;
            dev_program("wrenn")
        }
    };
    let bytes = fs::metadata(&path).with_context(|| format!("cannot find {}", path.display()))?.len();
    step.done(&format!("wrenn: {:.1} MB", bytes as f64 / 1e6));
    Ok(path)
}

/// Where the build for tests puts a program.
pub fn dev_program(name: &str) -> PathBuf {
    cargo::target_dir().join("debug").join(name)
}

/// Whether a 64-bit little-endian ELF file has a PT_INTERP header, that is: needs a dynamic loader.
fn has_interpreter(elf: &[u8]) -> Result<bool> {
    const PT_INTERP: u32 = 3;
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") {
        bail!("not a 64-bit ELF file");
    }
    let field = |at: usize, length: usize| -> Result<u64> {
        let bytes = elf.get(at..at + length).context("an ELF file cut short")?;
        Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let (offset, size, count) = (field(0x20, 8)? as usize, field(0x36, 2)? as usize, field(0x38, 2)? as usize);
    for header in 0..count {
        let at =
            header.checked_mul(size).and_then(|at| at.checked_add(offset)).context("an ELF file with odd headers")?;
        if field(at, 4)? == u64::from(PT_INTERP) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_dynamic_from_static() {
        let dynamic = fs::read("/bin/sh").unwrap();
        assert!(has_interpreter(&dynamic).unwrap());
        let mut without = dynamic.clone();
        // No program headers at all: nothing asks for a loader.
        without[0x38..0x3a].fill(0);
        assert!(!has_interpreter(&without).unwrap());
        for broken in [&b""[..], b"#!/bin/sh\n", &dynamic[..0x40]] {
            assert!(has_interpreter(broken).is_err());
        }
    }
}
