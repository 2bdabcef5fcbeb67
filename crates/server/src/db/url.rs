//! Where a database is: text, checked once.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sqlx::ConnectOptions;
use sqlx::any::AnyConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::limits;

/// What of a path is written as it is in a URL.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.');

/// What keeps the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    Sqlite,
    Postgres,
}

/// Where a database is: `sqlite:PATH` or `postgres://USER:PASSWORD@HOST:PORT/DATABASE`.
///
/// Shown, in either way, without a password.
#[derive(Clone)]
pub struct DatabaseUrl(Place);

#[derive(Clone)]
enum Place {
    Sqlite(PathBuf),
    Postgres { shown: String, options: AnyConnectOptions },
}

/// Why a text names no database.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// It is neither of the two kinds.
    #[error("a database is named as sqlite:PATH or postgres://USER:PASSWORD@HOST:PORT/DATABASE")]
    Kind,
    /// It is longer than any that makes sense.
    #[error("a database's name is longer than {} bytes", limits::URL_BYTES_MAX)]
    TooLong,
    /// There is no path.
    #[error("sqlite: needs the path of a file, as in sqlite:/var/lib/wrenn/server.db")]
    NoPath,
    /// The path has something in it that a file's name cannot have, or that only looks like a part of it.
    #[error(
        "the path after sqlite: has {0:?} in it; no options are taken, and a database in memory would forget its keys"
    )]
    Path(char),
    /// The rest of a postgres URL makes no sense.
    #[error("the postgres:// URL makes no sense")]
    Postgres(#[source] sqlx::Error),
    /// It does not say which database.
    #[error("the postgres:// URL names no database; add /DATABASE to its end")]
    NoDatabase,
    /// It asks for TLS.
    #[error(
        "connections to PostgreSQL are not encrypted by Wrenn; use a Unix socket, this host, or a tunnel, and leave sslmode out"
    )]
    Tls,
}

impl FromStr for DatabaseUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if text.len() > limits::URL_BYTES_MAX {
            return Err(UrlError::TooLong);
        }
        match text.split_once(':') {
            Some(("sqlite", path)) => sqlite(path.strip_prefix("//").unwrap_or(path)),
            Some(("postgres" | "postgresql", rest)) if rest.starts_with("//") => postgres(text),
            Some(_) | None => Err(UrlError::Kind),
        }
    }
}

impl DatabaseUrl {
    pub(super) fn backend(&self) -> Backend {
        match self.0 {
            Place::Sqlite(_) => Backend::Sqlite,
            Place::Postgres { .. } => Backend::Postgres,
        }
    }

    /// The file of a SQLite database, as it was named.
    pub(super) fn file(&self) -> Option<&Path> {
        match &self.0 {
            Place::Sqlite(path) => Some(path),
            Place::Postgres { .. } => None,
        }
    }

    /// What the driver takes. The file of a SQLite database exists by now.
    pub(super) fn options(&self) -> Result<AnyConnectOptions, sqlx::Error> {
        let options = match &self.0 {
            Place::Sqlite(path) => sqlite_options(path)?,
            Place::Postgres { options, .. } => options.clone(),
        };
        // They would be in the log with every call; what is slow is an error here.
        Ok(options.disable_statement_logging())
    }
}

fn sqlite(path: &str) -> Result<DatabaseUrl, UrlError> {
    if path.is_empty() {
        return Err(UrlError::NoPath);
    }
    // A name that begins with a colon is `:memory:` or meant to be.
    let odd = path.chars().find(|c| matches!(c, '?' | '\0')).or(path.chars().next().filter(|c| *c == ':'));
    match odd {
        Some(odd) => Err(UrlError::Path(odd)),
        None => Ok(DatabaseUrl(Place::Sqlite(PathBuf::from(path)))),
    }
}

fn postgres(text: &str) -> Result<DatabaseUrl, UrlError> {
    let checked: PgConnectOptions = text.parse().map_err(UrlError::Postgres)?;
    let Some(database) = checked.get_database() else { return Err(UrlError::NoDatabase) };
    match checked.get_ssl_mode() {
        PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer => {}
        PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull => return Err(UrlError::Tls),
    }
    let (user, host, port) = (checked.get_username(), checked.get_host(), checked.get_port());
    let shown = match checked.get_socket() {
        Some(socket) => format!("postgres:///{database}?host={}&port={port}&user={user}", socket.display()),
        None => format!("postgres://{user}@{host}:{port}/{database}"),
    };
    let options = text.parse().map_err(UrlError::Postgres)?;
    Ok(DatabaseUrl(Place::Postgres { shown, options }))
}

fn sqlite_options(path: &Path) -> Result<AnyConnectOptions, sqlx::Error> {
    let text = path.to_str().expect("it came from text");
    format!("sqlite://{}?mode=rw", utf8_percent_encode(text, IN_PATH)).parse()
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Place::Postgres { shown, .. } => f.write_str(shown),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        text.parse::<DatabaseUrl>().unwrap().to_string()
    }

    #[test]
    fn what_names_a_database() {
        assert_eq!(shown("sqlite:/var/lib/wrenn/server.db"), "sqlite:/var/lib/wrenn/server.db");
        assert_eq!(shown("sqlite:///var/lib/wrenn/server.db"), "sqlite:/var/lib/wrenn/server.db");
        assert_eq!(shown("sqlite:server.db"), "sqlite:server.db");
        assert_eq!(shown("postgres://wrenn@db.example:6543/wrenn"), "postgres://wrenn@db.example:6543/wrenn");
        assert_eq!(
            shown("postgresql://wrenn:x@%2Frun%2Fpostgresql/wrenn"),
            "postgres:///wrenn?host=/run/postgresql&port=5432&user=wrenn"
        );
    }

    #[test]
    fn what_does_not() {
        let said = |text: &str| text.parse::<DatabaseUrl>().unwrap_err().to_string();
        for text in ["", "server.db", "/server.db", "mysql://x/y", "postgres:x", "SQLITE:x"] {
            assert!(said(text).starts_with("a database is named as"), "{text}");
        }
        assert!(said("sqlite:").contains("needs the path"));
        assert!(said("sqlite:x.db?mode=memory").contains("'?'"));
        assert!(said("sqlite::memory:").contains("':'"));
        assert!(said("postgres://wrenn@host").contains("names no database"));
        assert!(said("postgres://wrenn@host/x?sslmode=require").contains("not encrypted"));
        assert!(said("postgres://wrenn@host:port/x").contains("makes no sense"));
        assert!(said(&format!("sqlite:{}", "x".repeat(5000))).contains("longer than"));
    }

    #[test]
    fn a_password_is_never_shown() {
        for text in ["postgres://u:geheim@h/d", "postgres://u@h/d?password=geheim", "postgres://u:geheim@%2Frun/d"] {
            let url: DatabaseUrl = text.parse().unwrap();
            assert!(!format!("{url} {url:?} {url:#?}").contains("geheim"), "{url}");
        }
        let error = "postgres://u:geheim@h:x/d".parse::<DatabaseUrl>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("geheim"));
    }
}
