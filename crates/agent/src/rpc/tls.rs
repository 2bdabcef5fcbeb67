//! Who one is over TLS, and whom one believes: read from files, checked, and then handed to either end.
//!
//! ```text
//!   TlsFiles ── read: all problems at once ──────► TlsIdentity ─┬─► ServerTls ─► serve_tls
//!    │ certificate chain, key, CA                    ▲          └─► ClientTls ─► Remote::over_tls
//!    └─ TlsHandover::read ─ for a process that may not read them
//! ```
//!
//! TLS 1.3 alone. Both sides show a certificate, and each believes those alone that its CA signed: no CA of the system is
//! asked. Nothing is resumed, so that a certificate is looked at with each connection. Files are read once: renewed ones count
//! from the next start.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{AlertDescription, ClientConfig, RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};

use super::limits;
use super::link::Carries;

/// Where it is written who this side is, and whom it believes. All of them in PEM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TlsFiles {
    /// This side's certificate, and after it those between it and its CA.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The CA that has signed the other side's certificate; several during a change.
    pub ca: PathBuf,
}

/// One problem with one file. What is in a key's file is never told.
#[derive(Debug, thiserror::Error)]
pub enum TlsProblem {
    /// The host refused.
    #[error("cannot read {}: {source}; {remedy}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What it has to be.
        remedy: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// It is too large to be what it should be.
    #[error("{} is larger than {} KiB, and so not what it should be; {remedy}", path.display(), limits::PEM_BYTES_MAX / 1024)]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// What it has to be.
        remedy: &'static str,
    },
    /// It has no PEM of the kind, or what looks like it is damaged.
    #[error("{} has no {what}, or a damaged one; {remedy}", path.display())]
    Missing {
        /// Which file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// What it has to be.
        remedy: &'static str,
    },
    /// The CA's certificate is not understood.
    #[error("a certificate in {} cannot be a CA's: {source}; it has to be an X.509 certificate of version 3", path.display())]
    Ca {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// The key and the certificate do not belong together, or one of them is of a kind that is not supported.
    #[error(
        "the key {} does not go with the certificate {}: {source}; make both anew, with ECDSA P-256, Ed25519 or RSA of 2048 bits or more", key.display(), cert.display()
    )]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
}

/// All problems with the files.
#[derive(Debug)]
pub struct TlsError(pub Vec<TlsProblem>);

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let problems: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&problems.join("\n"))
    }
}

impl std::error::Error for TlsError {}

/// What a file holds, or why nobody knows.
type Pem = Result<Vec<u8>, TlsProblem>;

/// A file, and what a person is told that has to be in it.
struct File<'a> {
    path: &'a Path,
    remedy: &'static str,
}

impl File<'_> {
    fn read(&self) -> Pem {
        let (path, remedy) = (self.path.to_owned(), self.remedy);
        let bytes = std::fs::metadata(self.path).map(|metadata| metadata.len());
        match bytes.and_then(|bytes| (bytes <= limits::PEM_BYTES_MAX).then(|| std::fs::read(self.path)).transpose()) {
            Ok(Some(pem)) => Ok(pem),
            Ok(None) => Err(TlsProblem::TooLarge { path, remedy }),
            Err(source) => Err(TlsProblem::Unreadable { path, remedy, source }),
        }
    }

    fn missing(&self, what: &'static str) -> TlsProblem {
        TlsProblem::Missing { path: self.path.to_owned(), what, remedy: self.remedy }
    }

    fn certificates(&self, pem: Pem) -> Result<Vec<CertificateDer<'static>>, TlsProblem> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem?).collect();
        found.ok().filter(|found| !found.is_empty()).ok_or_else(|| self.missing("certificate"))
    }

    fn key(&self, pem: Pem) -> Result<PrivateKeyDer<'static>, TlsProblem> {
        PrivateKeyDer::from_pem_slice(&pem?).map_err(|_secret| self.missing("private key"))
    }

    fn roots(&self, pem: Pem) -> Result<RootCertStore, TlsProblem> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates(pem)? {
            roots.add(certificate).map_err(|source| TlsProblem::Ca { path: self.path.to_owned(), source })?;
        }
        Ok(roots)
    }
}

impl TlsFiles {
    /// Certificate, key and CA.
    fn each(&self) -> [File<'_>; 3] {
        [
            File { path: &self.cert, remedy: "it has to begin with this side's certificate, in PEM" },
            File { path: &self.key, remedy: "it has to be an unencrypted private key, in PEM" },
            File { path: &self.ca, remedy: "it has to be the certificate of the CA of the other side, in PEM" },
        ]
    }

    fn read(&self) -> [Pem; 3] {
        self.each().map(|file| file.read())
    }
}

/// What the files held, for a process that may not read them: whoever has it is that side.
#[derive(Serialize, Deserialize)]
pub struct TlsHandover {
    files: TlsFiles,
    pem: [Vec<u8>; 3],
}

impl fmt::Debug for TlsHandover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsHandover").field("files", &self.files).finish_non_exhaustive()
    }
}

impl TlsHandover {
    /// What the files hold, or all that is wrong with it.
    pub fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let read = files.read();
        let pem = read.each_ref().map(|pem| pem.as_ref().cloned().unwrap_or_default());
        TlsIdentity::of(files, read)?;
        Ok(Self { files: files.clone(), pem })
    }
}

/// Who this side is, and whom it believes.
#[derive(Clone, Debug)]
pub struct TlsIdentity {
    key: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
}

impl TryFrom<TlsHandover> for TlsIdentity {
    type Error = TlsError;

    fn try_from(TlsHandover { files, pem }: TlsHandover) -> Result<Self, TlsError> {
        Self::of(&files, pem.map(Ok))
    }
}

impl TlsIdentity {
    /// What the files say, or all that is wrong with them.
    pub fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        Self::of(files, files.read())
    }

    fn of(files: &TlsFiles, [cert_pem, key_pem, ca_pem]: [Pem; 3]) -> Result<Self, TlsError> {
        let [cert, key, ca] = files.each();
        let mut problems = Vec::new();
        let mut note = |problem| problems.push(problem);
        let chain = cert.certificates(cert_pem).map_err(&mut note);
        let private = key.key(key_pem).map_err(&mut note);
        let roots = ca.roots(ca_pem).map_err(&mut note);
        let pair = chain.and_then(|chain| private.map(|private| (chain, private)));
        let pair = pair.and_then(|(chain, private)| {
            CertifiedKey::from_der(chain, private, &provider()).map_err(|source| {
                note(TlsProblem::Pair { cert: files.cert.clone(), key: files.key.clone(), source });
            })
        });
        match (pair, roots) {
            (Ok(key), Ok(roots)) => Ok(Self { key: Arc::new(key), roots: Arc::new(roots) }),
            (Err(()), _) | (_, Err(())) => Err(TlsError(problems)),
        }
    }

    fn own(&self) -> Arc<SingleCertAndKey> {
        Arc::new(SingleCertAndKey::from(Arc::clone(&self.key)))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// How an agent is served: clients without a certificate of the CA do not get in.
#[derive(Clone, Debug)]
pub struct ServerTls(pub(super) Arc<ServerConfig>);

impl From<&TlsIdentity> for ServerTls {
    fn from(identity: &TlsIdentity) -> Self {
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&identity.roots), provider());
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has TLS 1.3")
            .with_client_cert_verifier(clients.build().expect("an identity has a CA"))
            .with_cert_resolver(identity.own());
        config.alpn_protocols = Carries::ALL.map(|carries| carries.alpn().to_vec()).into();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Self(Arc::new(config))
    }
}

/// How an agent is reached.
#[derive(Clone, Debug)]
pub struct ClientTls {
    calls: Arc<ClientConfig>,
    tunnels: Arc<ClientConfig>,
}

impl ClientTls {
    pub(super) fn config(&self, carries: Carries) -> Arc<ClientConfig> {
        match carries {
            Carries::Calls => Arc::clone(&self.calls),
            Carries::Tunnel => Arc::clone(&self.tunnels),
        }
    }
}

impl From<&TlsIdentity> for ClientTls {
    fn from(identity: &TlsIdentity) -> Self {
        let config = |carries: Carries| {
            let mut config = ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&TLS13])
                .expect("the provider has TLS 1.3")
                .with_root_certificates(Arc::clone(&identity.roots))
                .with_client_cert_resolver(identity.own());
            config.alpn_protocols = vec![carries.alpn().to_vec()];
            config.resumption = Resumption::disabled();
            Arc::new(config)
        };
        Self { calls: config(Carries::Calls), tunnels: config(Carries::Tunnel) }
    }
}

/// What went wrong with a certificate, with what helps.
pub(super) fn explained(error: io::Error) -> io::Error {
    let remedy = match error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_)) => {
            "its certificate has to be of the host that is asked for, valid now, and signed by the CA that is given here"
        }
        Some(rustls::Error::AlertReceived(alert)) if is_about_certificates(*alert) => {
            "the certificate that is shown here has to be a client's, valid now, and signed by the CA that is given there"
        }
        _else => return error,
    };
    io::Error::new(error.kind(), format!("{error}; {remedy}"))
}

fn is_about_certificates(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
    )
}

/// Where an agent is reached over TLS: `HOST:PORT`, and its certificate has to be of that host. An IPv6 address stands in
/// brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsAddress {
    pub(super) name: ServerName<'static>,
    pub(super) port: u16,
}

impl TlsAddress {
    /// The host: a name, or an address without brackets.
    pub fn host(&self) -> String {
        self.name.to_str().into_owned()
    }
}

/// What is no address of an agent.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no HOST:PORT, such as host-3.example.com:7443 or [fd00::3]:7443")]
pub struct TlsAddressError(String);

impl FromStr for TlsAddress {
    type Err = TlsAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (host, port) = text.rsplit_once(':')?;
            let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            let name = ServerName::try_from(bare.unwrap_or(host).to_owned()).ok()?;
            let is_ipv6 = name.to_str().contains(':');
            let port = port.parse().ok().filter(|port| *port != 0)?;
            (is_ipv6 == bare.is_some()).then_some(Self { name, port })
        };
        parse().ok_or_else(|| TlsAddressError(text.to_owned()))
    }
}

impl fmt::Display for TlsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host() {
            host if host.contains(':') => write!(f, "[{host}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for text in ["host-3.example.com:7443", "127.0.0.1:1", "[fd00::3]:65535", "localhost:80"] {
            assert_eq!(text.parse::<TlsAddress>().unwrap().to_string(), text);
        }
        for text in
            ["", "host", "host:", ":80", "host:0", "host:65536", "fd00::3:80", "[host]:80", "[127.0.0.1]:80", "a b:80"]
        {
            assert!(text.parse::<TlsAddress>().is_err(), "{text}");
        }
    }
}
