//! The machine's apt sources as text, and the backports derived from them.
//!
//! Nobody's mirror is named here: an entry for the backports has the machine's own address, keys and options, only
//! the suite differs. Both of apt's formats are read: deb822 stanzas (`.sources`) and lines (`.list`).

/// A file of apt sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// The file's name; its ending tells the format.
    pub name: String,
    /// What it holds.
    pub text: String,
}

/// Names that apt gives to releases whose backports exist, besides the codename.
const ALIASES: [&str; 2] = ["stable", "oldstable"];

/// For each file that has this release in it, the same entries for its backports; nothing when there are none.
pub fn backports(files: &[SourceFile], codename: &str) -> Vec<SourceFile> {
    let derived = files.iter().filter_map(|file| {
        let text = if file.name.ends_with(".sources") {
            file.text.split("\n\n").filter_map(|stanza| backports_stanza(stanza, codename)).collect::<String>()
        } else {
            file.text.lines().filter_map(|line| backports_line(line, codename)).collect::<String>()
        };
        let name = format!("wrenn-backports-{}", file.name);
        (!text.is_empty()).then_some(SourceFile { name, text })
    });
    derived.collect()
}

/// The backports of a deb822 stanza: the same fields with another suite.
fn backports_stanza(stanza: &str, codename: &str) -> Option<String> {
    let fields = fields(stanza);
    let value =
        |name: &str| fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value);
    let has = |name: &str, word: &str| value(name).split_whitespace().any(|each| each == word);
    if !has("Types", "deb") || !has("Components", "main") || ["no", "false", "0"].contains(&value("Enabled").trim()) {
        return None;
    }
    let suite = value("Suites").split_whitespace().find(|suite| is_release(suite, codename))?;
    let mut text = format!("Types: deb\nSuites: {suite}-backports\n");
    for (key, value) in &fields {
        if !["types", "suites", "enabled"].contains(&key.to_ascii_lowercase().as_str()) {
            text.push_str(&format!("{key}:{value}\n"));
        }
    }
    Some(text + "\n")
}

/// The fields of a stanza, comments left out; continuation lines stay as they are.
fn fields(stanza: &str) -> Vec<(String, String)> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in stanza.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let continued = line.starts_with([' ', '\t']);
        match (continued, fields.last_mut(), line.split_once(':')) {
            (true, Some((_, value)), _) => {
                value.push('\n');
                value.push_str(line);
            }
            (false, _, Some((key, value))) => fields.push((key.trim().to_owned(), value.to_owned())),
            (true, None, _) | (false, _, None) => {}
        }
    }
    fields
}

/// The backports of a line `deb [options] URI SUITE COMPONENT…`.
fn backports_line(line: &str, codename: &str) -> Option<String> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(bracketed) => {
            let (options, rest) = bracketed.split_once(']')?;
            (format!("[{options}] "), rest)
        }
        None => (String::new(), rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let components: Vec<&str> = words.collect();
    let wanted = is_release(suite, codename) && components.contains(&"main");
    wanted.then(|| format!("deb {options}{uri} {suite}-backports {}\n", components.join(" ")))
}

fn is_release(suite: &str, codename: &str) -> bool {
    suite == codename || ALIASES.contains(&suite)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn derive(name: &str, text: &str) -> Option<String> {
        let file = SourceFile { name: name.to_owned(), text: text.to_owned() };
        backports(&[file], "bookworm").pop().map(|file| file.text)
    }

    #[test]
    fn a_stanza_keeps_its_address_keys_and_options() {
        let text = "# the archive\nTypes: deb deb-src\nURIs: http://192.0.2.1/debian\nSuites: bookworm bookworm-updates\n\
                    Components: main contrib\nCheck-Valid-Until: no\nSigned-By:\n -----BEGIN\n key\n\n\
                    Types: deb\nURIs: http://192.0.2.1/security\nSuites: bookworm-security\nComponents: main\n";
        let wanted = "Types: deb\nSuites: bookworm-backports\nURIs: http://192.0.2.1/debian\nComponents: main contrib\n\
                      Check-Valid-Until: no\nSigned-By:\n -----BEGIN\n key\n\n";
        assert_eq!(derive("debian.sources", text).as_deref(), Some(wanted));
    }

    #[test]
    fn a_line_keeps_its_address_and_options() {
        for (line, wanted) in [
            (
                "deb http://192.0.2.1/debian bookworm main",
                Some("deb http://192.0.2.1/debian bookworm-backports main\n"),
            ),
            (
                "deb [signed-by=/k.gpg arch=amd64] http://192.0.2.1/debian stable main contrib # here",
                Some("deb [signed-by=/k.gpg arch=amd64] http://192.0.2.1/debian stable-backports main contrib\n"),
            ),
            ("deb-src http://192.0.2.1/debian bookworm main", None),
            ("# deb http://192.0.2.1/debian bookworm main", None),
            ("deb http://192.0.2.1/debian bookworm-updates main", None),
            ("deb http://192.0.2.1/tool bookworm stable", None),
            ("deb", None),
            ("", None),
        ] {
            assert_eq!(derive("some.list", line).as_deref(), wanted, "{line}");
        }
    }

    #[test]
    fn what_is_switched_off_or_of_another_release_gives_nothing() {
        for stanza in [
            "Types: deb\nEnabled: no\nURIs: http://192.0.2.1/debian\nSuites: bookworm\nComponents: main\n",
            "Types: deb-src\nURIs: http://192.0.2.1/debian\nSuites: bookworm\nComponents: main\n",
            "Types: deb\nURIs: http://192.0.2.1/debian\nSuites: trixie\nComponents: main\n",
            "Types: deb\nURIs: http://192.0.2.1/tool\nSuites: bookworm\nComponents: stable\n",
            "",
        ] {
            assert_eq!(derive("debian.sources", stanza), None, "{stanza}");
        }
    }
}
