//! Reading a Debian package: an `ar` archive whose member `data.tar.*` holds the files.
//!
//! Nothing is unpacked to disk: a caller picks the paths it wants and gets their contents, each and all within limits.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Contents taken from one package: a Debian kernel with all its modules is 110 MiB.
const TAKEN_MAX: u64 = 1 << 30;

const AR_MAGIC: &[u8; 8] = b"!<arch>\n";
const AR_HEADER: usize = 60;

/// Why a package cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    /// The file cannot be read.
    #[error("cannot read the Debian package {}", path.display())]
    Read {
        /// The package.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not a Debian package, or a damaged one.
    #[error("{} is no Debian package: {reason}; remove it, and it is fetched again", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// A regular file or a link of a package.
#[derive(Debug, PartialEq, Eq)]
pub struct DebFile {
    /// Its path without leading `./`.
    pub path: String,
    /// Its content.
    pub content: Vec<u8>,
}

/// The contents of the regular files of a package whose path `wants` approves, in the package's order.
pub fn read(package: &Path, wants: impl Fn(&str) -> bool) -> Result<Vec<DebFile>, DebError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::Other => {
            DebError::Malformed { path: package.to_owned(), reason: source.to_string() }
        }
        _ => DebError::Read { path: package.to_owned(), source },
    };
    let file = File::open(package).map_err(failed)?;
    let (name, member) = find_data(BufReader::new(file)).map_err(failed)?;
    unpacked(&name, member).and_then(|data| take(data, wants)).map_err(failed)
}

/// The name of the data member, and a reader of it.
fn find_data(mut archive: BufReader<File>) -> io::Result<(String, impl io::BufRead)> {
    let mut magic = [0; AR_MAGIC.len()];
    archive.read_exact(&mut magic)?;
    if &magic != AR_MAGIC {
        return Err(invalid("it does not begin as an ar archive"));
    }
    loop {
        let mut header = [0; AR_HEADER];
        archive.read_exact(&mut header).map_err(|_| invalid("it has no data.tar member"))?;
        let (name, size) = member(&header).ok_or_else(|| invalid("a member's header is damaged"))?;
        if name.starts_with("data.tar") {
            return Ok((name, BufReader::new(archive.take(size))));
        }
        // Members begin at even offsets.
        let skip = i64::try_from(size.next_multiple_of(2)).map_err(|_| invalid("a member is too large"))?;
        archive.seek(SeekFrom::Current(skip))?;
    }
}

fn member(header: &[u8; AR_HEADER]) -> Option<(String, u64)> {
    if header[58..60] != *b"`\n" {
        return None;
    }
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(|text| text.trim_end().to_owned());
    let size = text(&header[48..58])?.parse::<u32>().ok()?;
    Some((text(&header[..16])?.trim_end_matches('/').to_owned(), size.into()))
}

fn unpacked<'a>(name: &str, member: impl io::BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match name {
        "data.tar" => Box::new(member),
        "data.tar.gz" => Box::new(flate2::bufread::GzDecoder::new(member)),
        "data.tar.xz" => Box::new(liblzma::bufread::XzDecoder::new(member)),
        "data.tar.zst" => Box::new(zstd::stream::read::Decoder::with_buffer(member)?),
        other => return Err(invalid(&format!("`{other}` is packed in an unknown way"))),
    })
}

fn take(data: impl Read, wants: impl Fn(&str) -> bool) -> io::Result<Vec<DebFile>> {
    let mut files = Vec::new();
    let mut left = TAKEN_MAX;
    for entry in tar::Archive::new(data).entries()? {
        let mut entry = entry?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        if !entry.header().entry_type().is_file() || !wants(&path) {
            continue;
        }
        left = left.checked_sub(entry.size()).ok_or_else(|| invalid("it holds more than any package of ours"))?;
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        files.push(DebFile { path, content });
    }
    Ok(files)
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_owned())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::io::Write;

    /// A package with these files, its data packed as `suffix` says.
    pub fn package(suffix: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut data = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            data.append_data(&mut header, format!("./{path}"), *content).unwrap();
        }
        let data = data.into_inner().unwrap();
        let packed = match suffix {
            "" => data,
            ".gz" => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&data).unwrap();
                encoder.finish().unwrap()
            }
            ".xz" => {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
                encoder.write_all(&data).unwrap();
                encoder.finish().unwrap()
            }
            ".zst" => zstd::encode_all(&data[..], 1).unwrap(),
            other => panic!("{other}"),
        };
        let mut archive = AR_MAGIC.to_vec();
        for (name, content) in
            [("debian-binary", &b"2.0\n"[..]), ("control.tar.xz", b"odd"), (&format!("data.tar{suffix}"), &packed)]
        {
            writeln!(archive, "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`", 0, 0, 0, 100_644, content.len()).unwrap();
            archive.extend(content);
            if content.len() % 2 == 1 {
                archive.push(b'\n');
            }
        }
        archive
    }

    fn read_bytes(bytes: &[u8]) -> Result<Vec<DebFile>, DebError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read(file.path(), |path| path.starts_with("boot/"))
    }

    #[test]
    fn gives_the_wanted_files_of_every_packing() {
        let files: [(&str, &[u8]); 3] = [("boot/vmlinuz-1", b"kernel"), ("etc/x", b"no"), ("boot/empty", b"")];
        for suffix in ["", ".gz", ".xz", ".zst"] {
            let found = read_bytes(&package(suffix, &files)).unwrap();
            let found: Vec<_> = found.iter().map(|file| (file.path.as_str(), file.content.as_slice())).collect();
            assert_eq!(found, [files[0], files[2]], "{suffix}");
        }
    }

    #[test]
    fn what_is_damaged_is_refused_with_the_reason() {
        let package = package(".xz", &[("boot/vmlinuz", &[7; 100_000])]);
        for (bytes, reason) in [
            (&b"#!/bin/sh, as long as a header"[..], "does not begin as an ar archive"),
            (&package[..8 + 60 + 4], "no data.tar member"),
            (&package[..package.len() - 40], ""),
        ] {
            let error = read_bytes(bytes).unwrap_err();
            assert!(matches!(&error, DebError::Malformed { .. }), "{error}");
            assert!(error.to_string().contains(reason), "{error}");
        }
    }
}
