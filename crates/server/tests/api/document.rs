//! The OpenAPI document: committed as it is generated, and what tests derive from it.

use serde_json::Value;
use wrenn_server::route;

/// An operation of the API, as the document has it.
pub struct Operation {
    /// In lower case.
    pub method: String,
    /// With `{names}` of what varies.
    pub path: String,
    /// The rest.
    pub said: Value,
}

impl Operation {
    /// As a person names it.
    pub fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// Whether it needs a key.
    pub fn is_guarded(&self) -> bool {
        self.path.starts_with("/v1/")
    }

    /// Whether it is answered with a stream of events.
    pub fn is_events(&self) -> bool {
        self.path.ends_with("/events")
    }

    /// Whether it is a WebSocket.
    pub fn is_socket(&self) -> bool {
        self.said["responses"].get("101").is_some()
    }

    /// Its parameters in `place`: query, path, header.
    pub fn parameters(&self, place: &str) -> Vec<&Value> {
        let all = self.said["parameters"].as_array().into_iter().flatten();
        all.filter(|parameter| parameter["in"] == place).collect()
    }

    /// The schema of its JSON body.
    pub fn body(&self) -> Option<&Value> {
        self.said.get("requestBody")?["content"].get("application/json").map(|json| &json["schema"])
    }
}

/// All operations of a document.
pub fn operations(document: &Value) -> Vec<Operation> {
    let paths = document["paths"].as_object().unwrap();
    let of_path = |(path, item): (&String, &Value)| {
        let path = path.clone();
        let methods = item.as_object().unwrap().clone().into_iter();
        methods.map(move |(method, said)| Operation { method, path: path.clone(), said }).collect::<Vec<_>>()
    };
    paths.iter().flat_map(of_path).collect()
}

/// Clients, documentation and people read the committed one: it changes only together with the routes.
#[test]
fn the_committed_document_is_what_the_routes_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
    let generated = format!("{}\n", route::openapi().to_pretty_json().unwrap());
    if std::env::var_os("WRENN_UPDATE_OPENAPI").is_some() {
        std::fs::write(path, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == generated,
        "openapi.json is not what the routes say; run this test with WRENN_UPDATE_OPENAPI=1"
    );
}

#[test]
fn each_operation_says_how_it_refuses() {
    let document = serde_json::to_value(route::openapi()).unwrap();
    let operations = operations(&document);
    assert!(operations.len() > 40, "{}", operations.len());
    for operation in operations.iter().filter(|operation| operation.is_guarded()) {
        let refused = &operation.said["responses"]["default"]["content"]["application/json"]["schema"];
        assert_eq!(refused["$ref"], "#/components/schemas/Refusal", "{}", operation.name());
        assert!(operation.said["summary"].is_string(), "{} says what it does", operation.name());
    }
}
