//! What makes no sense is refused: each field and parameter of each operation, with values that the document does not allow.

use std::time::Duration;

use jsonschema::Validator;
use reqwest::Method;
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use wrenn_testworld::api::Api;

use crate::document::{Operation, operations};
use crate::server::{Server, head, sandbox, within};

/// What the server leaves to the agent to check, which knows what the host can do: its bounds, not its type.
const LEFT_TO_THE_AGENT: [(&str, &str); 10] = [
    ("/v1/sandboxes", "vcpus"),
    ("/v1/sandboxes", "memory_mib"),
    ("/v1/sandboxes", "disk_mib"),
    ("/v1/templates", "name"),
    ("/v1/templates", "build"),
    ("/v1/templates", "snapshot"),
    ("/v1/templates/{template}/warm", "vcpus"),
    ("/v1/templates/{template}/warm", "memory_mib"),
    ("/v1/templates/{template}/warm", "disk_mib"),
    ("/v1/snapshots", "name"),
];

/// A request that is to be refused.
struct Wrong {
    method: String,
    path: String,
    body: Option<Vec<u8>>,
    what: String,
}

/// A server, and what requests that would be good name.
struct World {
    server: Server,
    sandbox: String,
}

impl World {
    async fn new() -> Self {
        let server = Server::start().await.ready().await;
        let sandbox = sandbox(&server.api).await;
        Self { server, sandbox }
    }

    fn operations(&self) -> Vec<Operation> {
        let all = operations(self.server.api.document());
        all.into_iter().filter(Operation::is_guarded).collect()
    }

    /// Its path, with what is there.
    fn path(&self, operation: &Operation) -> String {
        operation
            .path
            .replace("/v1/sandboxes/{id}", &format!("/v1/sandboxes/{}", self.sandbox))
            .replace("{pid}", "7")
            .replace("{port}", "80")
            .replace("{snapshot}", "snap")
            .replace("{template}", "minimal")
            .replace("{id}", "xx0123456789abcdefgh")
    }

    /// A body with what is needed, and no more.
    fn body(&self, operation: &Operation) -> Map<String, Value> {
        let schema = self.resolved(operation.body().unwrap());
        let needed = schema["required"].as_array().into_iter().flatten().map(|name| name.as_str().unwrap());
        needed.map(|name| (name.to_owned(), self.good(name))).collect()
    }

    fn good(&self, field: &str) -> Value {
        match field {
            "sandbox" => json!(self.sandbox),
            "snapshot" => json!("snap"),
            "path" | "from" | "to" => json!("/tmp/a"),
            "command" => json!(["true"]),
            "signal" => json!(15),
            "timeout_s" => json!(60),
            other => panic!("a new field that is needed: {other}; say what is good for it"),
        }
    }

    /// The query with what is needed of it.
    fn query(&self, operation: &Operation, but: Option<&str>) -> String {
        let needed = operation.parameters("query").into_iter().filter(|parameter| parameter["required"] == true);
        let names = needed.map(|parameter| parameter["name"].as_str().unwrap()).filter(|name| Some(*name) != but);
        names.map(|name| format!("{name}={}&", self.good(name).as_str().unwrap())).collect()
    }

    fn resolved<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(place) => self.server.api.document().pointer(&place[1..]).unwrap(),
            None => schema,
        }
    }

    fn validator(&self, schema: &Value) -> Validator {
        let mut root = schema.clone();
        root["components"] = self.server.api.document()["components"].clone();
        jsonschema::options().build(&root).unwrap()
    }

    /// Values that this schema does not allow.
    fn not_allowed(&self, schema: &Value, bounds_too: bool) -> Vec<Value> {
        let validator = self.validator(schema);
        let whole = self.resolved(schema);
        let mut values = vec![
            json!(null),
            json!(true),
            json!(-1),
            json!(1.5),
            json!(u64::MAX),
            json!(1e300),
            json!([]),
            json!([1]),
            json!({}),
            json!({"a": 1}),
            json!({"a": null}),
            json!([["a"]]),
        ];
        let is_text =
            |value: &Value| value == "string" || value.as_array().is_some_and(|all| all.contains(&"string".into()));
        if !is_text(&whole["type"]) || whole.get("enum").is_some() {
            values.extend([json!(""), json!("nonsense"), json!("1")]);
        }
        if bounds_too {
            let number = |name: &str| whole[name].as_i64();
            values.extend(number("minimum").map(|least| json!(least - 1)));
            values.extend(number("maximum").map(|most| json!(most + 1)));
            values.extend(number("minLength").filter(|least| *least > 0).map(|_| json!("")));
            values.extend(number("maxLength").map(|most| json!("x".repeat(most as usize + 1))));
            values.extend(number("maxItems").map(|most| json!(vec!["x"; most as usize + 1])));
            values.extend(number("minItems").map(|_| json!([])));
            if whole["pattern"].is_string() {
                values.extend(
                    ["", "..", "../../etc/passwd", "A", "a b", "a\0", "ä", "\u{1b}[2J"].map(|text| json!(text)),
                );
                values.push(json!("x".repeat(1000)));
            }
        }
        values.retain(|value| !validator.is_valid(value));
        values
    }

    /// Sends all of them; what was not refused, and how it was answered.
    async fn not_refused(&self, wrong: Vec<Wrong>) -> Vec<String> {
        let mut not_refused = Vec::new();
        let before = self.server.agent.count();
        for Wrong { method, path, body, what } in wrong {
            let api = &self.server.api;
            let mut request = api.request(method.to_uppercase().parse().unwrap(), &path);
            if let Some(body) = body {
                request = request.header("content-type", "application/json").body(body);
            }
            let answer = tokio::time::timeout(Duration::from_secs(10), api.answer(&method, &path, request)).await;
            match answer {
                Ok(answer) if answer.status.is_client_error() && answer.status != 429 => {
                    assert!(!answer.code().is_empty());
                }
                Ok(answer) => not_refused.push(format!("{what}: {} {}", answer.status, answer.body)),
                Err(_elapsed) => not_refused.push(format!("{what}: no answer")),
            }
        }
        assert_eq!(self.server.agent.count(), before, "nothing was made or destroyed");
        not_refused
    }
}

fn shown(value: &impl ToString) -> String {
    value.to_string().chars().take(60).collect()
}

#[tokio::test]
async fn fields_of_bodies() {
    let world = World::new().await;
    let mut wrong = Vec::new();
    for operation in world.operations().iter().filter(|operation| operation.body().is_some()) {
        let (good, schema) = (world.body(operation), world.resolved(operation.body().unwrap()));
        let mut add = |body: Map<String, Value>, what: String| {
            let (method, path) = (operation.method.clone(), world.path(operation));
            let body = Some(serde_json::to_vec(&body).unwrap());
            wrong.push(Wrong { method, path, body, what: format!("{}: {what}", operation.name()) });
        };
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let bounds_too = !LEFT_TO_THE_AGENT.contains(&(operation.path.as_str(), name));
            for value in world.not_allowed(field, bounds_too) {
                let mut body = good.clone();
                let what = format!("`{name}` is {}", shown(&value));
                body.insert(name.clone(), value);
                add(body, what);
            }
        }
        for name in good.keys() {
            let mut body = good.clone();
            body.remove(name);
            add(body, format!("no `{name}`"));
        }
        let mut body = good.clone();
        body.insert("nonsense".to_owned(), json!(1));
        add(body, "unknown field".to_owned());
    }
    assert!(wrong.len() > 300, "{}", wrong.len());
    let not_refused = world.not_refused(wrong).await;
    assert!(not_refused.is_empty(), "{not_refused:#?}");
}

#[tokio::test]
async fn bodies_that_are_no_objects() {
    let world = World::new().await;
    let deep = "[".repeat(100_000);
    let bodies: [(&str, &[u8]); 9] = [
        ("array", b"[]"),
        ("text", b"\"x\""),
        ("number", b"1"),
        ("null", b"null"),
        ("half", b"{\"a\":"),
        ("two", b"{} {}"),
        ("no UTF-8", b"{\"path\":\"\xff\xfe\"}"),
        ("no text", b"\0\0\0"),
        ("deep", deep.as_bytes()),
    ];
    let mut wrong = Vec::new();
    for operation in world.operations().iter().filter(|operation| operation.body().is_some()) {
        for (what, body) in bodies {
            let (method, path) = (operation.method.clone(), world.path(operation));
            wrong.push(Wrong {
                method,
                path,
                body: Some(body.to_vec()),
                what: format!("{}: {what}", operation.name()),
            });
        }
    }
    let not_refused = world.not_refused(wrong).await;
    assert!(not_refused.is_empty(), "{not_refused:#?}");
}

#[tokio::test]
async fn a_body_says_that_it_is_json() {
    let world = World::new().await;
    for operation in world.operations().iter().filter(|operation| operation.body().is_some()) {
        let body = serde_json::to_vec(&world.body(operation)).unwrap();
        for kind in [None, Some("text/plain"), Some("application/x-www-form-urlencoded")] {
            let (api, path) = (&world.server.api, world.path(operation));
            let request = api.request(Method::POST, &path).body(body.clone());
            let request = kind.into_iter().fold(request, |request, kind| request.header("content-type", kind));
            let answer = api.answer("post", &path, request).await;
            assert_eq!(answer.code(), "unsupported_media_type", "{} {kind:?}", operation.name());
        }
    }
}

#[tokio::test]
async fn parameters_of_queries() {
    let world = World::new().await;
    let (mut wrong, mut missing) = (Vec::new(), Vec::new());
    for operation in &world.operations() {
        let parameters = operation.parameters("query");
        let mut add = |name: &str, value: &str| {
            let query = format!("{}{name}={value}", world.query(operation, Some(name)));
            let path = format!("{}?{query}", world.path(operation));
            let what = format!("{}: {}", operation.name(), shown(&query));
            wrong.push(Wrong { method: operation.method.clone(), path, body: None, what });
        };
        for parameter in &parameters {
            let (name, schema) = (parameter["name"].as_str().unwrap(), &parameter["schema"]);
            match schema["type"].as_str().unwrap() {
                "integer" => {
                    for value in ["x", "-1", "1.5", "1e3", "0x10", "%ff", "99999999999999999999999"] {
                        add(name, value);
                    }
                    if let Some(least) = schema["minimum"].as_i64() {
                        add(name, &(least - 1).to_string());
                    }
                    if let Some(most) = schema["maximum"].as_i64() {
                        add(name, &(most + 1).to_string());
                    }
                }
                "boolean" => ["x", "2", "%ff"].into_iter().for_each(|value| add(name, value)),
                "string" | "array" => {
                    add(name, "%ff%fe");
                    add(name, &"x".repeat(40_000));
                    if let Some(most) = schema["maxLength"].as_i64() {
                        add(name, &"x".repeat(most as usize + 1));
                    }
                    if schema["minLength"].as_i64().is_some_and(|least| least > 0) {
                        add(name, "");
                    }
                    if schema["pattern"].is_string() {
                        for value in ["x", "..", "%00"] {
                            add(name, value);
                        }
                    }
                }
                other => panic!("a parameter of a new type: {other}"),
            }
            if parameter["required"] == true {
                let path = format!("{}?{}", world.path(operation), world.query(operation, Some(name)));
                let what = format!("{}: no `{name}`", operation.name());
                missing.push(Wrong { method: operation.method.clone(), path, body: None, what });
            }
        }
        if !parameters.is_empty() {
            let path = format!("{}?{}nonsense=1", world.path(operation), world.query(operation, None));
            let what = format!("{}: unknown parameter", operation.name());
            wrong.push(Wrong { method: operation.method.clone(), path, body: None, what });
        }
    }
    wrong.extend(missing);
    assert!(wrong.len() > 100, "{}", wrong.len());
    let not_refused = world.not_refused(wrong).await;
    assert!(not_refused.is_empty(), "{not_refused:#?}");
}

#[tokio::test]
async fn what_varies_in_paths() {
    let world = World::new().await;
    let long = "x".repeat(5000);
    let odd = ["x", "%ff", "..%2f..%2fetc%2fpasswd", "%00", "%20", "sb0123456789ABCDEFGH", long.as_str(), "-1"];
    let mut wrong = Vec::new();
    for operation in world.operations().iter().filter(|operation| operation.path.contains('{')) {
        for parameter in operation.parameters("path") {
            let name = parameter["name"].as_str().unwrap();
            for value in odd {
                let path = operation.path.replace(&format!("{{{name}}}"), value);
                let path = world.path(&Operation { path, said: Value::Null, method: String::new() });
                let path = format!("{path}?{}", world.query(operation, None));
                let body = operation.body().map(|_| serde_json::to_vec(&world.body(operation)).unwrap());
                let what = format!("{}: `{name}` is {}", operation.name(), shown(&value));
                wrong.push(Wrong { method: operation.method.clone(), path, body, what });
            }
        }
    }
    let not_refused = world.not_refused(wrong).await;
    assert!(not_refused.is_empty(), "{not_refused:#?}");
}

#[tokio::test]
async fn an_idempotency_key_is_printable_and_short() {
    let world = World::new().await;
    let api = &world.server.api;
    for wrong in [&b""[..], b"\xff", b"\xc3\xa4", &[b'x'; 129]] {
        let value = reqwest::header::HeaderValue::from_bytes(wrong).unwrap();
        let request = api.request(Method::POST, "/v1/sandboxes").header("idempotency-key", value).json(&json!({}));
        assert_eq!(api.answer("post", "/v1/sandboxes", request).await.code(), "invalid", "{wrong:?}");
    }
    assert_eq!(world.server.agent.count(), 1);
}

fn key(api: &Api) -> &str {
    api.key.as_deref().unwrap()
}

#[tokio::test]
async fn a_body_of_a_gigabyte_is_refused_before_it_is_sent() {
    let world = World::new().await;
    for operation in world.operations().iter().filter(|operation| operation.body().is_some()) {
        let (path, key) = (world.path(operation), key(&world.server.api));
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nX-Api-Key: {key}\r\nContent-Type: application/json\r\nContent-Length: 1073741824\r\n\r\n"
        );
        let answer = world.server.raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{}: {answer}", operation.name());
        assert!(answer.to_ascii_lowercase().contains("x-request-id: rq"), "{answer}");
    }
}

#[tokio::test]
async fn a_body_of_unknown_length_is_refused_once_it_is_too_long() {
    let world = World::new().await;
    let mut stream = TcpStream::connect(world.server.address).await.unwrap();
    let request = format!(
        "POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nX-Api-Key: {}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        key(&world.server.api)
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let chunk = [&b"10000\r\n"[..], &[b' '; 0x10000], b"\r\n"].concat();
    let sending = tokio::spawn(async move {
        let mut sent = 0u64;
        while sent < 1 << 30 && writer.write_all(&chunk).await.is_ok() {
            sent += 0x10000;
        }
        sent
    });
    let mut heard = vec![0; 12];
    within("a refusal", tokio::io::AsyncReadExt::read_exact(&mut reader, &mut heard)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&heard), "HTTP/1.1 413");
    drop(reader);
    let sent = within("the end of the connection", sending).await.unwrap();
    assert!(sent < 64 << 20, "{sent} bytes were taken");
}

#[tokio::test]
async fn what_is_no_http_is_refused() {
    let world = World::new().await;
    for request in [
        &b"nonsense\r\n\r\n"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n",
        b"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ] {
        let answer = world.server.raw(request).await;
        assert!(answer.starts_with("HTTP/1.1 4") || answer.is_empty(), "{answer}");
    }
    let mut stream = TcpStream::connect(world.server.address).await.unwrap();
    let long = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(100 * 1024));
    drop(stream.write_all(long.as_bytes()).await);
    let answer = within("an answer", head(&mut stream)).await;
    assert!(answer.starts_with("HTTP/1.1 431") || answer.is_empty(), "{answer}");
    world.server.api.get("/v1/host").await.ok();
}
