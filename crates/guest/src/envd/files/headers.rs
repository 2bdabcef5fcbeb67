//! The headers of `/files`: what a request asks for, and what an answer says about a file. Pure.

use std::path::Path;

use crate::envd::entry::METADATA_PREFIX;
use crate::envd::files_limits as limits;
use crate::envd::paths;

/// How an answer's body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As the file is: the length is known, and it can be resumed.
    Identity,
    /// Compressed on the way.
    Gzip,
}

/// The bytes a request wants, first and one past the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// The whole file: nothing, or nothing usable, was asked for.
    All,
    /// Part of it: `start < end <= size`.
    Part {
        /// The first byte.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// Nothing of it: beyond its end.
    Unsatisfiable,
}

/// Picks the encoding for an `Accept-Encoding` (empty when absent); `None` when none that we have is acceptable.
///
/// Identity wins unless the client likes gzip better, because only identity has a length and can be resumed. A client
/// that names gzip and nothing else wants gzip.
pub fn encoding(accept: &str) -> Option<Encoding> {
    let wishes: Vec<(&str, f32)> = accept.split(',').map(wish).filter(|(name, _)| !name.is_empty()).collect();
    let weight = |name: &str| wishes.iter().find(|(wanted, _)| wanted.eq_ignore_ascii_case(name)).map(|(_, q)| *q);
    let any = weight("*");
    let gzip = weight("gzip").or(any).unwrap_or(0.0);
    let only_gzip = wishes.len() == 1 && gzip > 0.0 && any.is_none();
    // Not being mentioned does not rule identity out (RFC 9110, 12.5.3).
    let identity = weight("identity").or(any).unwrap_or(if only_gzip { 0.0 } else { 1.0 });
    match (identity, gzip) {
        (identity, gzip) if identity > 0.0 && identity >= gzip => Some(Encoding::Identity),
        (_, gzip) if gzip > 0.0 => Some(Encoding::Gzip),
        (_, _) => None,
    }
}

/// A coding and its weight, as in `gzip;q=0.5`.
fn wish(text: &str) -> (&str, f32) {
    let (name, parameters) = text.split_once(';').unwrap_or((text, ""));
    let q = parameters.trim().strip_prefix("q=").or_else(|| parameters.trim().strip_prefix("Q="));
    let q = q.and_then(|q| q.trim().parse().ok()).filter(|q| (0.0..=1.0).contains(q)).unwrap_or(1.0);
    (name.trim(), q)
}

/// Reads a `Range` header against a size. Several ranges, other units and nonsense mean the whole file, which a server is
/// free to answer.
pub fn range(header: &str, size: u64) -> Range {
    let Some(spec) = header.trim().strip_prefix("bytes=").filter(|spec| !spec.contains(',')) else { return Range::All };
    let Some((first, last)) = spec.split_once('-') else { return Range::All };
    let (first, last) = (first.trim(), last.trim());
    let part = |start: u64, end: u64| if start < end { Range::Part { start, end } } else { Range::Unsatisfiable };
    match (number(first), number(last)) {
        (None, Some(length)) if first.is_empty() => part(size.saturating_sub(length), size),
        (Some(start), None) if last.is_empty() => part(start, size),
        (Some(start), Some(last)) if start <= last => part(start, last.saturating_add(1).min(size)),
        (_, _) => Range::All,
    }
}

/// Digits alone; more than fit are as good as the largest number.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// `inline` and the file's name, as RFC 6266 writes names: a token, a quoted string, or percent-encoded UTF-8.
pub fn content_disposition(path: &Path) -> String {
    let name = paths::name(path).to_string_lossy();
    if name.bytes().all(is_token_byte) {
        format!("inline; filename={name}")
    } else if name.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
        format!("inline; filename=\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        format!("inline; filename*=utf-8''{}", percent_encode(name.as_bytes()))
    }
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn percent_encode(bytes: &[u8]) -> String {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let encode = |byte: &u8| if unreserved(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") };
    bytes.iter().map(encode).collect()
}

/// The bytes that `%41`-style text stands for; a `%` without two digits is itself.
pub fn percent_decode(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let escaped = if *first == b'%' { tail.first_chunk().and_then(hex_byte) } else { None };
        plain.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    plain
}

fn hex_byte(digits: &[u8; 2]) -> Option<u8> {
    let [high, low] = digits.map(|digit| char::from(digit).to_digit(16));
    u8::try_from(high? * 16 + low?).ok()
}

/// The values of a query's parameters, form-decoded to bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// `path`
    pub path: Option<Vec<u8>>,
    /// `username`
    pub username: Option<Vec<u8>>,
    /// `signature`
    pub signature: Option<Vec<u8>>,
    /// `signature_expiration`
    pub signature_expiration: Option<Vec<u8>>,
}

/// Reads a query; the first of several equal parameters counts, unknown ones are ignored.
pub fn query(text: &str) -> Query {
    let mut query = Query::default();
    for pair in text.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let field = match form_decode(name).as_slice() {
            b"path" => &mut query.path,
            b"username" => &mut query.username,
            b"signature" => &mut query.signature,
            b"signature_expiration" => &mut query.signature_expiration,
            _ => continue,
        };
        field.get_or_insert_with(|| form_decode(value));
    }
    query
}

fn form_decode(text: &str) -> Vec<u8> {
    percent_decode(text.replace('+', " ").as_bytes())
}

/// Why an upload's metadata are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// Empty or too long.
    #[error("a metadata key must have 1 to {max} bytes: '{0}'", max = limits::METADATA_KEY_BYTES_MAX)]
    Key(String),
    /// Outside of printable ASCII.
    #[error("the metadata value of '{0}' must be printable ASCII (0x20 to 0x7E)")]
    Value(String),
    /// Too much of it.
    #[error("the metadata is longer than {} bytes", limits::METADATA_BYTES_MAX)]
    TooLong,
}

/// The metadata in `X-Metadata-KEY: value` headers, as attribute names and values; the first of several equal keys counts.
pub fn metadata<'a>(
    headers: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Result<Vec<(String, String)>, MetadataError> {
    let mut found: Vec<(String, String)> = Vec::new();
    for (name, value) in headers {
        let Some(key) = strip_prefix_ignoring_case(name, "x-metadata-").map(str::to_ascii_lowercase) else { continue };
        if key.is_empty() || key.len() > limits::METADATA_KEY_BYTES_MAX {
            return Err(MetadataError::Key(key.chars().take(limits::METADATA_KEY_BYTES_MAX).collect()));
        }
        if found.iter().any(|(known, _)| *known == key) {
            continue;
        }
        let printable = value.iter().all(|byte| (0x20..=0x7E).contains(byte));
        let value = std::str::from_utf8(value).ok().filter(|_| printable);
        let Some(value) = value else { return Err(MetadataError::Value(key)) };
        found.push((key, value.to_owned()));
    }
    let total: usize = found.iter().map(|(key, value)| key.len() + value.len()).sum();
    if total > limits::METADATA_BYTES_MAX { Err(MetadataError::TooLong) } else { Ok(found) }
}

/// The name of the extended attribute that holds a metadata key.
pub fn attribute_name(key: &str) -> String {
    format!("{METADATA_PREFIX}{key}")
}

fn strip_prefix_ignoring_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
}

/// A file's content type: by its extension, else by its first bytes.
pub fn content_type(path: &Path, beginning: &[u8]) -> &'static str {
    let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
    let known = extension.and_then(|extension| BY_EXTENSION.iter().find(|(known, _)| *known == extension));
    known.map_or_else(|| sniff(beginning), |(_, content_type)| content_type)
}

/// What browsers must be told to show or run a file; the rest is known well enough by its bytes.
const BY_EXTENSION: &[(&str, &str)] = &[
    ("avif", "image/avif"),
    ("bin", "application/octet-stream"),
    ("css", "text/css; charset=utf-8"),
    ("csv", "text/csv; charset=utf-8"),
    ("gif", "image/gif"),
    ("gz", "application/gzip"),
    ("htm", "text/html; charset=utf-8"),
    ("html", "text/html; charset=utf-8"),
    ("ico", "image/vnd.microsoft.icon"),
    ("jpeg", "image/jpeg"),
    ("jpg", "image/jpeg"),
    ("js", "text/javascript; charset=utf-8"),
    ("json", "application/json"),
    ("m4a", "audio/mp4"),
    ("md", "text/markdown; charset=utf-8"),
    ("mjs", "text/javascript; charset=utf-8"),
    ("mp3", "audio/mpeg"),
    ("mp4", "video/mp4"),
    ("ogg", "audio/ogg"),
    ("pdf", "application/pdf"),
    ("png", "image/png"),
    ("svg", "image/svg+xml"),
    ("tar", "application/x-tar"),
    ("txt", "text/plain; charset=utf-8"),
    ("wasm", "application/wasm"),
    ("wav", "audio/wav"),
    ("webm", "video/webm"),
    ("webp", "image/webp"),
    ("woff", "font/woff"),
    ("woff2", "font/woff2"),
    ("xml", "text/xml; charset=utf-8"),
    ("yaml", "application/yaml"),
    ("yml", "application/yaml"),
    ("zip", "application/zip"),
];

const BY_BEGINNING: &[(&[u8], &str)] = &[
    (b"%PDF-", "application/pdf"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"PK\x03\x04", "application/zip"),
    (b"\x1f\x8b\x08", "application/x-gzip"),
    (b"<!DOCTYPE html", "text/html; charset=utf-8"),
    (b"<!doctype html", "text/html; charset=utf-8"),
    (b"<html", "text/html; charset=utf-8"),
    (b"<?xml", "text/xml; charset=utf-8"),
];

fn sniff(beginning: &[u8]) -> &'static str {
    let known = BY_BEGINNING.iter().find(|(magic, _)| beginning.trim_ascii_start().starts_with(magic));
    match known {
        Some((_, content_type)) => content_type,
        None if is_text(beginning) => "text/plain; charset=utf-8",
        None => "application/octet-stream",
    }
}

/// UTF-8 without control characters that text has no use for; its last character may be cut off.
fn is_text(beginning: &[u8]) -> bool {
    let valid = match std::str::from_utf8(beginning) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    valid && !beginning.iter().any(|byte| byte.is_ascii_control() && !b"\t\n\x0c\r\x1b".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn encodings_are_picked_as_the_client_likes() {
        use Encoding::{Gzip, Identity};
        for (accept, picked) in [
            ("", Some(Identity)),
            ("gzip", Some(Gzip)),
            ("GZip", Some(Gzip)),
            ("gzip;q=1.0", Some(Gzip)),
            ("gzip;q=0.2", Some(Gzip)),
            (" gzip ; q=0.5 ", Some(Gzip)),
            ("gzip;q=nonsense", Some(Gzip)),
            ("gzip, deflate", Some(Identity)),
            ("gzip, deflate, br, zstd", Some(Identity)),
            ("br", Some(Identity)),
            ("identity", Some(Identity)),
            ("*", Some(Identity)),
            ("gzip;q=0.5, identity;q=1.0", Some(Identity)),
            ("gzip, identity;q=0.5", Some(Gzip)),
            ("gzip, identity", Some(Identity)),
            ("gzip;q=0, identity", Some(Identity)),
            ("gzip;q=0, br", Some(Identity)),
            ("gzip;q=0", Some(Identity)),
            ("identity;q=0, gzip", Some(Gzip)),
            ("*, identity;q=0", Some(Gzip)),
            ("br, *;q=0, gzip", Some(Gzip)),
            ("identity;q=0", None),
            ("br, identity;q=0", None),
            ("*;q=0", None),
            ("gzip;q=0, *;q=0", None),
        ] {
            assert_eq!(encoding(accept), picked, "{accept:?}");
        }
    }

    #[test]
    fn ranges_are_read_against_the_size() {
        let part = |start, end| Range::Part { start, end };
        for (header, size, wanted) in [
            ("bytes=0-", 10, part(0, 10)),
            ("bytes=3-", 10, part(3, 10)),
            ("bytes=3-5", 10, part(3, 6)),
            ("bytes=3-3", 10, part(3, 4)),
            ("bytes=3-99999999999999999999999", 10, part(3, 10)),
            ("bytes=-4", 10, part(6, 10)),
            ("bytes=-40", 10, part(0, 10)),
            ("bytes=-0", 10, Range::Unsatisfiable),
            ("bytes=10-", 10, Range::Unsatisfiable),
            ("bytes=99999999999999999999999-", 10, Range::Unsatisfiable),
            ("bytes=0-", 0, Range::Unsatisfiable),
            ("bytes=5-3", 10, Range::All),
            ("bytes=0-1,3-4", 10, Range::All),
            ("bytes=", 10, Range::All),
            ("bytes=-", 10, Range::All),
            ("bytes=a-b", 10, Range::All),
            ("bytes=+1-2", 10, Range::All),
            ("lines=1-2", 10, Range::All),
            ("", 10, Range::All),
        ] {
            assert_eq!(range(header, size), wanted, "{header:?}");
        }
    }

    #[test]
    fn names_are_written_for_any_reader() {
        for (path, header) in [
            ("/a/plain.txt", "inline; filename=plain.txt"),
            ("/a/two words", "inline; filename=\"two words\""),
            ("/a/q\"uo\\te", "inline; filename=\"q\\\"uo\\\\te\""),
            ("/a/grün", "inline; filename*=utf-8''gr%C3%BCn"),
            ("/a/line\r\nbreak", "inline; filename*=utf-8''line%0D%0Abreak"),
        ] {
            assert_eq!(content_disposition(Path::new(path)), header);
        }
    }

    #[test]
    fn queries_are_form_decoded() {
        let read = query("path=%2Fa%20b+c%2B&username=me&path=second&x=1&signature=v1_a%2Fb&signature_expiration=5");
        assert_eq!(read.path.as_deref(), Some(&b"/a b c+"[..]));
        assert_eq!(read.username.as_deref(), Some(&b"me"[..]));
        assert_eq!(read.signature.as_deref(), Some(&b"v1_a/b"[..]));
        assert_eq!(read.signature_expiration.as_deref(), Some(&b"5"[..]));
        assert_eq!(query("path=%ff%zz%4").path.as_deref(), Some(&b"\xff%zz%4"[..]));
        assert_eq!(query(""), Query::default());
        assert_eq!(query("path").path.as_deref(), Some(&b""[..]));
    }

    #[test]
    fn metadata_are_checked() {
        let read = |headers: &[(&str, &str)]| metadata(headers.iter().map(|(name, value)| (*name, value.as_bytes())));
        let pairs = read(&[("X-Metadata-Author", "me"), ("x-metadata-author", "you"), ("X-Other", "\u{e4}")]).unwrap();
        assert_eq!(pairs, [("author".to_owned(), "me".to_owned())]);
        assert!(matches!(read(&[("X-Metadata-", "x")]), Err(MetadataError::Key(_))));
        assert!(matches!(read(&[("X-Metadata-a", "\u{e4}")]), Err(MetadataError::Value(_))));
        assert!(matches!(read(&[("X-Metadata-a", "a\tb")]), Err(MetadataError::Value(_))));
        let key = |length: usize| format!("x-metadata-{}", "k".repeat(length));
        assert!(read(&[(&key(246), "")]).is_ok());
        assert!(matches!(read(&[(&key(247), "")]), Err(MetadataError::Key(_))));
        assert!(read(&[("x-metadata-k", &"v".repeat(4095))]).is_ok());
        assert_eq!(read(&[("x-metadata-k", &"v".repeat(4096))]), Err(MetadataError::TooLong));
    }

    #[test]
    fn content_types_come_from_the_name_then_the_bytes() {
        for (path, beginning, wanted) in [
            ("/a.html", &b""[..], "text/html; charset=utf-8"),
            ("/a.PNG", b"", "image/png"),
            ("/a.json", b"{}", "application/json"),
            ("/a", b"", "text/plain; charset=utf-8"),
            ("/a", b"plain gr\xc3", "text/plain; charset=utf-8"),
            ("/a", b"\x89PNG\r\n\x1a\nxx", "image/png"),
            ("/a", b"  <!DOCTYPE html>", "text/html; charset=utf-8"),
            ("/a.unknown", b"\x00\x01", "application/octet-stream"),
            ("/a", b"\xff\xfe\xfd", "application/octet-stream"),
            ("/.html", b"x", "text/plain; charset=utf-8"),
        ] {
            assert_eq!(content_type(Path::new(path), beginning), wanted, "{path}");
        }
    }

    proptest! {
        #[test]
        fn what_is_percent_encoded_is_read_back(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(percent_decode(percent_encode(&bytes).as_bytes()), bytes);
        }

        #[test]
        fn a_range_is_inside_of_the_file(header in "(bytes=)?[0-9]{0,4}-?[0-9]{0,4}", size in 0u64..2000) {
            if let Range::Part { start, end } = range(&header, size) {
                prop_assert!(start < end && end <= size);
            }
        }

        #[test]
        fn a_name_never_breaks_the_header(name in "[^/]{1,30}") {
            let header = content_disposition(Path::new(&format!("/{name}")));
            prop_assert!(header.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{header}");
        }
    }
}
