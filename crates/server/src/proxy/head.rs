//! The heads of requests and answers, as they are passed on. Pure.
//!
//! ```text
//!   client ── hop-by-hop headers, our own secrets: stay here ──► guest       Host: localhost:PORT, X-Forwarded-*
//!   client ◄── hop-by-hop headers, our own words: stay here ──── guest
//! ```
//!
//! Framing is never copied: `Transfer-Encoding` goes, and each side's length is what its own parser found. So no two readers can
//! disagree about where a request ends.

use std::net::{IpAddr, SocketAddr};

use axum::extract::ConnectInfo;
use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Scheme};
use http::{Method, Request, Uri, Version, request, response};
use wrenn_client::types::Code;
use wrenn_proto::envd;

use super::limits;
use super::refused::{PROXY_ERROR_HEADER, Refused};
use super::target::Target;

/// What the guest's agent asks of everybody who calls it.
const ACCESS_TOKEN: HeaderName = HeaderName::from_static("x-access-token");
/// The secrets between a client and this server, which whatever runs in a guest must not learn.
const SECRETS: [HeaderName; 3] = [
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-wrenn-traffic-token"),
    HeaderName::from_static("e2b-traffic-access-token"),
];
/// What our own keys begin with, in an `Authorization: Bearer` or a subprotocol.
const KEY_PREFIXES: [&str; 2] = ["wrn_", "e2b_"];

/// Headers that are about one connection (RFC 9110, 7.6.1, and what was seen in the wild).
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// How a request came to this server: an extension that the listener puts into it. Without one, the address is that of the
/// connection (`ConnectInfo`), and the scheme `http`.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Who is at the other end.
    pub peer: Option<IpAddr>,
    /// `http` or `https`, as the client sees it.
    pub scheme: Scheme,
}

impl Arrival {
    fn of(extensions: &http::Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or_else(|| Self {
            peer: extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip()),
            scheme: Scheme::HTTP,
        })
    }
}

/// How the guest is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Nearly always.
    Http1,
    /// Without asking first: gRPC.
    Http2,
}

/// A request as the guest will see it, but for its body.
#[derive(Clone, Debug)]
pub struct Head {
    /// How it is sent.
    pub protocol: Protocol,
    /// Whether the connection may become another one.
    pub upgrade: bool,
    /// Whether the body waits for `100 Continue`.
    pub expects_continue: bool,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

impl Head {
    /// From a client's request.
    pub fn to_guest(asked: &request::Parts, target: &Target) -> Result<Self, Refused> {
        within_limits(asked)?;
        let upgrade = upgrade_of(asked);
        let protocol = if upgrade.is_none() && wants_http2(asked) { Protocol::Http2 } else { Protocol::Http1 };
        let mut headers = asked.headers.clone();
        remove_hop_by_hop(&mut headers);
        remove_secrets(&mut headers);
        join_cookies(&mut headers);
        add_forwarded(&mut headers, asked);
        let expects_continue = expects_continue(asked, protocol);
        if !expects_continue {
            headers.remove(header::EXPECT);
        }
        let trailers = names_trailers(&asked.headers);
        add_hop_by_hop(&mut headers, protocol, upgrade.as_ref(), trailers);
        let method = asked.method.clone();
        let uri = uri(asked, target, protocol);
        match protocol {
            Protocol::Http1 => drop(headers.insert(header::HOST, host(target))),
            // It is in the address.
            Protocol::Http2 => drop(headers.remove(header::HOST)),
        }
        let head = Self { protocol, upgrade: upgrade.is_some(), expects_continue, method, uri, headers };
        head.has_access_token(target).map(|()| head)
    }

    /// Whether asking twice is as good as asking once (RFC 9110, 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        self.method.is_idempotent()
    }

    /// With a body, to be sent.
    pub fn request<B>(&self, body: B) -> Request<B> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        *request.version_mut() = match self.protocol {
            Protocol::Http1 => Version::HTTP_11,
            Protocol::Http2 => Version::HTTP_2,
        };
        request
    }

    /// The guest's agent checks the token; a request that brings none does not even get there. A signed address of a file and
    /// the question for its health need none.
    fn has_access_token(&self, target: &Target) -> Result<(), Refused> {
        let signed = self.uri.path() == "/files"
            && self.uri.query().is_some_and(|query| query.split('&').any(|pair| pair.starts_with("signature=")));
        let health = self.method == Method::GET && self.uri.path() == "/health";
        if target.port != envd::PORT || self.headers.contains_key(ACCESS_TOKEN) || signed || health {
            return Ok(());
        }
        Err(Refused::new(Code::Unauthenticated, "a call of the guest's agent needs the sandbox's access token")
            .with_remedy("send the sandbox's access_token as header X-Access-Token"))
    }
}

/// An answer's head, as the client will see it. `upgraded`: the connection becomes another one.
pub fn to_client(answer: &mut response::Parts, upgraded: bool) {
    let headers = &mut answer.headers;
    let upgrade = headers.get(header::UPGRADE).cloned().filter(|_| upgraded);
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    remove_hop_by_hop(headers);
    headers.remove(PROXY_ERROR_HEADER);
    if let Some(upgrade) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, upgrade);
    }
    answer.version = Version::default();
    // What the parser noted of the guest's connection is nothing for the client's.
    answer.extensions.clear();
}

fn within_limits(asked: &request::Parts) -> Result<(), Refused> {
    if asked.method == Method::CONNECT {
        return Err(Refused::new(Code::MethodNotAllowed, "CONNECT is not passed on to sandboxes")
            .with_remedy("open a tunnel with GET /v1/sandboxes/ID/tunnel/PORT"));
    }
    let path = asked.uri.path_and_query().map_or(0, |path| path.as_str().len());
    let headers: usize = asked.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if path + headers > limits::REQUEST_HEAD_BYTES_MAX {
        let message = format!("the request's head is larger than {} bytes", limits::REQUEST_HEAD_BYTES_MAX);
        let status = http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Err(Refused { status, ..Refused::new(Code::TooLarge, message) });
    }
    Ok(())
}

/// What an HTTP/1.1 client wants its connection to become. Not HTTP/2: its requests would pass by all that is decided here.
fn upgrade_of(asked: &request::Parts) -> Option<HeaderValue> {
    let asks =
        asked.version == Version::HTTP_11 && tokens(&asked.headers, header::CONNECTION).any(|it| it == "upgrade");
    let wanted: Vec<_> = values(&asked.headers, header::UPGRADE).filter(|name| !names_http2(name)).collect();
    HeaderValue::from_str(&wanted.join(", ")).ok().filter(|value| asks && !value.is_empty())
}

fn names_http2(protocol: &str) -> bool {
    let protocol = protocol.to_ascii_lowercase();
    ["h2", "h2c", "http", "tls"].contains(&protocol.split('/').next().unwrap_or_default())
}

fn wants_http2(asked: &request::Parts) -> bool {
    let kind = asked.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    is_grpc(kind) || (asked.version == Version::HTTP_2 && names_trailers(&asked.headers))
}

/// gRPC proper; gRPC-Web is made for HTTP/1.1.
fn is_grpc(content_type: &str) -> bool {
    const GRPC: &str = "application/grpc";
    let is = content_type.get(..GRPC.len()).is_some_and(|start| start.eq_ignore_ascii_case(GRPC));
    is && matches!(content_type.as_bytes().get(GRPC.len()), None | Some(b'+' | b';' | b' '))
}

/// Whether the client takes trailers.
fn names_trailers(headers: &HeaderMap) -> bool {
    tokens(headers, header::TE).any(|token| token == "trailers")
}

/// A guest that speaks HTTP/2 is not asked: there the flow control does it.
fn expects_continue(asked: &request::Parts, protocol: Protocol) -> bool {
    asked.version == Version::HTTP_11
        && protocol == Protocol::Http1
        && tokens(&asked.headers, header::EXPECT).any(|token| token == "100-continue")
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<_> = tokens(headers, header::CONNECTION).collect();
    for name in named {
        headers.remove(name.as_str());
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// What is said anew to the guest's end of the connection.
fn add_hop_by_hop(headers: &mut HeaderMap, protocol: Protocol, upgrade: Option<&HeaderValue>, trailers: bool) {
    if let Some(upgrade) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, upgrade.clone());
    }
    if trailers && upgrade.is_none() {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        if protocol == Protocol::Http1 {
            headers.insert(header::CONNECTION, HeaderValue::from_static("TE"));
        }
    }
}

fn remove_secrets(headers: &mut HeaderMap) {
    for name in &SECRETS {
        headers.remove(name);
    }
    retain(headers, header::AUTHORIZATION, |value| (!is_our_bearer(value)).then(|| value.clone()));
    retain(headers, header::SEC_WEBSOCKET_PROTOCOL, without_our_key);
}

fn is_our_bearer(value: &HeaderValue) -> bool {
    let text = String::from_utf8_lossy(value.as_bytes());
    let Some((scheme, key)) = text.trim_start().split_once([' ', '\t']) else { return false };
    scheme.eq_ignore_ascii_case("bearer") && is_our_key(key.trim_start())
}

fn is_our_key(text: &str) -> bool {
    KEY_PREFIXES.iter().any(|prefix| text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix)))
}

/// A browser's WebSocket carries a key as a subprotocol, `key.wrn_…`.
fn without_our_key(value: &HeaderValue) -> Option<HeaderValue> {
    let ours = |name: &&str| name.strip_prefix("key.").is_some_and(is_our_key);
    let Ok(text) = value.to_str() else { return Some(value.clone()) };
    let names: Vec<_> = text.split(',').map(str::trim).collect();
    if !names.iter().any(ours) {
        return Some(value.clone());
    }
    let kept: Vec<_> = names.into_iter().filter(|name| !ours(name)).collect();
    HeaderValue::from_str(&kept.join(", ")).ok().filter(|value| !value.is_empty())
}

/// Replaces each value of a header, or removes it.
fn retain(headers: &mut HeaderMap, name: HeaderName, keep: impl Fn(&HeaderValue) -> Option<HeaderValue>) {
    let Entry::Occupied(entry) = headers.entry(name.clone()) else { return };
    let (_name, values) = entry.remove_entry_mult();
    let kept: Vec<_> = values.filter_map(|value| keep(&value)).collect();
    for value in kept {
        headers.append(name.clone(), value);
    }
}

/// HTTP/2 has a header for each crumb; HTTP/1.1 has one for all (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1 {
        let joined = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])).expect("values and `; ` make a value");
        headers.insert(header::COOKIE, joined);
    }
}

/// Who asked, and for what host. What a client says of its own host and scheme is replaced: the guest may believe these. The list
/// of addresses goes on, as everywhere.
fn add_forwarded(headers: &mut HeaderMap, asked: &request::Parts) {
    let arrival = Arrival::of(&asked.extensions);
    headers.remove(header::FORWARDED);
    headers.remove(FORWARDED_HOST);
    if let Some(host) = asked_host(asked) {
        headers.insert(FORWARDED_HOST, host);
    }
    let scheme = HeaderValue::from_str(arrival.scheme.as_str()).expect("a scheme is a word");
    headers.insert(FORWARDED_PROTO, scheme);
    if let Some(peer) = arrival.peer {
        let peer = peer.to_canonical().to_string();
        let list: Vec<_> = values(headers, FORWARDED_FOR).chain([peer]).collect();
        headers
            .insert(FORWARDED_FOR, HeaderValue::from_str(&list.join(", ")).expect("texts and addresses make a text"));
    }
}

/// HTTP/2 has the host in the address, HTTP/1.1 in a header.
fn asked_host(asked: &request::Parts) -> Option<HeaderValue> {
    let authority = asked.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    authority.or_else(|| asked.headers.get(header::HOST).cloned())
}

fn host(target: &Target) -> HeaderValue {
    HeaderValue::from_str(&format!("localhost:{}", target.port)).expect("a number makes a host")
}

/// HTTP/1.1 asks for a path alone, HTTP/2 for a whole address.
fn uri(asked: &request::Parts, target: &Target, protocol: Protocol) -> Uri {
    let path = asked.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    match protocol {
        Protocol::Http1 => Uri::from(path),
        Protocol::Http2 => {
            let uri = Uri::builder()
                .scheme(Scheme::HTTP)
                .authority(format!("localhost:{}", target.port))
                .path_and_query(path);
            uri.build().expect("scheme, authority and path make an address")
        }
    }
}

/// The elements of all of a header's lists, in lower case.
fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = String> {
    values(headers, name).map(|token| token.to_ascii_lowercase())
}

/// The elements of all of a header's lists. A value that is no text has none.
fn values(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = String> {
    let texts = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).map(str::trim).filter(|element| !element.is_empty()).map(str::to_owned)
}
