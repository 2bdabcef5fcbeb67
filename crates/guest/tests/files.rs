//! The contract of `/files` and of the file system service, row by row, on the real envd.

mod common;
mod plain;

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use flate2::Compression;
use flate2::read::{GzDecoder, GzEncoder};
use rustix::fs::inotify;
use rustix::fs::{CWD, Mode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use wrenn_proto::envd::WHOLE_HEADER;

use plain::{Answer, Call, Envd, Me, Streamed, TOKEN, encode, eventually};

/// A directory on the disk of the build (tmpfs may know no extended attributes), links resolved, gone when dropped.
fn world() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = fs::canonicalize(dir.path()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    (dir, path)
}

fn target(path: &Path) -> String {
    format!("/files?path={}", encode(path.as_os_str().as_encoded_bytes()))
}

fn get(envd: &Envd, path: &Path) -> Answer {
    Call::new("GET", target(path)).token().send(envd.port)
}

/// An upload of the octet-stream kind; `extra` headers may say more.
fn put(envd: &Envd, target: &str, body: &[u8], extra: &[(&str, &str)]) -> Answer {
    let call = Call::new("POST", target).token().header("content-type", "application/octet-stream");
    extra.iter().fold(call, |call, (name, value)| call.header(name, value)).body(body).send(envd.port)
}

/// A multipart upload of parts: field, filename, contents.
fn post_form(envd: &Envd, target: &str, parts: &[(&str, Option<&str>, &[u8])], extra: &[(&str, &str)]) -> Answer {
    let mut body = Vec::new();
    for (field, filename, contents) in parts {
        let filename = filename.map(|name| format!("; filename=\"{name}\"")).unwrap_or_default();
        write!(body, "--frontier\r\nContent-Disposition: form-data; name=\"{field}\"{filename}\r\n\r\n").unwrap();
        body.extend_from_slice(contents);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--frontier--\r\n");
    let call = Call::new("POST", target).token().header("content-type", "multipart/form-data; boundary=frontier");
    extra.iter().fold(call, |call, (name, value)| call.header(name, value)).body(&body).send(envd.port)
}

fn assert_error(answer: &Answer, status: u16, message: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), "application/json; charset=utf-8");
    assert_eq!(answer.json()["code"], status);
    let text = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(text.contains(message), "{text:?} does not hold {message:?}");
}

fn sign(path: &str, operation: &str, user: &str, token: &str, expiration: Option<i64>) -> String {
    let expiration = expiration.map(|seconds| format!(":{seconds}")).unwrap_or_default();
    let digest = Sha256::digest(format!("{path}:{operation}:{user}:{token}{expiration}"));
    format!("v1_{}", STANDARD_NO_PAD.encode(digest))
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut compressed = Vec::new();
    GzEncoder::new(data, Compression::fast()).read_to_end(&mut compressed).unwrap();
    compressed
}

mod access {
    use super::*;

    #[test]
    fn before_init_nothing_is_let_in() {
        let (_dir, top) = world();
        fs::write(top.join("file"), "secret").unwrap();
        let envd = Envd::start();
        let path = target(&top.join("file"));
        let signed = sign(top.join("file").to_str().unwrap(), "read", "", "", None);
        for call in [
            Call::new("GET", path.clone()),
            Call::new("GET", path.clone()).header("x-access-token", ""),
            Call::new("GET", path.clone()).token(),
            Call::new("GET", format!("{path}&signature={}", encode(signed))),
            Call::new("POST", path).header("content-type", "application/octet-stream").body(b"x"),
        ] {
            assert_error(&call.send(envd.port), 401, "");
        }
        let rpc = envd.rpc("/filesystem.Filesystem/Stat", "", &json!({"path": "/"}));
        assert_eq!(rpc.status, 401, "{}", rpc.text());
        assert_eq!(fs::read(top.join("file")).unwrap(), b"secret");
    }

    #[test]
    fn a_token_needs_no_signature_and_a_wrong_one_is_not_saved_by_one() {
        let (_dir, top) = world();
        fs::write(top.join("file"), "x").unwrap();
        let envd = Envd::ready();
        let path = target(&top.join("file"));
        assert_eq!(Call::new("GET", path.clone()).token().send(envd.port).status, 200);
        assert_eq!(Call::new("GET", format!("{path}&signature=rubbish")).token().send(envd.port).status, 200);
        let signature = encode(sign(top.join("file").to_str().unwrap(), "read", "", TOKEN, None));
        let call = Call::new("GET", format!("{path}&signature={signature}")).header("x-access-token", "wrong");
        assert_error(&call.send(envd.port), 401, "X-Access-Token");
        assert_error(&Call::new("GET", path).send(envd.port), 401, "missing signature query parameter");
    }

    #[test]
    fn signed_urls_open_one_file_for_one_operation_in_time() {
        let (_dir, top) = world();
        let path = top.join("a b+c");
        fs::write(&path, "x").unwrap();
        let envd = Envd::ready();
        let text = path.to_str().unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
        let read = |signature: String, rest: &str| {
            let query = format!("{}&signature={}{rest}", target(&path), encode(signature));
            Call::new("GET", query).send(envd.port)
        };
        assert_eq!(read(sign(text, "read", "", TOKEN, None), "").text(), "x");
        let me = Me::get().name;
        assert_eq!(read(sign(text, "read", &me, TOKEN, None), &format!("&username={me}")).status, 200);
        let (late, early) = (now + 600, now - 1);
        let expiring = format!("&signature_expiration={late}");
        assert_eq!(read(sign(text, "read", "", TOKEN, Some(late)), &expiring).status, 200);

        let expired = read(sign(text, "read", "", TOKEN, Some(early)), &format!("&signature_expiration={early}"));
        assert_error(&expired, 401, "");
        assert_eq!(expired.json(), json!({"code": 401, "message": "signature is already expired"}));

        let invalid = "invalid signature";
        assert_error(&read(sign(text, "write", "", TOKEN, None), ""), 401, invalid);
        assert_error(&read(sign(text, "read", "", "other", None), ""), 401, invalid);
        assert_error(&read(sign(text, "read", "", TOKEN, None), &format!("&username={me}")), 401, invalid);
        assert_error(&read(sign(text, "read", "", TOKEN, None), &expiring), 401, invalid);
        assert_error(&read(sign("/other", "read", "", TOKEN, None), ""), 401, invalid);
    }

    #[test]
    fn signed_uploads_may_leave_the_name_to_the_form() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        let name = top.join("new").to_str().unwrap().to_owned();
        let body =
            format!("--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\nhi\r\n--b--");
        let query = format!("/files?signature={}", encode(sign("", "write", "", TOKEN, None)));
        let call = Call::new("POST", query).header("content-type", "multipart/form-data; boundary=b");
        let answer = call.body(body.as_bytes()).send(envd.port);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(fs::read_to_string(name).unwrap(), "hi");
    }

    #[test]
    fn unknown_users_are_unauthorized() {
        let envd = Envd::ready();
        let query = "/files?path=/etc/passwd&username=nosuchuser";
        let message = "invalid username: 'nosuchuser'";
        assert_error(&Call::new("GET", query).token().send(envd.port), 401, message);
        assert_error(&put(&envd, "/files?path=/tmp/never&username=nosuchuser", b"", &[]), 401, message);
    }
}

mod download {
    use super::*;

    #[test]
    fn a_file_comes_with_its_headers() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        fs::write(top.join("page.html"), "<p>hi").unwrap();
        fs::write(top.join("bytes"), [0, 1, 2, 255]).unwrap();
        let page = get(&envd, &top.join("page.html"));
        assert_eq!((page.status, page.text().as_str()), (200, "<p>hi"));
        for (name, value) in [
            ("content-type", "text/html; charset=utf-8"),
            ("content-disposition", "inline; filename=page.html"),
            ("content-length", "5"),
            ("accept-ranges", "bytes"),
            ("content-encoding", ""),
        ] {
            assert_eq!(page.header(name), value, "{name}");
        }
        assert!(
            page.headers.iter().any(|(name, value)| name == "vary" && value.to_lowercase().contains("accept-encoding"))
        );
        let bytes = get(&envd, &top.join("bytes"));
        assert_eq!(
            (bytes.header("content-type"), bytes.body.as_slice()),
            ("application/octet-stream", &[0, 1, 2, 255][..])
        );
    }

    #[test]
    fn an_empty_file_has_a_length_of_0() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        fs::write(top.join("empty"), "").unwrap();
        let answer = get(&envd, &top.join("empty"));
        assert_eq!((answer.status, answer.header("content-length"), answer.body.len()), (200, "0", 0));
        let ranged = Call::new("GET", target(&top.join("empty"))).token().header("range", "bytes=0-").send(envd.port);
        assert_eq!((ranged.status, ranged.header("content-range")), (416, "bytes */0"));
    }

    #[test]
    fn head_tells_the_same_without_the_bytes() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        fs::write(top.join("file"), vec![b'x'; 1_000_000]).unwrap();
        let answer = Call::new("HEAD", target(&top.join("file"))).token().send(envd.port);
        assert_eq!((answer.status, answer.header("content-length")), (200, "1000000"));
    }

    #[test]
    fn only_regular_files_are_read_and_nothing_is_waited_for() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        rustix::fs::mkfifoat(CWD, top.join("fifo"), Mode::from_raw_mode(0o666)).unwrap();
        let _listener = UnixListener::bind(top.join("socket")).unwrap();
        symlink("fifo", top.join("to-fifo")).unwrap();
        symlink("nothing", top.join("dangling")).unwrap();
        symlink("loop", top.join("loop")).unwrap();
        let shown = top.display();
        for (name, status, message) in [
            ("", 400, format!("path '{shown}' is a directory")),
            ("fifo", 400, format!("path '{shown}/fifo' is not a regular file")),
            ("to-fifo", 400, format!("path '{shown}/to-fifo' is not a regular file")),
            ("socket", 400, format!("path '{shown}/socket' is not a regular file")),
            ("missing", 404, format!("path '{shown}/missing' does not exist")),
            ("no/where", 404, format!("path '{shown}/no/where' does not exist")),
            ("fifo/below", 404, format!("path '{shown}/fifo/below' does not exist")),
            ("dangling", 404, format!("path '{shown}/dangling' does not exist")),
            ("loop", 400, "cannot read".into()),
        ] {
            assert_error(&get(&envd, &top.join(name)), status, &message);
        }
        assert_error(&get(&envd, Path::new("/dev/zero")), 400, "path '/dev/zero' is not a regular file");
    }

    #[test]
    fn links_are_followed_and_the_name_is_the_one_asked_for() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        fs::create_dir(top.join("real")).unwrap();
        fs::write(top.join("real/file.txt"), "x").unwrap();
        symlink("real", top.join("dir")).unwrap();
        symlink("dir/file.txt", top.join("link")).unwrap();
        let answer = get(&envd, &top.join("link"));
        assert_eq!((answer.text().as_str(), answer.header("content-disposition")), ("x", "inline; filename=link"));
    }

    #[test]
    fn files_without_a_size_are_read_to_their_end() {
        let envd = Envd::ready();
        let answer = get(&envd, Path::new("/proc/self/status"));
        assert_eq!((answer.status, answer.header("content-length")), (200, ""));
        assert!(answer.text().contains("VmRSS"));
    }

    #[test]
    fn names_need_not_be_utf8() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        let path = top.join(OsString::from_vec(b"a\xff\xfeb".to_vec()));
        fs::write(&path, "odd").unwrap();
        let answer = get(&envd, &path);
        assert_eq!(answer.text(), "odd");
        assert!(answer.header("content-disposition").starts_with("inline; filename*=utf-8''a"));
    }

    #[test]
    fn a_download_can_be_resumed() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        let data: Vec<u8> = (0..700_000u32).map(|at| (at / 7) as u8).collect();
        fs::write(top.join("file"), &data).unwrap();
        let size = data.len();
        let range = |headers: &[(&str, &str)]| {
            let call = Call::new("GET", target(&top.join("file"))).token();
            headers.iter().fold(call, |call, (name, value)| call.header(name, value)).send(envd.port)
        };
        for (header, start, end) in [
            ("bytes=0-0", 0, 1),
            ("bytes=5-9", 5, 10),
            ("bytes=262144-", 262_144, size),
            ("bytes=-3", size - 3, size),
            ("bytes=100-9999999999", 100, size),
        ] {
            let answer = range(&[("range", header)]);
            assert_eq!((answer.status, answer.body.as_slice()), (206, &data[start..end]), "{header}");
            assert_eq!(answer.header("content-range"), format!("bytes {start}-{}/{size}", end - 1));
            assert_eq!(answer.header("content-length"), (end - start).to_string());
        }
        let beyond = range(&[("range", "bytes=700000-")]);
        assert_eq!((beyond.status, beyond.header("content-range")), (416, "bytes */700000"));
        for whole in ["bytes=1-2,5-6", "bytes=9-5", "lines=1-2"] {
            assert_eq!(range(&[("range", whole)]).status, 200, "{whole}");
        }
        let modified = range(&[]).header("last-modified").to_owned();
        assert_eq!(range(&[("range", "bytes=1-2"), ("if-range", &modified)]).status, 206);
        let old = "Mon, 01 Jan 2001 00:00:00 GMT";
        assert_eq!(range(&[("range", "bytes=1-2"), ("if-range", old)]).status, 200);
        assert_eq!(range(&[("if-modified-since", old)]).status, 200);
        let unchanged = range(&[("if-modified-since", &modified)]);
        assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
    }

    #[test]
    fn gzip_is_for_those_who_ask_for_nothing_else() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        let data: Vec<u8> = (0..900_000u32).flat_map(|at| at.to_string().into_bytes()).collect();
        fs::write(top.join("file"), &data).unwrap();
        let accept = |value: &str| {
            Call::new("GET", target(&top.join("file"))).token().header("accept-encoding", value).send(envd.port)
        };
        let compressed = accept("gzip");
        assert_eq!((compressed.status, compressed.header("content-encoding")), (200, "gzip"));
        assert!(compressed.body.len() < data.len());
        let mut plain = Vec::new();
        GzDecoder::new(compressed.body.as_slice()).read_to_end(&mut plain).unwrap();
        assert!(plain == data, "what was compressed is not what was there");
        for identity in ["gzip, deflate", "gzip, deflate, br, zstd", "identity", "*", "br", ""] {
            let answer = accept(identity);
            assert_eq!((answer.header("content-encoding"), answer.body.len()), ("", data.len()), "{identity}");
        }
        assert_error(&accept("br, identity;q=0"), 406, "no acceptable encoding");
    }

    #[test]
    fn paths_mean_what_the_contract_says() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        fs::create_dir_all(top.join("a")).unwrap();
        fs::write(top.join("b"), "b").unwrap();
        let shown = top.display();
        let send = |path: &str| Call::new("GET", format!("/files?path={}", encode(path))).token().send(envd.port);
        let far_up = format!("{shown}/missing/{}{shown}/b", "../".repeat(40));
        for path in [format!("{shown}/a/../b"), format!("/{shown}//./b/"), far_up] {
            assert_eq!(send(&path).text(), "b", "{path}");
        }
        // Nothing of this name is in the user's home, nor anywhere.
        let home = Me::get().home;
        for (path, meant) in [
            ("wrenn-none", format!("{home}/wrenn-none")),
            ("~/wrenn-none", format!("{home}/wrenn-none")),
            ("a/../../wrenn-none/..//wrenn-none", format!("{home}/../wrenn-none")),
            ("../../../../../../../../wrenn-none", "/wrenn-none".to_owned()),
        ] {
            let meant = meant.replace(
                &format!("{home}/.."),
                Path::new(&home).parent().unwrap().to_str().unwrap().trim_end_matches('/'),
            );
            assert_error(&send(path), 404, &format!("path '{meant}' does not exist"));
        }
        let is_home = format!("path '{home}' is a directory");
        assert_error(&send(""), 400, &is_home);
        assert_error(&Call::new("GET", "/files").token().send(envd.port), 400, &is_home);
        assert_error(&send("a\0b"), 400, "NUL");
        assert_error(&send("~root/x"), 400, "~name");
        assert_error(&send(&"x".repeat(300)), 400, "File name too long");
        assert_error(&send(&"x/".repeat(2100)), 400, "longer than 4095 bytes");
        assert_error(
            &Call::new("GET", format!("/files?path={}", "x".repeat(20_000))).token().send(envd.port),
            400,
            "query",
        );
    }

    #[test]
    fn the_default_directory_is_that_of_init() {
        let (_dir, top) = world();
        let envd = Envd::start();
        envd.init(&json!({"accessToken": TOKEN, "defaultUser": Me::get().name, "defaultWorkdir": top}));
        let message = format!("path '{}' is a directory", top.display());
        assert_error(&Call::new("GET", "/files").token().send(envd.port), 400, &message);
    }
}

mod upload {
    use super::*;

    #[test]
    fn one_file_is_written_and_answered_for() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        let path = top.join("new/dir/file.txt");
        let answer = put(&envd, &target(&path), b"hello", &[]);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json(), json!([{"path": path, "name": "file.txt", "type": "file"}]));
        assert_eq!(fs::read(&path).unwrap(), b"hello");
        assert_eq!(put(&envd, &target(&path), b"", &[]).status, 200);
        assert_eq!(fs::read(&path).unwrap(), b"", "an existing file is emptied");
        assert_eq!(put(&envd, &target(&top.join("empty")), b"", &[]).status, 200);
        assert_eq!(fs::read(top.join("empty")).unwrap(), b"", "an empty file is made");
    }

    #[test]
    fn several_files_come_as_a_form() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        let name = |name: &str| top.join(name).to_str().unwrap().to_owned();
        let (one, two) = (name("x/one"), name("../") + top.file_name().unwrap().to_str().unwrap() + "/two");
        let big = vec![b'\r'; 600_000];
        let parts = [
            ("note", None, &b"not a file"[..]),
            ("file", Some(one.as_str()), &b"1\r\n--frontie"[..]),
            ("other", Some("ignored"), b"neither"),
            ("file", Some(two.as_str()), &big),
        ];
        let answer = post_form(&envd, "/files", &parts, &[]);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let wanted = json!([{"path": name("x/one"), "name": "one", "type": "file"}, {"path": name("two"), "name": "two", "type": "file"}]);
        assert_eq!(answer.json(), wanted);
        assert_eq!(fs::read(top.join("x/one")).unwrap(), b"1\r\n--frontie");
        assert!(fs::read(top.join("two")).unwrap() == big);
    }

    #[test]
    fn the_query_names_a_single_part() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        let answer = post_form(&envd, &target(&top.join("asked")), &[("file", Some("other"), b"1")], &[]);
        assert_eq!(answer.json()[0]["path"], json!(top.join("asked")));
        let twice = [("file", Some("a"), &b"1"[..]), ("file", Some("b"), b"2")];
        assert_error(&post_form(&envd, &target(&top.join("asked")), &twice, &[]), 400, "same file");
    }

    #[test]
    fn what_cannot_be_a_file_is_refused() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        fs::write(top.join("file"), "kept").unwrap();
        fs::create_dir(top.join("dir")).unwrap();
        rustix::fs::mkfifoat(CWD, top.join("fifo"), Mode::from_raw_mode(0o666)).unwrap();
        let put = |name: &str| super::put(&envd, &target(&top.join(name)), b"x", &[]);
        assert_error(&put("dir"), 400, &format!("path is a directory: {}/dir", top.display()));
        assert_error(&put("fifo"), 400, "not a regular file");
        assert_error(&put("file/below"), 500, "Not a directory");
        assert_error(&put("file/below/deeper"), 500, "ot a directory");
        assert_error(&put(&"x".repeat(256)), 400, "File name too long");
        assert_error(&super::put(&envd, "/files", b"x", &[]), 400, "path");
        assert_error(&super::put(&envd, "/files?path=a%00b", b"x", &[]), 400, "NUL");
        assert_error(&post_form(&envd, "/files", &[], &[]), 400, "no file");
        assert_error(&post_form(&envd, "/files", &[("file", None, b"x")], &[]), 400, "no name");
        assert_error(&post_form(&envd, "/files", &[("file", Some(""), b"x")], &[]), 400, "no name");
        let same = top.join("same").to_str().unwrap().to_owned();
        let parts = [("file", Some(same.as_str()), &b"1"[..]), ("file", Some(same.as_str()), b"2")];
        assert_error(&post_form(&envd, "/files", &parts, &[]), 400, "same file");
        let dir = top.join("dir").to_str().unwrap().to_owned();
        assert_error(
            &post_form(&envd, "/files", &[("file", Some(dir.as_str()), b"1")], &[]),
            400,
            "path is a directory",
        );
        assert_eq!(fs::read(top.join("file")).unwrap(), b"kept");
    }

    #[test]
    fn other_bodies_are_refused() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        let path = target(&top.join("file"));
        let send = |content_type: &str, body: &[u8]| {
            Call::new("POST", path.clone()).token().header("content-type", content_type).body(body).send(envd.port)
        };
        assert_error(&send("text/plain", b"x"), 400, "Content-Type 'text/plain'");
        assert_error(&send("", b"x"), 400, "Content-Type ''");
        assert_error(&send("multipart/form-data", b"x"), 400, "boundary");
        assert_error(&send("multipart/form-data; boundary=x", b"no form at all"), 400, "ended early");
        assert_error(&put(&envd, &path, b"x", &[("content-encoding", "br")]), 400, "Content-Encoding 'br'");
        assert!(!top.join("file").exists());
        assert_eq!(send("Application/Octet-Stream; x=y", b"fine").status, 200);
    }

    #[test]
    fn a_body_may_be_compressed() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        let path = top.join("file");
        let put = |body: &[u8]| super::put(&envd, &target(&path), body, &[("content-encoding", "gzip")]);
        let data: Vec<u8> = (0..200_000u32).flat_map(|at| at.to_string().into_bytes()).collect();
        assert_eq!(put(&gzip(&data)).status, 200);
        assert!(fs::read(&path).unwrap() == data);
        let members = [gzip(b"one "), gzip(b"two")].concat();
        assert_eq!(put(&members).status, 200);
        assert_eq!(fs::read(&path).unwrap(), b"one two", "several members are one file");

        assert_error(&put(b"this is not gzip"), 400, "not valid gzip");
        assert_error(&put(&gzip(&data)[..1000]), 400, "not valid gzip");
        assert_error(&put(b""), 400, "not valid gzip");
        let mut wrong_sum = gzip(&data);
        let at = wrong_sum.len() - 6;
        wrong_sum[at] ^= 1;
        assert_error(&put(&wrong_sum), 400, "not valid gzip");

        let dir = super::put(&envd, &target(&top), &gzip(b"x"), &[("content-encoding", "gzip")]);
        assert_error(&dir, 400, "path is a directory");
        let form = b"--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\nformed\r\n--b--";
        let call = Call::new("POST", target(&path)).token().header("content-type", "multipart/form-data; boundary=b");
        let answer = call.header("content-encoding", "gzip").body(&gzip(form)).send(envd.port);
        assert_eq!((answer.status, fs::read(&path).unwrap().as_slice()), (200, &b"formed"[..]));
    }

    #[test]
    fn a_bomb_is_written_in_constant_memory() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        let mut bomb = Vec::new();
        GzEncoder::new(std::io::repeat(0).take(100 << 20), Compression::fast()).read_to_end(&mut bomb).unwrap();
        assert!(bomb.len() < 1 << 20);
        let before = envd.status_kib("VmHWM");
        assert_eq!(put(&envd, &target(&top.join("zeros")), &bomb, &[("content-encoding", "gzip")]).status, 200);
        assert_eq!(fs::metadata(top.join("zeros")).unwrap().len(), 100 << 20);
        let grown = envd.status_kib("VmHWM") - before;
        assert!(grown < 8 * 1024, "grew by {grown} KiB");
    }

    #[test]
    fn a_body_may_come_in_chunks() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        let call =
            Call::new("POST", target(&top.join("file"))).token().header("content-type", "application/octet-stream");
        let call = call.header("transfer-encoding", "chunked");
        let mut stream = call.begin(envd.port);
        stream.write_all(b"3\r\nabc\r\n").unwrap();
        stream.write_all(b"4\r\ndefg\r\n0\r\n\r\n").unwrap();
        assert_eq!(call.read(stream).unwrap().status, 200);
        assert_eq!(fs::read(top.join("file")).unwrap(), b"abcdefg");
    }

    #[test]
    fn links_are_written_through() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        fs::write(top.join("real"), "old").unwrap();
        symlink("real", top.join("link")).unwrap();
        symlink("made", top.join("dangling")).unwrap();
        assert_eq!(put(&envd, &target(&top.join("link")), b"new", &[]).status, 200);
        assert_eq!(put(&envd, &target(&top.join("dangling")), b"made", &[]).status, 200);
        assert!(fs::symlink_metadata(top.join("link")).unwrap().is_symlink());
        assert_eq!(
            (fs::read(top.join("real")).unwrap(), fs::read(top.join("made")).unwrap()),
            (b"new".to_vec(), b"made".to_vec())
        );
    }

    fn put_whole(envd: &Envd, path: &Path, body: &[u8]) -> Answer {
        put(envd, &target(path), body, &[("x-wrenn-whole", "true")])
    }

    #[test]
    fn what_appears_whole_takes_a_files_place_and_leaves_links_and_permissions() {
        let (envd, (_dir, dir)) = (Envd::ready(), world());
        let (file, link) = (dir.join("script"), dir.join("link"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o751)).unwrap();
        symlink("script", dir.join("nearer")).unwrap();
        symlink(dir.join("nearer"), &link).unwrap();
        let old = fs::metadata(&file).unwrap().ino();
        assert_eq!(put_whole(&envd, &link, b"new").status, 200);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let now = fs::metadata(&file).unwrap();
        assert_eq!((fs::read(&file).unwrap(), now.mode() & 0o7777), (b"new".to_vec(), 0o751));
        assert_ne!(now.ino(), old, "it was not written in place");

        symlink("not/there/yet", dir.join("dangling")).unwrap();
        assert_eq!(put_whole(&envd, &dir.join("dangling"), b"").status, 200);
        assert_eq!(fs::read(dir.join("not/there/yet")).unwrap(), b"");
        symlink("circle", dir.join("circle")).unwrap();
        assert_error(&put_whole(&envd, &dir.join("circle"), b"x"), 400, "cannot open");
        assert_error(&put_whole(&envd, &dir, b"x"), 400, "is a directory");
        assert_eq!(names(&dir), ["circle", "dangling", "link", "nearer", "not", "script"]);
    }

    #[test]
    fn what_does_not_become_whole_leaves_nothing() {
        let (envd, (_dir, dir)) = (Envd::ready(), world());
        fs::write(dir.join("file"), "old").unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", envd.port)).unwrap();
        let (path, half) = (target(&dir.join("file")), vec![b'x'; 1_000_000]);
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: envd\r\nX-Access-Token: {TOKEN}\r\nX-Wrenn-Whole: true\r\n\
             Content-Type: application/octet-stream\r\nContent-Length: 2000000\r\n\r\n"
        )
        .unwrap();
        stream.write_all(&half).unwrap();
        eventually("a part is there", || names(&dir).len() == 2);
        assert_eq!(fs::read(dir.join("file")).unwrap(), b"old");
        drop(stream);
        eventually("the part is gone", || names(&dir) == ["file"]);
        assert_eq!(fs::read(dir.join("file")).unwrap(), b"old");
    }

    fn names(dir: &Path) -> Vec<OsString> {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn root_files_and_parents_belong_to_the_user() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        let about = |name: &str| {
            let about = fs::metadata(top.join(name)).unwrap();
            (about.uid(), about.gid(), about.mode() & 0o7777)
        };
        let put = |name: &str| {
            let answer = super::put(&envd, &format!("{}&username=nobody", target(&top.join(name))), b"x", &[]);
            assert_eq!(answer.status, 200, "{}", answer.text());
        };
        put("a/b/file");
        assert_eq!(about("a/b/file"), (65534, 65534, 0o644), "this test needs root");
        assert_eq!((about("a"), about("a/b")), ((65534, 65534, 0o755), (65534, 65534, 0o755)));

        for mode in [0o600, 0o755, 0o444] {
            let name = format!("{mode:o}");
            fs::write(top.join(&name), "old and longer").unwrap();
            fs::set_permissions(top.join(&name), fs::Permissions::from_mode(mode)).unwrap();
            put(&name);
            assert_eq!(about(&name), (65534, 65534, mode), "an existing file keeps its mode");
            assert_eq!(fs::read(top.join(&name)).unwrap(), b"x");
        }
        assert_eq!(about(""), (0, 0, 0o755), "a directory that was there stays as it was");
    }

    #[test]
    fn root_a_small_new_file_is_three_events() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        let form = |name: &str| {
            let name = top.join(name).to_str().unwrap().to_owned();
            post_form(&envd, "/files", &[("file", Some(name.as_str()), &[7; 200_000])], &[]).status
        };
        let compressed = |name: &str| {
            put(&envd, &target(&top.join(name)), &gzip(&[7; 200_000]), &[("content-encoding", "gzip")]).status
        };
        for user in ["root", "nobody"] {
            let query = |name: &str| format!("{}&username={user}", target(&top.join(name)));
            let name = format!("new-{user}");
            let events = watched(&top, || assert_eq!(put(&envd, &query(&name), &[7; 200_000], &[]).status, 200));
            assert_eq!(events, ["create", "attrib", "modify"], "{user}");
        }
        assert_eq!(watched(&top, || assert_eq!(form("form"), 200)), ["create", "attrib", "modify"]);
        assert_eq!(watched(&top, || assert_eq!(compressed("gzip"), 200)), ["create", "attrib", "modify"]);
    }

    /// What a watcher of a directory sees of `work`, without the opening and closing of files.
    fn watched(dir: &Path, work: impl FnOnce()) -> Vec<&'static str> {
        use inotify::{ReadFlags, WatchFlags};
        let queue = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        let flags =
            WatchFlags::CREATE | WatchFlags::ATTRIB | WatchFlags::MODIFY | WatchFlags::DELETE | WatchFlags::MOVE;
        inotify::add_watch(&queue, dir, flags).unwrap();
        work();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(queue, &mut buffer);
        let mut events = Vec::new();
        while let Ok(event) = reader.next() {
            let known = [(ReadFlags::CREATE, "create"), (ReadFlags::ATTRIB, "attrib"), (ReadFlags::MODIFY, "modify")];
            let name = known.iter().find(|(flag, _)| event.events().contains(*flag)).map_or("other", |(_, name)| name);
            events.push(name);
        }
        events
    }

    #[test]
    fn metadata_are_replaced_by_each_upload() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        let path = top.join("file");
        let stat =
            || envd.rpc("/filesystem.Filesystem/Stat", "", &json!({"path": path})).json()["entry"]["metadata"].clone();
        let headers = [("X-Metadata-Author", "me"), ("x-metadata-author", "second"), ("x-metadata-k.2", "a b~")];
        let answer = put(&envd, &target(&path), b"x", &headers);
        assert_eq!(answer.json()[0]["metadata"], json!({"author": "me", "k.2": "a b~"}));
        assert_eq!(stat(), json!({"author": "me", "k.2": "a b~"}));
        assert_eq!(put(&envd, &target(&path), b"x", &[("x-metadata-new", "1")]).status, 200);
        assert_eq!(stat(), json!({"new": "1"}));
        assert_eq!(put(&envd, &target(&path), b"x", &[]).json()[0].get("metadata"), None);
        assert_eq!(stat(), Value::Null);

        let names = ["p", "q"].map(|name| top.join(name).to_str().unwrap().to_owned());
        let parts = [("file", Some(names[0].as_str()), &b""[..]), ("file", Some(names[1].as_str()), b"")];
        let answer = post_form(&envd, "/files", &parts, &[("x-metadata-all", "yes")]).json();
        assert_eq!((&answer[0]["metadata"], &answer[1]["metadata"]), (&json!({"all": "yes"}), &json!({"all": "yes"})));
    }

    #[test]
    fn odd_metadata_are_refused_before_anything_is_written() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        let path = target(&top.join("file"));
        let (long_key, long_value) = (format!("x-metadata-{}", "k".repeat(247)), "v".repeat(4097));
        for (name, value, message) in [
            ("x-metadata-", "x", "1 to 246 bytes"),
            (long_key.as_str(), "x", "1 to 246 bytes"),
            ("x-metadata-a", "gr\u{fc}n", "printable ASCII"),
            ("x-metadata-a", "a\tb", "printable ASCII"),
            ("x-metadata-a", long_value.as_str(), "longer than 4096 bytes"),
        ] {
            assert_error(&put(&envd, &path, b"x", &[(name, value)]), 400, message);
        }
        assert!(!top.join("file").exists());
    }

    #[test]
    fn a_refusal_is_read_even_after_megabytes() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        let body = vec![0; 20 << 20];
        assert_error(&put(&envd, &target(&top), &body, &[]), 400, "path is a directory");
        let call = Call::new("POST", target(&top)).header("content-type", "application/octet-stream");
        assert_error(&call.body(&body).send(envd.port), 401, "missing signature");
    }

    #[test]
    fn root_a_full_disk_is_507_and_spares_what_is_there() {
        wrenn_sys::netns::leave_host_network(true).expect("this test needs root");
        wrenn_sys::loopback::up().unwrap();
        let (_dir, top) = world();
        rustix::mount::mount("tmpfs", &top, "tmpfs", rustix::mount::MountFlags::empty(), Some(c"size=2m")).unwrap();
        let envd = Envd::ready();
        fs::write(top.join("old"), vec![1; 1 << 20]).unwrap();
        let full = "not enough disk space";
        assert_error(&put(&envd, &target(&top.join("old")), &vec![2; 3 << 20], &[]), 507, full);
        assert_eq!(fs::read(top.join("old")).unwrap(), vec![1; 1 << 20], "refused before it was emptied");
        assert_eq!(
            put(&envd, &target(&top.join("old")), &vec![2; 3 << 19], &[]).status,
            200,
            "its own space counts as free"
        );

        let name = top.join("form").to_str().unwrap().to_owned();
        assert_error(&post_form(&envd, "/files", &[("file", Some(name.as_str()), &vec![3; 3 << 20])], &[]), 507, full);
        fs::remove_file(top.join("form")).unwrap();
        let zeros = gzip(&vec![0; 3 << 20]);
        assert_error(&put(&envd, &target(&top.join("zeros")), &zeros, &[("content-encoding", "gzip")]), 507, full);
        fs::remove_file(top.join("zeros")).unwrap();
        assert_eq!(put(&envd, &target(&top.join("small")), b"x", &[]).status, 200);
        rustix::mount::unmount(&top, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

mod streaming {
    use super::*;

    /// The pieces of a large test file: noise that is the same in each, and the piece's number in its first bytes.
    struct Blocks {
        noise: Vec<u8>,
    }

    impl Blocks {
        fn new() -> Self {
            let words = (0..8192u64).map(|word| word.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(17));
            Self { noise: words.flat_map(u64::to_le_bytes).collect() }
        }

        fn at(&mut self, number: u64) -> &[u8] {
            self.noise[..8].copy_from_slice(&number.to_le_bytes());
            &self.noise
        }
    }

    const BLOCKS: u64 = 300 * 16;
    const BYTES: u64 = BLOCKS * 65_536;

    #[test]
    fn three_hundred_megabytes_pass_in_constant_memory() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        let path = target(&top.join("big"));
        let mut blocks = Blocks::new();
        // What one small transfer needs is there from the start.
        put(&envd, &path, blocks.at(0), &[]);
        get(&envd, &top.join("big"));
        let before = envd.status_kib("VmHWM");

        let call = Call::new("POST", path.clone()).token().header("content-type", "application/octet-stream");
        let call = call.header("content-length", &BYTES.to_string());
        let mut stream = call.begin(envd.port);
        for at in 0..BLOCKS {
            stream.write_all(blocks.at(at)).unwrap();
        }
        assert_eq!(call.read(stream).unwrap().status, 200);
        assert_eq!(fs::metadata(top.join("big")).unwrap().len(), BYTES);

        let mut answer = Streamed::read(Call::new("GET", path).token().begin(envd.port)).unwrap();
        let mut received = vec![0; 65_536];
        for at in 0..BLOCKS {
            answer.body.read_exact(&mut received).unwrap();
            assert!(received == blocks.at(at), "block {at} differs");
        }
        assert_eq!(answer.body.read(&mut received).unwrap(), 0);
        let grown = envd.status_kib("VmHWM") - before;
        assert!(grown < 8 * 1024, "grew by {grown} KiB");
    }

    #[test]
    fn a_client_that_does_not_read_holds_little() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        fs::File::create(top.join("big")).unwrap().set_len(1 << 30).unwrap();
        let before = envd.status_kib("VmRSS");
        let idle: Vec<_> =
            (0..20).map(|_| Call::new("GET", target(&top.join("big"))).token().begin(envd.port)).collect();
        eventually("every download has begun", || {
            envd.open_files().iter().filter(|file| file.ends_with("big")).count() == idle.len()
        });
        assert_eq!(put(&envd, &target(&top.join("other")), b"x", &[]).status, 200, "others are served meanwhile");
        let each = (envd.status_kib("VmRSS").saturating_sub(before)) / idle.len() as u64;
        assert!(each < 1024, "{each} KiB for each");
        drop(idle);
        eventually("the files are closed", || !envd.open_files().iter().any(|file| file.ends_with("big")));
    }

    #[test]
    fn a_file_that_shrinks_breaks_its_download_off() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        let file = fs::File::create(top.join("big")).unwrap();
        file.set_len(1 << 30).unwrap();
        let mut answer = Streamed::read(Call::new("GET", target(&top.join("big"))).token().begin(envd.port)).unwrap();
        file.set_len(1 << 20).unwrap();
        let error = std::io::copy(&mut answer.body, &mut std::io::sink()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "a short body must not look complete: {error}");
    }

    #[test]
    fn a_client_that_hangs_up_leaves_nothing_open() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        let begin = |name: &str, body: &[u8]| {
            let call =
                Call::new("POST", target(&top.join(name))).token().header("content-type", "application/octet-stream");
            let mut stream = call.header("content-length", "10000000").begin(envd.port);
            stream.write_all(body).unwrap();
            stream
        };
        let port = |stream: &TcpStream| stream.local_addr().unwrap().port();
        let stream = begin("large", &vec![7; 3_000_000]);
        let large = port(&stream);
        eventually("the upload has begun", || fs::metadata(top.join("large")).is_ok_and(|about| about.len() > 0));
        drop(stream);
        eventually("the file is closed", || !envd.open_files().iter().any(|file| file.ends_with("large")));
        let written = fs::read(top.join("large")).unwrap();
        assert!(written.len() <= 3_000_000 && written.iter().all(|byte| *byte == 7), "a prefix of what was sent");

        fs::write(top.join("small"), "old").unwrap();
        let stream = begin("small", &[7; 1000]);
        let small = port(&stream);
        drop(stream);
        assert_eq!(put(&envd, &target(&top.join("after")), b"x", &[]).status, 200);
        eventually("the connections are closed", || open_connections(&envd).is_disjoint(&[large, small].into()));
        assert_eq!(fs::read(top.join("small")).unwrap(), b"old", "nothing was written yet, so nothing is lost");
    }

    #[test]
    fn an_upload_that_is_to_be_whole_is_seen_whole_or_not_at_all() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        let names = || -> Vec<String> {
            let names = fs::read_dir(&top).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<_> = names.collect();
            names.sort();
            names
        };
        fs::write(top.join("file"), "old").unwrap();
        let call = Call::new("POST", target(&top.join("file"))).token();
        let call = call.header("content-type", "application/octet-stream").header(WHOLE_HEADER, "true");
        let mut stream = call.header("content-length", "10000000").begin(envd.port);
        stream.write_all(&vec![7; 3_000_000]).unwrap();
        eventually("the upload has begun", || names().len() == 2);
        assert_eq!(fs::read(top.join("file")).unwrap(), b"old", "what was there stays until then");
        drop(stream);
        eventually("what was written is gone", || names() == ["file"]);
        assert_eq!(fs::read(top.join("file")).unwrap(), b"old");

        let answer = put(&envd, &target(&top.join("file")), &vec![8; 300_000], &[(WHOLE_HEADER, "true")]);
        assert_eq!((answer.status, answer.json()[0]["name"].as_str()), (200, Some("file")), "{}", answer.text());
        assert_eq!((fs::read(top.join("file")).unwrap(), names()), (vec![8; 300_000], vec!["file".to_owned()]));
        fs::create_dir(top.join("dir")).unwrap();
        assert_error(&put(&envd, &target(&top.join("dir")), b"x", &[(WHOLE_HEADER, "true")]), 400, "is a directory");
        let form = post_form(&envd, &target(&top.join("new")), &[("file", Some("a"), b"")], &[(WHOLE_HEADER, "true")]);
        assert_eq!((form.status, names()), (200, ["dir", "file", "new"].map(str::to_owned).to_vec()));
    }

    /// The peers' ports of the connections that envd holds. Others than this test's may connect to a port that was theirs.
    fn open_connections(envd: &Envd) -> HashSet<u16> {
        let sockets: HashSet<String> =
            envd.open_files().iter().map(|file| file.to_string_lossy().into_owned()).collect();
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        let held = rows.filter(|row| sockets.contains(&format!("socket:[{}]", row[9])));
        held.map(|row| u16::from_str_radix(row[2].rsplit(':').next().unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn an_upload_that_has_arrived_is_finished_without_its_client() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        for at in 0..20 {
            let path = top.join(format!("{at}/file"));
            let call = Call::new("POST", target(&path)).token().header("content-type", "application/octet-stream");
            let mut stream = call.header("content-length", "100000").begin(envd.port);
            stream.write_all(&[7; 100_000]).unwrap();
            drop(stream);
            eventually("the file is there", || fs::read(&path).is_ok_and(|data| data == [7; 100_000]));
        }
    }

    #[test]
    fn many_uploads_at_once_do_not_mix() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        std::thread::scope(|scope| {
            for at in 0..24u8 {
                let (envd, path) = (&envd, top.join(format!("dir/{at}")));
                scope.spawn(move || {
                    assert_eq!(put(envd, &target(&path), &vec![at; 700_000], &[]).status, 200);
                    assert!(get(envd, &path).body == vec![at; 700_000]);
                });
            }
        });
        assert_eq!(fs::read_dir(top.join("dir")).unwrap().count(), 24);
    }
}

mod service {
    use super::*;

    fn call(envd: &Envd, method: &str, request: Value) -> Answer {
        envd.rpc(&format!("/filesystem.Filesystem/{method}"), "", &request)
    }

    fn assert_refused(answer: &Answer, code: &str, message: &str) {
        assert_eq!(answer.json()["code"], code, "{}", answer.text());
        let text = answer.json()["message"].as_str().unwrap().to_owned();
        assert!(text.contains(message), "{text:?} does not hold {message:?}");
    }

    #[test]
    fn entries_look_as_in_the_contract() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        fs::write(top.join("file"), "hello").unwrap();
        fs::set_permissions(top.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
        let set = fs::File::options().write(true).open(top.join("file")).unwrap();
        set.set_modified(SystemTime::UNIX_EPOCH + Duration::new(1_600_000_000, 500_000_000)).unwrap();
        symlink("file", top.join("link")).unwrap();
        symlink("nowhere", top.join("dangling")).unwrap();
        let stat = |name: &str| call(&envd, "Stat", json!({"path": top.join(name)})).json()["entry"].clone();
        let group = stat("file")["group"].clone();
        assert!(group.as_str().is_some_and(|group| !group.is_empty()));
        let expected = json!({
            "name": "file", "type": "FILE_TYPE_FILE", "path": top.join("file"), "size": "5", "mode": 0o640,
            "permissions": "-rw-r-----", "owner": Me::get().name, "group": group, "modifiedTime": "2020-09-13T12:26:40.500Z",
        });
        assert_eq!(stat("file"), expected);
        let link = stat("link");
        assert_eq!(
            (&link["type"], &link["mode"], &link["permissions"]),
            (&json!("FILE_TYPE_FILE"), &json!(0o640), &json!("Lrwxrwxrwx"))
        );
        assert_eq!((&link["symlinkTarget"], &link["isSymlink"]), (&json!(top.join("file")), &json!(true)));
        let dangling = stat("dangling");
        assert_eq!((dangling.get("type"), dangling.get("mode")), (None, None), "unspecified and 0 are left out");
        assert_eq!(dangling["symlinkTarget"], json!(top.join("dangling")));
        assert_refused(&call(&envd, "Stat", json!({"path": top.join("missing")})), "not_found", "does not exist");
    }

    #[test]
    fn directories_are_listed() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        fs::create_dir_all(top.join("b/c")).unwrap();
        fs::write(top.join("a"), "").unwrap();
        fs::write(top.join(OsString::from_vec(b"z\xff".to_vec())), "").unwrap();
        let list = |request: Value| -> Vec<String> {
            let answer = call(&envd, "ListDir", request).json();
            let entries = answer["entries"].as_array().cloned().unwrap_or_default();
            entries
                .iter()
                .map(|entry| entry["path"].as_str().unwrap().replace(&format!("{}/", top.display()), ""))
                .collect()
        };
        assert_eq!(list(json!({"path": top})), ["a", "b", "z\u{fffd}"]);
        assert_eq!(list(json!({"path": top, "depth": 2})), ["a", "b", "b/c", "z\u{fffd}"]);
        assert_eq!(list(json!({"path": top.join("b/c")})), [""; 0]);
        assert_refused(&call(&envd, "ListDir", json!({"path": top.join("a")})), "invalid_argument", "not a directory");
        assert_refused(&call(&envd, "ListDir", json!({"path": top.join("no")})), "not_found", "does not exist");
    }

    #[test]
    fn root_directories_are_made_for_the_user() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        let make = |name: &str| envd.rpc("/filesystem.Filesystem/MakeDir", "nobody", &json!({"path": top.join(name)}));
        let made = make("a/b").json();
        assert_eq!(
            (&made["entry"]["type"], &made["entry"]["permissions"]),
            (&json!("FILE_TYPE_DIRECTORY"), &json!("drwxr-xr-x"))
        );
        assert_eq!(made["entry"]["owner"], "nobody", "this test needs root");
        assert_eq!(fs::metadata(top.join("a")).unwrap().uid(), 65534);
        assert_refused(&make("a/b"), "already_exists", "already exists");
        assert_eq!(make("a/b").status, 409);
        fs::write(top.join("file"), "").unwrap();
        assert_refused(&make("file"), "invalid_argument", "not a directory");
        assert_refused(&make("file/x"), "invalid_argument", "not a directory");
    }

    #[test]
    fn files_are_moved_with_their_metadata() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        let (from, to) = (top.join("from"), top.join("new/dir/to"));
        put(&envd, &target(&from), b"x", &[("x-metadata-kept", "yes")]);
        let moved = call(&envd, "Move", json!({"source": from, "destination": to})).json();
        assert_eq!((&moved["entry"]["path"], &moved["entry"]["metadata"]), (&json!(to), &json!({"kept": "yes"})));
        assert!(!from.exists() && to.exists());
        let again = call(&envd, "Move", json!({"source": from, "destination": top.join("other/x")}));
        assert_refused(&again, "not_found", "does not exist");
        assert!(!top.join("other").exists());
        let inside = call(&envd, "Move", json!({"source": top.join("new"), "destination": top.join("new/dir/x")}));
        assert_refused(&inside, "invalid_argument", "cannot move");
    }

    #[test]
    fn anything_is_removed_and_nothing_is_missed() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        fs::create_dir_all(top.join("a/b/c")).unwrap();
        fs::write(top.join("a/b/file"), "").unwrap();
        let remove = |path: &Path| call(&envd, "Remove", json!({"path": path}));
        let done = remove(&top.join("a"));
        assert_eq!((done.status, done.json()), (200, json!({})));
        assert!(!top.join("a").exists());
        assert_eq!(remove(&top.join("a")).status, 200, "missing is fine");
        assert_refused(&remove(Path::new("/")), "invalid_argument", "root directory");
        assert_refused(&remove(Path::new("a\0b")), "invalid_argument", "NUL");
        assert_refused(&remove(Path::new("/proc/self")), "permission_denied", "cannot remove");
    }

    #[test]
    fn a_removal_goes_on_without_its_client() {
        let (_dir, top) = world();
        let envd = Envd::ready();
        for at in 0..2000 {
            fs::create_dir_all(top.join(format!("tree/{}/{at}", at % 40))).unwrap();
        }
        let request = json!({"path": top.join("tree")}).to_string();
        let call =
            Call::new("POST", "/filesystem.Filesystem/Remove").token().header("content-type", "application/json");
        let mut stream = call.header("content-length", &request.len().to_string()).begin(envd.port);
        stream.write_all(request.as_bytes()).unwrap();
        eventually("the removal has begun", || fs::read_dir(top.join("tree")).map_or(0, Iterator::count) < 40);
        drop(stream);
        eventually("the tree is gone", || !top.join("tree").exists());
    }

    #[test]
    fn users_and_paths_are_those_of_the_caller() {
        let envd = Envd::ready();
        let stat = |user: &str, path: &str| envd.rpc("/filesystem.Filesystem/Stat", user, &json!({"path": path}));
        let me = Me::get();
        assert_eq!(stat(&me.name, "").json()["entry"]["path"], json!(me.home));
        assert_eq!(stat("", "~").json()["entry"]["path"], json!(me.home), "the default user");
        assert_eq!(stat("daemon", "~").json()["entry"]["path"], "/usr/sbin", "looking needs nobody's rights");
        assert_eq!(stat("", "/etc/./x/../passwd").json()["entry"]["path"], "/etc/passwd");
        assert_eq!(stat("", "/").json()["entry"]["name"], "/");
        assert_refused(&stat("nosuchuser", "/"), "unauthenticated", "invalid username: 'nosuchuser'");
        assert_eq!(stat("nosuchuser", "/").status, 401);
        assert_refused(&stat("", &"x/".repeat(3000)), "invalid_argument", "longer than");
        assert_refused(&stat("", &"x".repeat(300)), "invalid_argument", "File name too long");
    }

    #[test]
    fn watching_says_that_it_is_not_there() {
        let envd = Envd::ready();
        for method in ["CreateWatcher", "GetWatcherEvents", "RemoveWatcher"] {
            let answer = call(&envd, method, json!({}));
            assert_eq!(answer.status, 501);
            assert_refused(&answer, "unimplemented", "cannot watch");
        }
        let request = br#"{"path":"/tmp"}"#;
        let mut body = vec![0];
        body.extend_from_slice(&(request.len() as u32).to_be_bytes());
        body.extend_from_slice(request);
        let call = Call::new("POST", "/filesystem.Filesystem/WatchDir")
            .token()
            .header("content-type", "application/connect+json");
        let answer = call.body(&body).send(envd.port);
        assert!(answer.text().contains("unimplemented"), "{}", answer.text());
    }
}
