//! The project's files, as the rules read them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Folders that hold no text of the project.
const SKIPPED: [&str; 5] = ["target", ".git", "node_modules", "dist", "test-build"];
/// A longer file is data.
const TEXT_BYTES_MAX: u64 = 1024 * 1024;

/// A text file of the project.
#[derive(Clone, Debug)]
pub struct TextFile {
    /// Its path from the workspace's root.
    pub path: String,
    /// What it holds.
    pub text: String,
}

impl TextFile {
    /// Whether it holds Rust.
    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// All text files under `root`, sorted by path.
pub fn read(root: &Path) -> Result<Vec<TextFile>> {
    let mut files = Vec::new();
    collect(root, "", &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn collect(dir: &Path, prefix: &str, files: &mut Vec<TextFile>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = format!("{prefix}{name}");
        let kind = entry.file_type()?;
        if kind.is_dir() && !SKIPPED.contains(&name.as_str()) {
            collect(&entry.path(), &format!("{path}/"), files)?;
        } else if kind.is_file() && entry.metadata()?.len() <= TEXT_BYTES_MAX {
            let bytes = fs::read(entry.path()).with_context(|| format!("cannot read {path}"))?;
            // What is not UTF-8 is not text.
            files.extend(String::from_utf8(bytes).ok().map(|text| TextFile { path, text }));
        }
    }
    Ok(())
}
