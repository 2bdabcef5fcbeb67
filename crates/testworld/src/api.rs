//! A client of the REST API that believes nothing: each answer, and each request that was not meant to be wrong, is held against the
//! OpenAPI document that the server itself shows.

use std::collections::BTreeMap;
use std::time::Duration;

use jsonschema::Validator;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

/// How long an answer may take: an emulated host boots a microVM meanwhile.
const ANSWER_LIMIT: Duration = Duration::from_secs(240);

/// The API of one server, with one key.
#[derive(Clone)]
pub struct Api {
    /// Where it is: `http://HOST:PORT`.
    pub base: String,
    /// The key; none is sent if `None`.
    pub key: Option<String>,
    http: Client,
    document: std::sync::Arc<Document>,
}

/// An answer, which was found to be as the document says.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: reqwest::header::HeaderMap,
    /// Its body; null if there was none.
    pub body: Value,
}

impl Answer {
    /// The body of an answer that must be a success.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!(self.status.is_success(), "{}: {:#}", self.status, self.body);
        self.body
    }

    /// The code of an answer that must be a refusal.
    #[track_caller]
    pub fn code(&self) -> &str {
        assert!(!self.status.is_success(), "{}: {:#}", self.status, self.body);
        self.body["error"]["code"].as_str().unwrap_or_else(|| panic!("no code: {:#}", self.body))
    }
}

impl Api {
    /// The API at `base`, whose document is asked for.
    pub async fn open(base: &str, key: Option<&str>) -> Self {
        // Whoever was first has done it; only tests over TLS need it at all.
        drop(rustls::crypto::ring::default_provider().install_default());
        let http = Client::builder().timeout(ANSWER_LIMIT).build().unwrap();
        let document = http.get(format!("{base}/openapi.json")).send().await.unwrap().json().await.unwrap();
        let document = std::sync::Arc::new(Document(document));
        Self { base: base.to_owned(), key: key.map(str::to_owned), http, document }
    }

    /// Waits until the server has all that it needs.
    pub async fn until_ready(&self) {
        let begun = std::time::Instant::now();
        loop {
            // A server that is being started anew refuses connections for a moment, or breaks them.
            let health = self.http.get(format!("{}/healthz", self.base)).send().await;
            if health.is_ok_and(|answer| answer.status().is_success()) {
                return;
            }
            assert!(begun.elapsed() < ANSWER_LIMIT, "the server does not become ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The same with another key.
    pub fn with_key(&self, key: Option<&str>) -> Self {
        Self { key: key.map(str::to_owned), ..self.clone() }
    }

    /// The document.
    pub fn document(&self) -> &Value {
        &self.document.0
    }

    /// `GET path`.
    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, None).await
    }

    /// `POST path` with this body, which is to be as the document says.
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.document.check_request("post", path, &body);
        self.call(Method::POST, path, Some(body)).await
    }

    /// `POST path` with a body that need not be as the document says.
    pub async fn post_odd(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, Some(body)).await
    }

    /// `DELETE path`.
    pub async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path, None).await
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let name = method.as_str().to_ascii_lowercase();
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        self.answer(&name, path, request).await
    }

    /// A request with the key, to be sent with [`Api::answer`].
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.key {
            Some(key) => request.header("x-api-key", key),
            None => request,
        }
    }

    /// Sends a request, and holds its answer against the document.
    pub async fn answer(&self, method: &str, path: &str, request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.unwrap_or_else(|error| panic!("{method} {path}: {error:?}"));
        let (status, headers) = (response.status(), response.headers().clone());
        assert!(headers.contains_key("x-request-id"), "{method} {path}: every answer has an id");
        let bytes = response.bytes().await.unwrap();
        let body = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{method} {path}: {status}: {error}"))
        };
        self.document.check_answer(method, path, status, &body);
        Answer { status, headers, body }
    }
}

/// An OpenAPI document.
struct Document(Value);

impl Document {
    /// What it says of an operation: that whose template the path fits, and has the fewest variable parts.
    fn operation(&self, method: &str, path: &str) -> Option<&Value> {
        let path = path.split('?').next().unwrap_or_default();
        let paths = self.0["paths"].as_object()?;
        let fitting = paths.iter().filter(|(template, _)| fits(template, path));
        let (_, item) = fitting.min_by_key(|(template, _)| template.matches('{').count())?;
        item.get(method)
    }

    fn validator(&self, schema: &Value) -> Validator {
        let mut root = schema.clone();
        root["components"] = self.0["components"].clone();
        jsonschema::options().build(&root).unwrap_or_else(|error| panic!("a schema that is none: {error}"))
    }

    fn check(&self, what: &str, schema: &Value, body: &Value) {
        let errors: BTreeMap<String, String> = self
            .validator(schema)
            .iter_errors(body)
            .map(|error| (error.instance_path().to_string(), error.to_string()))
            .collect();
        assert!(errors.is_empty(), "{what} is not what the document says: {errors:#?}\n{body:#}");
    }

    fn check_request(&self, method: &str, path: &str, body: &Value) {
        let Some(operation) = self.operation(method, path) else { panic!("{method} {path} is not in the document") };
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        assert!(!schema.is_null(), "{method} {path} takes no JSON, says the document");
        self.check(&format!("the request of {method} {path}"), schema, body);
    }

    fn check_answer(&self, method: &str, path: &str, status: StatusCode, body: &Value) {
        let Some(operation) = self.operation(method, path) else {
            assert!(matches!(status.as_u16(), 400..=405), "{method} {path} is not in the document: {status}");
            return;
        };
        let responses = &operation["responses"];
        let said = responses.get(status.as_str()).filter(|said| !said.is_null());
        let said = said.or_else(|| responses.get("default").filter(|_| !status.is_success()));
        let said = said.unwrap_or_else(|| panic!("{method} {path}: the document says nothing of {status}: {body:#}"));
        let schema =
            said.get("content").and_then(|content| content.get("application/json")).map(|json| &json["schema"]);
        match schema {
            Some(schema) => self.check(&format!("the answer {status} to {method} {path}"), schema, body),
            None => assert_eq!(*body, Value::Null, "{method} {path}: {status} has no body, says the document"),
        }
    }
}

/// Whether a path is one of this template.
fn fits(template: &str, path: &str) -> bool {
    let (template, path) = (template.split('/'), path.split('/'));
    template.clone().count() == path.clone().count()
        && template.zip(path).all(|(wanted, is)| wanted == is || (wanted.starts_with('{') && !is.is_empty()))
}

/// A body without anything in it.
pub fn nothing() -> Value {
    json!({})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_fits_its_template_alone() {
        assert!(fits("/v1/sandboxes/{id}", "/v1/sandboxes/sb1"));
        assert!(!fits("/v1/sandboxes/{id}", "/v1/sandboxes/"));
        assert!(!fits("/v1/sandboxes/{id}", "/v1/sandboxes/sb1/pause"));
        assert!(fits("/v1/sandboxes", "/v1/sandboxes"));
    }

    #[test]
    #[should_panic = "is not what the document says"]
    fn an_answer_that_is_otherwise_is_found() {
        let document = Document(json!({
            "paths": { "/a": { "get": { "responses": { "200": {
                "content": { "application/json": { "schema": { "$ref": "#/components/schemas/A" } } }
            } } } } },
            "components": { "schemas": { "A": { "type": "object", "required": ["id"] } } },
        }));
        document.check_answer("get", "/a?b", StatusCode::OK, &json!({}));
    }
}
