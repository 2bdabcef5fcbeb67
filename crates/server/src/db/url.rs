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

/// The driver's names of what TLS needs.
const ROOT_CERT: [&str; 3] = ["sslrootcert", "ssl-root-cert", "ssl-ca"];
const CLIENT_CERT: [&str; 4] = ["sslcert", "ssl-cert", "sslkey", "ssl-key"];

/// What keeps the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    Sqlite,
    Postgres,
}

/// Where a database is: `sqlite:PATH` or `postgres://USER:PASSWORD@HOST:PORT/DATABASE`.
///
/// A connection to PostgreSQL is encrypted with `?sslmode=require`; with `?sslmode=verify-full` the server also has to show a
/// certificate of its host's name, signed by an authority of the system's or by one in the file `&sslrootcert=FILE`.
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
    /// It asks for TLS in a way that would be less than it seems.
    #[error("{0}")]
    Tls(TlsUrlError),
}

/// What is wrong with how TLS is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsUrlError {
    /// Authorities that everybody believes sign for everybody.
    #[error(
        "sslmode=verify-ca would take any host's certificate; use sslmode=verify-full, which compares the name as well"
    )]
    AnyName,
    /// A certificate that nobody would look at.
    #[error("sslrootcert is looked at with sslmode=verify-full alone; say so, or leave sslrootcert out")]
    RootUnused,
    /// A socket of this host.
    #[error("a Unix socket has no TLS, and needs none; leave sslmode and sslrootcert out")]
    Socket,
    /// A client's certificate.
    #[error("sslcert and sslkey are not supported; the server shows a password")]
    ClientCertificate,
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

    /// The file with certificates of authorities that it names.
    pub fn root_cert(&self) -> Option<PathBuf> {
        match &self.0 {
            Place::Sqlite(_) => None,
            Place::Postgres { options, .. } => value_of(options, &ROOT_CERT).map(PathBuf::from),
        }
    }

    /// The same database, with these certificates in another file.
    pub fn with_root_cert(mut self, path: &Path) -> Self {
        match &mut self.0 {
            Place::Sqlite(_) => {}
            Place::Postgres { options, .. } => {
                let pairs = options.database_url.query_pairs().into_owned();
                let others: Vec<_> = pairs.filter(|(name, _)| !ROOT_CERT.contains(&name.as_str())).collect();
                let mut query = options.database_url.query_pairs_mut();
                query.clear().extend_pairs(others).append_pair(ROOT_CERT[0], &path.to_string_lossy());
            }
        }
        self
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
    let (user, host, port) = (checked.get_username(), checked.get_host(), checked.get_port());
    let shown = match checked.get_socket() {
        Some(socket) => format!("postgres:///{database}?host={}&port={port}&user={user}", socket.display()),
        None => format!("postgres://{user}@{host}:{port}/{database}"),
    };
    let options: AnyConnectOptions = text.parse().map_err(UrlError::Postgres)?;
    check_tls(&checked, &options).map_err(UrlError::Tls)?;
    Ok(DatabaseUrl(Place::Postgres { shown, options }))
}

/// Refuses what the driver would take for less than is meant.
fn check_tls(checked: &PgConnectOptions, options: &AnyConnectOptions) -> Result<(), TlsUrlError> {
    let names_root = value_of(options, &ROOT_CERT).is_some();
    let (must_be_tls, is_verified) = match checked.get_ssl_mode() {
        PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer => (false, false),
        PgSslMode::Require => (true, false),
        PgSslMode::VerifyFull => (true, true),
        PgSslMode::VerifyCa => return Err(TlsUrlError::AnyName),
    };
    if value_of(options, &CLIENT_CERT).is_some() {
        return Err(TlsUrlError::ClientCertificate);
    }
    if checked.get_socket().is_some() && (must_be_tls || names_root) {
        return Err(TlsUrlError::Socket);
    }
    if names_root && !is_verified { Err(TlsUrlError::RootUnused) } else { Ok(()) }
}

/// The value of an option that has several names; the last counts, as for the driver.
fn value_of(options: &AnyConnectOptions, names: &[&str]) -> Option<String> {
    let pairs = options.database_url.query_pairs().filter(|(name, _)| names.contains(&name.as_ref()));
    pairs.last().map(|(_, value)| value.into_owned())
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
        assert!(said("postgres://wrenn@host:port/x").contains("makes no sense"));
        assert!(said(&format!("sqlite:{}", "x".repeat(5000))).contains("longer than"));
    }

    #[test]
    fn tls_is_what_it_seems_or_refused() {
        let parsed = |rest: &str| format!("postgres://u@{rest}").parse::<DatabaseUrl>();
        for fine in ["h/d?sslmode=require", "h/d?sslmode=verify-full", "h/d?sslmode=prefer", "h/d?sslmode=disable"] {
            assert_eq!(parsed(fine).unwrap().root_cert(), None, "{fine}");
        }
        for (rest, wrong) in [
            ("h/d?sslmode=verify-ca", TlsUrlError::AnyName),
            ("h/d?sslmode=verify-ca&sslrootcert=/ca.pem", TlsUrlError::AnyName),
            ("h/d?sslmode=require&sslrootcert=/ca.pem", TlsUrlError::RootUnused),
            ("h/d?ssl-ca=/ca.pem", TlsUrlError::RootUnused),
            ("%2Frun/d?sslmode=verify-full", TlsUrlError::Socket),
            ("h/d?host=/run&sslmode=require", TlsUrlError::Socket),
            ("h/d?sslmode=verify-full&sslcert=/c.pem&sslkey=/k.pem", TlsUrlError::ClientCertificate),
        ] {
            assert!(matches!(parsed(rest), Err(UrlError::Tls(is)) if is == wrong), "{rest}");
        }
        let named =
            parsed("h/d?ssl-ca=/old&sslmode=verify-full&sslrootcert=/my%20ca.pem&application_name=a%26b").unwrap();
        assert_eq!(named.root_cert().as_deref(), Some(Path::new("/my ca.pem")));
        let moved = named.with_root_cert(Path::new("/run/ca & co.pem"));
        assert_eq!(moved.root_cert().as_deref(), Some(Path::new("/run/ca & co.pem")));
        let options = PgConnectOptions::try_from(&moved.options().unwrap()).unwrap();
        assert!(matches!(options.get_ssl_mode(), PgSslMode::VerifyFull));
        assert_eq!((options.get_database(), options.get_application_name()), (Some("d"), Some("a&b")));
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
