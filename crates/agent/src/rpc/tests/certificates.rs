//! Certificates for tests, made on the spot.

use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};
use rustls::RootCertStore;
use tempfile::TempDir;

use crate::rpc::{ClientTls, ServerTls, TlsFiles, TlsIdentity};

/// A CA, and a folder for what it has signed.
pub(super) struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
}

impl Ca {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        // No two have the same name.
        params.distinguished_name.push(DnType::CommonName, dir.path().to_str().unwrap());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let ca = Self { issuer, dir };
        std::fs::write(ca.file("ca.pem"), ca.issuer.pem()).unwrap();
        ca
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The files of an agent on `host`.
    pub fn agent(&self, host: &str) -> TlsFiles {
        self.sign("agent", CertificateParams::new([host.to_owned()]).unwrap(), ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// The files of a client.
    pub fn visitor(&self) -> TlsFiles {
        self.sign("client", CertificateParams::default(), ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// The files of a client whose time is over.
    pub fn late_visitor(&self) -> TlsFiles {
        let mut params = CertificateParams::default();
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        self.sign("late", params, ExtendedKeyUsagePurpose::ClientAuth)
    }

    pub fn server(&self, host: &str) -> ServerTls {
        ServerTls::from(&TlsIdentity::read(&self.agent(host)).unwrap())
    }

    pub fn client(&self) -> ClientTls {
        ClientTls::from(&TlsIdentity::read(&self.visitor()).unwrap())
    }

    /// Whom a client believes.
    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        roots
    }

    fn sign(&self, name: &str, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> TlsFiles {
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let files = TlsFiles {
            cert: self.file(&format!("{name}.pem")),
            key: self.file(&format!("{name}.key")),
            ca: self.file("ca.pem"),
        };
        std::fs::write(&files.cert, cert.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }
}
