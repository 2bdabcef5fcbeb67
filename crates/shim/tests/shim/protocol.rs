//! Clients, good and bad.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wrenn_proto::shim::{Client, ClientError, Decoder, End, ErrorCode, FRAME_MAX, VmmStatus};

use crate::harness::{PATIENCE, Plan, Shim, until};

/// A connection without the client's manners.
struct Raw {
    stream: UnixStream,
    decoder: Decoder,
}

impl Raw {
    fn connect(shim: &Shim) -> Self {
        let stream = UnixStream::connect(&shim.spec.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, decoder: Decoder::new() }
    }

    fn greeted(shim: &Shim) -> Self {
        let mut raw = Self::connect(shim);
        raw.send(&json!({"id": 1, "op": "hello", "min": 1, "max": 1}));
        assert_eq!(raw.answer().unwrap()["ok"]["kind"], "hello");
        raw
    }

    fn send(&mut self, message: &Value) {
        self.send_frame(message.to_string().as_bytes());
    }

    fn send_frame(&mut self, payload: &[u8]) {
        self.stream.write_all(&(payload.len() as u32).to_le_bytes()).unwrap();
        self.stream.write_all(payload).unwrap();
    }

    /// The next answer; `None` at the end of the connection.
    fn answer(&mut self) -> Option<Value> {
        loop {
            if let Some(json) = self.decoder.next_frame().unwrap() {
                return Some(serde_json::from_slice(&json).unwrap());
            }
            let mut bytes = [0; 4096];
            let room = self.decoder.room().min(bytes.len());
            match self.stream.read(&mut bytes[..room]) {
                Ok(0) => return None,
                Ok(count) => assert_eq!(self.decoder.push(&bytes[..count]), count),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn ask(&mut self, message: &Value) -> Value {
        self.send(message);
        self.answer().unwrap()
    }
}

fn sleeper() -> Shim {
    Plan::script("echo up; exec sleep 600").start()
}

fn still_serves(shim: &Shim) {
    assert!(matches!(shim.client().status().unwrap().vmm, VmmStatus::Running { .. }));
}

#[test]
fn the_shim_introduces_itself() {
    let shim = sleeper();
    let client = shim.client();
    assert_eq!(client.peer().version, 1);
    assert_eq!(client.peer().sandbox, shim.spec.sandbox);
    assert_eq!(client.peer().pid, shim.child.pid());
}

#[test]
fn two_clients_at_once_are_both_served_and_both_told_the_end() {
    let shim = sleeper();
    let (mut first, mut second) = (shim.client(), shim.client());
    assert!(matches!(first.wait(Some(Duration::from_millis(50))), Err(ClientError::TimedOut { .. })));
    assert_eq!(first.status().unwrap().pid, second.status().unwrap().pid);
    std::thread::scope(|scope| {
        let waiters = [scope.spawn(|| first.wait(Some(PATIENCE))), scope.spawn(|| second.wait(Some(PATIENCE)))];
        shim.client().stop(Duration::ZERO).unwrap();
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap().unwrap().end, End::Signalled { signal: 9 });
        }
    });
}

#[test]
fn requests_overlap_and_answers_carry_their_number() {
    let shim = sleeper();
    let mut raw = Raw::greeted(&shim);
    raw.send(&json!({"id": 70, "op": "wait"}));
    raw.send(&json!({"id": 71, "op": "status"}));
    raw.send(&json!({"id": 72, "op": "stop"}));
    let ids: Vec<_> = (0..3).map(|_| raw.answer().unwrap()["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [71, 72, 70]);
}

#[test]
fn versions_must_overlap() {
    let shim = sleeper();
    for (min, max) in [(2, 9), (0, 0), (5, 1)] {
        let mut raw = Raw::connect(&shim);
        let answer = raw.ask(&json!({"id": 1, "op": "hello", "min": min, "max": max}));
        assert_eq!(answer["error"]["code"], "version_mismatch", "{answer}");
        assert_eq!(raw.answer(), None, "and hangs up");
    }
    let mut raw = Raw::connect(&shim);
    let answer = raw.ask(&json!({"id": 1, "op": "hello", "min": 0, "max": 9, "future": [1]}));
    assert_eq!(answer["ok"]["version"], 1);
    let mut raw = Raw::connect(&shim);
    assert_eq!(raw.ask(&json!({"id": 8, "op": "status"}))["error"]["code"], "hello_expected");
    assert_eq!(raw.answer(), None, "and hangs up");
    still_serves(&shim);
}

#[test]
fn unknown_and_malformed_requests_are_answered_and_the_connection_goes_on() {
    let shim = sleeper();
    let mut raw = Raw::greeted(&shim);
    let table = [
        (&br#"{"id":5,"op":"levitate"}"#[..], 5, "unknown_request"),
        (br#"{"id":6,"op":"signal"}"#, 6, "malformed"),
        (br#"{"id":7,"op":"hello","min":1,"max":1}"#, 7, "malformed"),
        (b"not json", 0, "malformed"),
        (b"", 0, "malformed"),
        (b"\xff\xfe\x00", 0, "malformed"),
        (br#"{"id":"x","op":"status"}"#, 0, "malformed"),
    ];
    for (payload, id, code) in table {
        raw.send_frame(payload);
        let answer = raw.answer().unwrap();
        assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(id), &json!(code)), "{answer}");
    }
    assert_eq!(raw.ask(&json!({"id": 9, "op": "status"}))["ok"]["kind"], "status");
}

#[test]
fn the_longest_frame_is_read_and_a_longer_one_ends_the_connection() {
    let shim = sleeper();
    let mut raw = Raw::greeted(&shim);
    let padding = " ".repeat(FRAME_MAX - 24);
    let longest = format!("{{{padding}\"id\":2,\"op\":\"status\"}}");
    raw.send_frame(&longest.as_bytes()[..FRAME_MAX.min(longest.len())]);
    assert_eq!(raw.answer().unwrap()["ok"]["kind"], "status", "{}", longest.len());
    raw.stream.write_all(&(FRAME_MAX as u32 + 1).to_le_bytes()).unwrap();
    assert_eq!(raw.answer().unwrap()["error"]["code"], "frame_too_long");
    assert_eq!(raw.answer(), None);
    still_serves(&shim);
}

#[test]
fn noise_of_every_kind_leaves_the_shim_as_it_was() {
    let shim = sleeper();
    let before = std::fs::read_dir(format!("/proc/{}/fd", shim.child.pid())).unwrap().count();
    // A fixed linear congruential sequence: the same noise in each run.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for round in 0..200 {
        let mut raw = if round % 2 == 0 { Raw::greeted(&shim) } else { Raw::connect(&shim) };
        let mut noise = vec![0; round * 7 % 900];
        for byte in &mut noise {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
        // Half of it with a sensible length, so that it is looked into.
        if round % 4 < 2 {
            noise.splice(0..0, (noise.len() as u32).to_le_bytes());
        }
        // The shim may have hung up already.
        raw.stream.write_all(&noise).ok();
    }
    still_serves(&shim);
    until("all descriptors are closed", || {
        std::fs::read_dir(format!("/proc/{}/fd", shim.child.pid())).unwrap().count() == before
    });
}

#[test]
fn clients_beyond_the_limit_are_told_so() {
    let shim = sleeper();
    let mut clients: Vec<Client> = (0..16).map(|_| shim.client()).collect();
    let refused = Client::connect(&shim.spec.socket, PATIENCE).unwrap_err();
    assert!(matches!(refused, ClientError::Closed) || refused.refusal() == Some(ErrorCode::Limit), "{refused:?}");
    clients.iter_mut().for_each(|client| drop(client.status().unwrap()));
    clients.pop();
    until("the place is free", || Client::connect(&shim.spec.socket, PATIENCE).is_ok());
}

#[test]
fn pending_requests_are_limited() {
    let shim = sleeper();
    let mut raw = Raw::greeted(&shim);
    for id in 100..117 {
        raw.send(&json!({"id": id, "op": "wait"}));
    }
    let answer = raw.answer().unwrap();
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(116), &json!("limit")));
    shim.client().stop(Duration::ZERO).unwrap();
    for id in 100..116 {
        assert_eq!(raw.answer().unwrap()["id"], id);
    }
}

#[test]
fn a_client_that_does_not_read_is_not_waited_for_and_then_dropped() {
    // Enough on the console that each answer is long.
    let shim = Plan::script("seq 1 20000; echo up; exec sleep 600").start();
    shim.console_says("up");
    let mut slow = Raw::greeted(&shim);
    slow.stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let request = json!({"id": 3, "op": "console_tail", "bytes": 40960}).to_string();
    let mut frame = (request.len() as u32).to_le_bytes().to_vec();
    frame.extend_from_slice(request.as_bytes());
    let started = Instant::now();
    // Until the shim does not listen to it any more.
    while slow.stream.write_all(&frame).is_ok() {
        assert!(started.elapsed() < PATIENCE, "the shim takes requests without end");
    }
    still_serves(&shim);
    let (_, most) = shim.memory_kib();
    assert!(most < 16 * 1024, "{most} KiB for a client that does not read");
    until("it is dropped", || {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", shim.child.pid())).unwrap().flatten();
        let sockets =
            fds.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:")));
        sockets.count() == 1
    });
    still_serves(&shim);
}

#[test]
fn a_client_that_reads_late_gets_everything() {
    let shim = Plan::script("seq 1 20000; echo up; exec sleep 600").start();
    shim.console_says("up");
    let mut late = Raw::greeted(&shim);
    // More answers than socket and queue hold; the requests themselves fit.
    for id in 0..40 {
        late.send(&json!({"id": id, "op": "console_tail", "bytes": 40960}));
    }
    for id in 0..40 {
        assert_eq!(late.answer().unwrap()["id"], id);
    }
}

#[test]
fn half_a_frame_is_not_waited_for_for_ever() {
    let shim = sleeper();
    let mut raw = Raw::greeted(&shim);
    raw.stream.write_all(&[40, 0, 0, 0, b'{']).unwrap();
    let started = Instant::now();
    assert_eq!(raw.answer(), None, "hung up");
    assert!(started.elapsed() >= Duration::from_secs(4), "{:?}", started.elapsed());
    still_serves(&shim);
}

#[test]
fn an_idle_client_may_stay() {
    let shim = sleeper();
    let mut idle = shim.client();
    std::thread::sleep(Duration::from_millis(5500));
    idle.status().unwrap();
}
