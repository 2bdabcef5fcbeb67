//! Nothing in the project may speak of the machine it was written on: no path of the checkout or of a home folder, no
//! host that packages come from.

use std::path::{Path, PathBuf};

use super::Finding;
use super::tree::TextFile;
use crate::cargo;

/// Folders that every machine has: their names say nothing.
const ORDINARY: [&str; 9] = ["/", "/home", "/root", "/tmp", "/srv", "/opt", "/usr/src", "/var/tmp", "/mnt"];

/// Hosts that are everybody's.
const PUBLIC: [&str; 3] = ["debian.org", "ubuntu.com", "crates.io"];

/// What is particular to a machine.
#[derive(Debug)]
pub struct Machine {
    /// Words that must not be in the project's text.
    words: Vec<String>,
}

impl Machine {
    /// The machine we are on.
    pub fn this() -> Self {
        let root = cargo::root();
        let folders = [Some(root), root.parent()].into_iter().flatten();
        let homes = std::env::home_dir().filter(|home| home != Path::new("/root"));
        let paths = folders.map(Path::to_owned).chain(homes).filter_map(|path| word_of_path(&path));
        let sources = ["/etc/apt/sources.list.d", "/etc/apt"].map(PathBuf::from);
        let texts = sources.iter().flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten());
        let hosts =
            texts.filter_map(|entry| std::fs::read_to_string(entry.path()).ok()).flat_map(|text| hosts_in(&text));
        Self { words: paths.chain(hosts).collect() }
    }
}

/// Every line that holds a word of the machine.
pub fn findings(files: &[TextFile], machine: &Machine) -> Vec<Finding> {
    let lines = files.iter().flat_map(|file| file.text.lines().enumerate().map(move |line| (file, line)));
    let found = lines.filter(|(_, (_, text))| machine.words.iter().any(|word| text.contains(word.as_str())));
    found
        .map(|(file, (number, _))| Finding {
            path: file.path.clone(),
            line: number + 1,
            what: "a path or host of this machine; the project's text must hold on every machine".to_owned(),
        })
        .collect()
}

fn word_of_path(path: &Path) -> Option<String> {
    let text = path.to_str()?.trim_end_matches('/');
    let particular = text.len() > 1 && !ORDINARY.contains(&text);
    particular.then(|| format!("{text}/"))
}

/// The hosts in apt's sources that are not everybody's.
fn hosts_in(text: &str) -> Vec<String> {
    let addresses = text.split_whitespace().filter_map(|word| word.split_once("://"));
    addresses
        .filter_map(|(_, rest)| rest.split('/').next())
        .filter(|host| !host.is_empty() && !PUBLIC.iter().any(|public| host.ends_with(public)))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_words_of_the_machine() {
        let machine = Machine { words: vec!["/build/wrenn/".to_owned(), "mirror.example.net".to_owned()] };
        let text = "fine\nsee /build/wrenn/src\nfetch from mirror.example.net\n/build/wren";
        let file = TextFile { path: "a.md".to_owned(), text: text.to_owned() };
        let lines: Vec<usize> = findings(&[file], &machine).iter().map(|finding| finding.line).collect();
        assert_eq!(lines, [2, 3]);
    }

    #[test]
    fn ordinary_folders_and_public_hosts_say_nothing() {
        assert_eq!(word_of_path(Path::new("/home")), None);
        assert_eq!(word_of_path(Path::new("/")), None);
        assert_eq!(word_of_path(Path::new("/build/wrenn")), Some("/build/wrenn/".to_owned()));
        let sources = "URIs: http://mirror.example.net/debian\ndeb https://archive.ubuntu.com/ubuntu noble main";
        assert_eq!(hosts_in(sources), ["mirror.example.net"]);
    }
}
