//! Links in the project's Markdown: what they point to inside the tree must be there.

use std::collections::HashSet;

use super::Finding;
use super::tree::TextFile;

/// Every relative link in a Markdown file whose file or heading is not there.
pub fn broken_links(files: &[TextFile]) -> Vec<Finding> {
    let paths: HashSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let documents = files.iter().filter(|file| file.path.ends_with(".md"));
    documents.flat_map(|document| broken_in(document, files, &paths)).collect()
}

fn broken_in(document: &TextFile, files: &[TextFile], paths: &HashSet<&str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, target) in links(&document.text) {
        if target.contains("://") || target.starts_with("mailto:") {
            continue;
        }
        let (file, heading) = target.split_once('#').map_or((target.as_str(), None), |(file, h)| (file, Some(h)));
        let path = if file.is_empty() { document.path.clone() } else { resolve(&document.path, file) };
        let folder = format!("{}/", path.trim_end_matches('/'));
        let there = paths.contains(path.as_str()) || paths.iter().any(|each| each.starts_with(&folder));
        let heading_there = heading.is_none_or(|heading| {
            files.iter().any(|each| each.path == path && headings(&each.text).any(|each| each == heading))
        });
        if !there || !heading_there {
            let what = format!("the link `{target}` points to nothing");
            findings.push(Finding { path: document.path.clone(), line, what });
        }
    }
    findings
}

/// The targets of `[text](target)` outside of code blocks, with their lines.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    let mut in_code = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        let found = line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
        if !in_code {
            links.extend(found.map(|target| (number + 1, target.to_owned())));
        }
    }
    links
}

/// The anchors of a document's headings, as they are commonly made: lower case, dashes for spaces.
fn headings(text: &str) -> impl Iterator<Item = String> + '_ {
    text.lines().filter(|line| line.starts_with('#')).map(|line| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-")
    })
}

/// A link's target as a path from the root.
fn resolve(document: &str, target: &str) -> String {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_links_to_nothing() {
        let file = |path: &str, text: &str| TextFile { path: path.to_owned(), text: text.to_owned() };
        let readme = "# Wrenn\n[a](docs/a.md) [gone](docs/b.md)\n[web](https://192.0.2.1/x) [top](#wrenn)\n\
                      [no](#nothing) [folder](docs)\n```\n[code](nowhere)\n```\n[h](docs/a.md#the-way-in)";
        let files = [file("README.md", readme), file("docs/a.md", "## The way in\n[up](../README.md) [x](../x)")];
        let found: Vec<_> = broken_links(&files).into_iter().map(|finding| (finding.path, finding.line)).collect();
        let wanted = [("README.md", 2), ("README.md", 4), ("docs/a.md", 2)];
        assert_eq!(found, wanted.map(|(path, line)| (path.to_owned(), line)));
    }
}
