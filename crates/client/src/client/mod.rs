//! The client, and its methods: one for each route.
//!
//! [`call`] makes a request of them and reads the answer; the rest says what is asked for. Lists come in pages: each has a
//! method for one page, and an `all_…` that follows them to the end.

mod call;
mod files;
mod keys;
mod pages;
mod sandboxes;
mod server;
mod sockets;
mod templates;

use std::fmt;
use std::sync::Arc;

use http::HeaderValue;
use reqwest::{Method, Url, redirect};

use crate::error::ClientError;
use crate::limits;

pub use files::{Download, FileRange, FileTarget};
pub use pages::ListQuery;
pub use sandboxes::SandboxQuery;
pub use sockets::TerminalRequest;
pub use templates::SnapshotQuery;

pub(crate) use call::{Answer, Asked, Call};

/// A server, and the key that it is asked with. Cheap to clone; connections are kept and shared.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    /// Always ends with a slash.
    base: Url,
    /// For what people read: where it is, without anything secret.
    server: Arc<str>,
    key: Option<HeaderValue>,
    http: reqwest::Client,
    /// A WebSocket begins as HTTP/1.1, and never as HTTP/2 here.
    http1: reqwest::Client,
}

impl Client {
    /// A client of the server at `url`, such as `https://wrenn.example.com`. Nothing is connected yet. Without a key only what
    /// needs none can be asked.
    pub fn new(url: &str, key: Option<&str>) -> Result<Self, ClientError> {
        let base = base(url)?;
        let server = base.as_str().trim_end_matches('/').into();
        let key = key.map(checked_key).transpose()?;
        provide_cryptography();
        let (http, http1) = (build(&base, false)?, build(&base, true)?);
        Ok(Self(Arc::new(Inner { base, server, key, http, http1 })))
    }

    /// Where the server is.
    pub fn server(&self) -> &str {
        &self.0.server
    }

    fn get(&self, path: &[&str]) -> Result<Call, ClientError> {
        self.call(Method::GET, path)
    }

    fn post(&self, path: &[&str]) -> Result<Call, ClientError> {
        self.call(Method::POST, path)
    }

    fn delete(&self, path: &[&str]) -> Result<Call, ClientError> {
        self.call(Method::DELETE, path)
    }

    fn call(&self, method: Method, path: &[&str]) -> Result<Call, ClientError> {
        Call::new(self, method, path)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("server", &self.0.server).finish_non_exhaustive()
    }
}

fn base(url: &str) -> Result<Url, ClientError> {
    let wrong = |why: &str| ClientError::Url { url: url.to_owned(), why: why.to_owned() };
    let mut base = Url::parse(url.trim()).map_err(|error| wrong(&error.to_string()))?;
    if !matches!(base.scheme(), "http" | "https") {
        return Err(wrong("it begins with neither http:// nor https://"));
    }
    if !base.username().is_empty() || base.password().is_some() {
        // Not shown again: it may be a secret.
        return Err(ClientError::Url {
            url: "…@…".to_owned(),
            why: "it names a user; the key is given apart".to_owned(),
        });
    }
    if base.query().is_some() || base.fragment().is_some() {
        return Err(wrong("it has a query or a fragment"));
    }
    if !base.path().ends_with('/') {
        let path = format!("{}/", base.path());
        base.set_path(&path);
    }
    Ok(base)
}

/// Only what could be a header is looked at: whether it is a key that is known says the server.
fn checked_key(key: &str) -> Result<HeaderValue, ClientError> {
    let mut value = HeaderValue::from_str(key.trim()).map_err(|_not_a_header| ClientError::Key)?;
    if value.is_empty() {
        return Err(ClientError::Key);
    }
    value.set_sensitive(true);
    Ok(value)
}

/// Once for the process; where the program has chosen already, its choice stays.
fn provide_cryptography() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Lost only against another thread that has just done the same.
        drop(rustls::crypto::ring::default_provider().install_default());
    }
}

fn build(base: &Url, is_http1: bool) -> Result<reqwest::Client, ClientError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("wrenn-client/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(limits::CONNECT_LIMIT)
        .tcp_keepalive(limits::KEEPALIVE)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(limits::KEEPALIVE)
        .redirect(redirect::Policy::none());
    if is_http1 {
        builder = builder.http1_only();
    }
    if base.scheme() == "http" {
        // No certificate is ever looked at, and a system may have none.
        builder = builder.tls_certs_only([]);
    }
    if is_loopback(base) {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| ClientError::Set { source: error.into() })
}

fn is_loopback(base: &Url) -> bool {
    let Some(host) = base.host_str() else { return false };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests;
