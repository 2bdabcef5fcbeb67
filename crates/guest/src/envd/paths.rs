//! From what a client calls a path to the absolute path it means.
//!
//! Pure: nothing here looks at the file system, so links are not resolved, and `a/../b` is `b` whatever `a` is. Paths are
//! bytes; names that are not UTF-8 can be asked for wherever the wire can carry them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::files_limits as limits;

/// Why a path means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The kernel ends names at a NUL.
    #[error("the path holds a NUL byte")]
    Nul,
    /// Longer than the kernel takes.
    #[error("the path is longer than {} bytes", limits::PATH_BYTES_MAX)]
    TooLong,
    /// `~somebody`.
    #[error("`~name` is not supported: use `~` for the user's own home, or an absolute path")]
    OthersHome,
}

/// The absolute, cleaned path that `path` means for a user.
///
/// `~` and `~/…` start at `home`, and so does a relative path. An empty path is `default_dir` where there is one (itself
/// read by the same rules), else `home`.
pub fn resolve(path: impl AsRef<OsStr>, home: &Path, default_dir: Option<&Path>) -> Result<PathBuf, PathError> {
    let path = path.as_ref().as_bytes();
    let asked = match default_dir {
        Some(dir) if path.is_empty() => dir.as_os_str().as_bytes(),
        Some(_) | None => path,
    };
    if asked.contains(&0) {
        return Err(PathError::Nul);
    }
    if asked.len() > limits::PATH_BYTES_MAX {
        return Err(PathError::TooLong);
    }
    let absolute = clean(&from_root(asked, home.as_os_str().as_bytes())?);
    if absolute.len() > limits::PATH_BYTES_MAX {
        return Err(PathError::TooLong);
    }
    Ok(PathBuf::from(OsString::from_vec(absolute)))
}

/// The last part of a cleaned absolute path; `/` for the root itself.
pub fn name(path: &Path) -> &OsStr {
    path.file_name().unwrap_or(OsStr::new("/"))
}

fn from_root(asked: &[u8], home: &[u8]) -> Result<Vec<u8>, PathError> {
    match asked {
        [b'/', ..] => Ok(asked.to_vec()),
        [b'~'] => Ok(home.to_vec()),
        [b'~', b'/', rest @ ..] => Ok([home, b"/", rest].concat()),
        [b'~', ..] => Err(PathError::OthersHome),
        relative => Ok([home, b"/", relative].concat()),
    }
}

/// Takes `.`, `..` and repeated slashes out; `..` above the root stays at the root.
fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    let mut cleaned = vec![b'/'];
    cleaned.extend_from_slice(&parts.join(&b'/'));
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at_home(path: &str) -> Result<String, PathError> {
        resolve(path, Path::new("/home/user"), None).map(|path| path.into_os_string().into_string().unwrap())
    }

    #[test]
    fn paths_mean_what_the_contract_says() {
        for (asked, meant) in [
            ("", "/home/user"),
            ("~", "/home/user"),
            ("~/", "/home/user"),
            ("~/a/b", "/home/user/a/b"),
            ("~/../other", "/home/other"),
            ("a", "/home/user/a"),
            ("./a/", "/home/user/a"),
            ("a/../../b", "/home/b"),
            ("../../../../..", "/"),
            ("a~", "/home/user/a~"),
            ("/", "/"),
            ("//", "/"),
            ("/a//b/./c/../d/", "/a/b/d"),
            ("/..", "/"),
            ("/~", "/~"),
            ("...", "/home/user/..."),
            (" ", "/home/user/ "),
            ("%2e%2e", "/home/user/%2e%2e"),
            ("grüße", "/home/user/grüße"),
        ] {
            assert_eq!(at_home(asked).as_deref(), Ok(meant), "{asked:?}");
        }
    }

    #[test]
    fn paths_that_mean_nothing_are_refused() {
        assert_eq!(at_home("a\0b"), Err(PathError::Nul));
        assert_eq!(at_home("~root/x"), Err(PathError::OthersHome));
        assert_eq!(at_home(&"a/".repeat(limits::PATH_BYTES_MAX)), Err(PathError::TooLong));
        assert_eq!(
            at_home(&"a".repeat(limits::PATH_BYTES_MAX - 3)),
            Err(PathError::TooLong),
            "with the home before it"
        );
        assert!(at_home(&format!("/{}", "a".repeat(limits::PATH_BYTES_MAX - 1))).is_ok());
    }

    #[test]
    fn an_empty_path_is_the_default_directory() {
        let home = Path::new("/home/user");
        let resolve = |path: &str, dir: &str| resolve(path, home, Some(Path::new(dir))).unwrap();
        assert_eq!(resolve("", "/code"), Path::new("/code"));
        assert_eq!(resolve("", "code/x"), Path::new("/home/user/code/x"));
        assert_eq!(resolve("", ""), home);
        assert_eq!(resolve("a", "/code"), Path::new("/home/user/a"), "relative paths start at home all the same");
    }

    #[test]
    fn a_home_that_is_odd_is_harmless() {
        assert_eq!(resolve("a", Path::new(""), None).unwrap(), Path::new("/a"));
        assert_eq!(resolve("~/a", Path::new("rel/"), None).unwrap(), Path::new("/rel/a"));
        assert_eq!(name(Path::new("/")), "/");
        assert_eq!(name(Path::new("/a/b")), "b");
    }

    proptest! {
        #[test]
        fn a_resolved_path_is_absolute_clean_and_stays_as_it_is(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(path) = resolve(OsStr::from_bytes(&bytes), Path::new("/home/user"), None) {
                let text = path.as_os_str().as_bytes();
                prop_assert!(text.starts_with(b"/"));
                prop_assert!(text == b"/" || !text.ends_with(b"/"));
                prop_assert!(!text.split(|byte| *byte == b'/').any(|part| part == b"." || part == b".."));
                prop_assert!(!text.windows(2).any(|pair| pair == b"//"));
                prop_assert_eq!(&resolve(&path, Path::new("/else"), None).unwrap(), &path);
            }
        }
    }
}
