//! Commands over WebSockets, and the command line against a server.

use std::process::{Command, Output};

use serde_json::{Value, json};
use wrenn_client::types::{Exit, StreamKind, StreamRequest, TerminalSize};
use wrenn_client::{Client, CommandEvent, CommandOutput};
use wrenn_testworld::api::nothing;

use super::life::create;
use super::server::{Service, run};
use crate::world::{output_with_input, text};

fn client(service: &Service) -> Client {
    Client::new(&service.url(), Some(&service.key)).unwrap()
}

fn script(script: &str) -> StreamRequest {
    StreamRequest { command: ["sh", "-c", script].map(str::to_owned).to_vec(), ..StreamRequest::default() }
}

/// All that a command does from here on: its output stream by stream, the place after it, and its end.
async fn rest(mut output: CommandOutput) -> (Vec<u8>, Vec<u8>, u64, Exit) {
    let (mut stdout, mut other, mut place) = (Vec::new(), Vec::new(), 0);
    loop {
        match output.next().await.unwrap().expect("an end comes before the stream's") {
            CommandEvent::Started { .. } => {}
            CommandEvent::Gap { bytes } => panic!("{bytes} bytes are gone"),
            CommandEvent::Output { stream, offset, bytes } => {
                assert!(place == 0 || offset == place, "the output has no holes");
                place = offset + bytes.len() as u64;
                let kept = if stream == StreamKind::Stdout { &mut stdout } else { &mut other };
                kept.extend_from_slice(&bytes);
            }
            CommandEvent::Exit(exit) => return (stdout, other, place, exit),
        }
    }
}

#[test]
fn a_command_is_streamed_byte_for_byte_and_can_be_come_back_to() {
    let service = Service::begin();
    run(async {
        let (api, client) = (service.api().await, client(&service));
        let id = create(&api, nothing()).await;

        let request = StreamRequest { stdin: true, ..script("tr a-z A-Z; printf '\\377\\0' >&2; exit 7") };
        let mut stream = client.exec_stream(&id, &request).await.unwrap();
        stream.input.write("some input\n".into()).await.unwrap();
        stream.input.close().await.unwrap();
        let (stdout, stderr, place, exit) = rest(stream.output).await;
        assert_eq!((stdout.as_slice(), stderr.as_slice(), place), (&b"SOME INPUT\n"[..], &b"\xff\0"[..], 13));
        assert_eq!(exit, Exit::Exited { code: 7 });

        let mut stream = client.exec_stream(&id, &script("echo one; sleep 1; echo two; sleep 60")).await.unwrap();
        let CommandEvent::Started { pid } = stream.output.next().await.unwrap().unwrap() else { panic!("not started") };
        let CommandEvent::Output { bytes, .. } = stream.output.next().await.unwrap().unwrap() else {
            panic!("no output")
        };
        assert_eq!(&bytes[..], b"one\n");
        drop(stream);
        let mut again = client.attach(&id, pid, Some(4)).await.unwrap();
        loop {
            match again.output.next().await.unwrap().unwrap() {
                CommandEvent::Output { offset, bytes, .. } => {
                    assert_eq!((offset, &bytes[..]), (4, &b"two\n"[..]));
                    break;
                }
                CommandEvent::Started { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        again.input.signal(15).await.unwrap();
        assert_eq!(rest(again.output).await.3, Exit::Signalled { signal: 15 });

        let terminal = StreamRequest {
            pty: Some(TerminalSize { cols: 91, rows: 33 }),
            ..script("stty size; read line; echo got $line")
        };
        let mut stream = client.exec_stream(&id, &terminal).await.unwrap();
        stream.input.write("typed\r".into()).await.unwrap();
        let (_, shown, _, exit) = rest(stream.output).await;
        let shown = text(&shown);
        assert!(shown.contains("33 91") && shown.contains("got typed"), "{shown}");
        assert_eq!(exit, Exit::Exited { code: 0 });

        let unknown = StreamRequest { command: vec!["no-such-command".to_owned()], ..StreamRequest::default() };
        let refused = client.exec_stream(&id, &unknown);
        let mut refused = refused.await.unwrap();
        let error = refused.output.next().await.unwrap_err();
        assert!(error.to_string().contains("no-such-command"), "{error}");
        api.delete(&format!("/v1/sandboxes/{id}")).await.ok();
    });
    service.end();
}

#[test]
fn the_command_line_works_against_a_server_as_on_its_host() {
    let service = Service::begin();
    let elsewhere = tempfile::tempdir().unwrap();
    let wrenn = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wrenn"));
        // Nothing of the host's own instance is used.
        command.args(args).env("WRENN_DIR", elsewhere.path().join("none"));
        command.env("WRENN_URL", service.url()).env("WRENN_API_KEY", &service.key);
        command
    };
    let ok = |args: &[&str]| -> String {
        let output: Output = output_with_input(wrenn(args), b"");
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    run(async { service.api().await });
    let id = ok(&["sandbox", "create", "--metadata", "from=afar"]).trim().to_owned();
    let listed: Value = serde_json::from_str(&ok(&["sandbox", "ls", "--json"])).unwrap();
    assert_eq!((&listed[0]["id"], &listed[0]["metadata"]["from"]), (&json!(id), &json!("afar")));
    let output = output_with_input(wrenn(&["sandbox", "exec", &id, "--", "sh", "-c", "wc -c; exit 9"]), &[7; 100_000]);
    assert_eq!((text(&output.stdout).trim(), output.status.code()), ("100000", Some(9)));

    let (file, back) = (elsewhere.path().join("file"), elsewhere.path().join("back"));
    std::fs::write(&file, b"bytes \xff\0 of a file").unwrap();
    ok(&["cp", file.to_str().unwrap(), &format!("{id}:/root/there")]);
    ok(&["cp", &format!("{id}:/root/there"), back.to_str().unwrap()]);
    assert_eq!(std::fs::read(&back).unwrap(), b"bytes \xff\0 of a file");

    ok(&["sandbox", "pause", &id]);
    ok(&["sandbox", "resume", &id]);
    let fork = ok(&["sandbox", "fork", &id]).trim().to_owned();
    ok(&["snapshot", "create", &id, "--name", "kept"]);
    assert!(ok(&["snapshot", "ls"]).contains("kept"));
    assert!(ok(&["template", "ls"]).contains("minimal"));
    ok(&["snapshot", "rm", "kept"]);
    let key: Value = serde_json::from_str(&ok(&["key", "create", "--scope", "read", "--json"])).unwrap();
    assert!(ok(&["key", "ls"]).contains(key["id"].as_str().unwrap()));
    let mut reader = wrenn(&["sandbox", "rm", &id]);
    reader.env("WRENN_API_KEY", key["secret"].as_str().unwrap());
    let refused = output_with_input(reader, b"");
    assert!(text(&refused.stderr).contains("scope"), "{}", text(&refused.stderr));
    ok(&["key", "rm", key["id"].as_str().unwrap()]);
    ok(&["sandbox", "rm", &id, &fork]);

    // On the host itself keys need no server, and a copy of the database can be made while it is used.
    let made = service.output(&["key", "create", "--name", "local", "--json"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    run(async {
        let api = service.api().await.with_key(Some(made["secret"].as_str().unwrap()));
        assert_eq!(api.get("/v1/whoami").await.ok()["name"], "local");
    });
    let copy = elsewhere.path().join("copy.db");
    let backup = service.output(&["db", "backup", copy.to_str().unwrap()]);
    assert!(backup.status.success(), "{}", text(&backup.stderr));
    assert!(std::fs::read(&copy).unwrap().starts_with(b"SQLite format 3"));
    service.end();
}
