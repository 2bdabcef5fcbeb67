//! `wrenn key …`: the keys that a server is asked with.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use wrenn_client::types::{Key, NewKey, NewKeyRequest};
use wrenn_client::{Client, ClientError};

use crate::EXIT_FAILED;
use crate::cli::{KeyVerb, NewKeyArgs};
use crate::place::Place;
use crate::sandbox::block_on;
use crate::words::{columns, now_unix_ms, printable_line, since};

/// Does one of the verbs.
pub fn run(place: &Place, verb: KeyVerb) -> Result<ExitCode> {
    match place.server() {
        Some(client) => block_on(through(client, verb)),
        None => local(&place.dir, verb),
    }
}

/// Without a server that is asked.
fn local(_dir: &Path, _verb: KeyVerb) -> Result<ExitCode> {
    bail!("keys are a server's; say which with --url or WRENN_URL")
}

async fn through(client: &Client, verb: KeyVerb) -> Result<ExitCode> {
    match verb {
        KeyVerb::Create(args) => create(client, args).await,
        KeyVerb::Ls { json } => list(client, json).await,
        KeyVerb::Rm { ids, json } => revoke(client, &ids, json).await,
    }
}

fn request(args: &NewKeyArgs) -> NewKeyRequest {
    NewKeyRequest {
        name: args.name.clone(),
        scope: args.scope.into(),
        tenant: args.tenant.clone(),
        sandboxes_max: args.sandboxes,
        vcpus_max: args.vcpus,
        memory_mib_max: args.memory,
    }
}

async fn create(client: &Client, args: NewKeyArgs) -> Result<ExitCode> {
    let new = client.create_key(&request(&args)).await?;
    if args.json {
        println!("{}", new_json(&new)?);
    } else {
        println!("{}", new.secret);
        let key = &new.key;
        let (scope, tenant) = (key.scope.as_str(), printable_line(&key.tenant));
        eprintln!("wrenn: key {} may {scope} for tenant {tenant}; it is shown this once", key.id);
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(client: &Client, json: bool) -> Result<ExitCode> {
    let keys = client.all_keys().await?;
    if json {
        println!("{}", serde_json::to_value(&keys)?);
    } else {
        print!("{}", table(&keys, now_unix_ms()));
    }
    Ok(ExitCode::SUCCESS)
}

/// All of them are tried, whatever becomes of one.
async fn revoke(client: &Client, ids: &[String], json: bool) -> Result<ExitCode> {
    let mut answers = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for id in ids {
        let answer = client.revoke_key(id).await;
        if answer.is_err() {
            code = ExitCode::from(EXIT_FAILED);
        }
        match answer {
            answer if json => answers.push(revoked_json(id, answer)),
            Ok(key) => println!("key {} ({}) is revoked", key.id, printable_line(&key.name)),
            Err(error) => eprintln!("wrenn: {}", crate::causes(&error.into())),
        }
    }
    if json {
        println!("{}", Value::from(answers));
    }
    Ok(code)
}

/// With its secret beside the rest, as the server says it.
fn new_json(new: &NewKey) -> Result<Value> {
    let mut value = serde_json::to_value(&new.key)?;
    value["secret"] = new.secret.as_str().into();
    Ok(value)
}

fn revoked_json(id: &str, answer: Result<Key, ClientError>) -> Value {
    match answer {
        Ok(_revoked) => json!({ "id": id, "error": null }),
        Err(error) => {
            let code = error.code().map_or("unavailable", wrenn_client::types::Code::as_str);
            json!({ "id": id, "error": { "code": code, "message": crate::causes(&error.into()) } })
        }
    }
}

/// Keys, a line each.
fn table(keys: &[Key], now_unix_ms: u64) -> String {
    let limit = |limit: Option<u32>| limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string());
    let ago = |then: Option<u64>| then.map_or_else(|| "-".to_owned(), |then| since(then, now_unix_ms));
    let row = |key: &Key| {
        [
            key.id.clone(),
            if key.name.is_empty() { "-".to_owned() } else { printable_line(&key.name) },
            printable_line(&key.prefix),
            key.scope.as_str().to_owned(),
            printable_line(&key.tenant),
            since(key.created_unix_ms, now_unix_ms),
            ago(key.last_used_unix_ms),
            ago(key.revoked_unix_ms),
            limit(key.sandboxes_max),
            limit(key.vcpus_max),
            limit(key.memory_mib_max),
        ]
    };
    let rows: Vec<_> = keys.iter().map(row).collect();
    let head = ["ID", "NAME", "KEY", "SCOPE", "TENANT", "AGE", "USED", "REVOKED", "SANDBOXES", "VCPUS", "MEMORY"];
    columns(head, &rows)
}

#[cfg(test)]
mod tests {
    use wrenn_client::types::Scope;

    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn key() -> Key {
        Key {
            id: "ky0123456789abcdefgh".to_owned(),
            name: "ci\u{1b}".to_owned(),
            prefix: "wrn_ab12".to_owned(),
            scope: Scope::Write,
            tenant: "default".to_owned(),
            created_unix_ms: NOW - 200_000,
            last_used_unix_ms: Some(NOW - 60_000),
            revoked_unix_ms: None,
            sandboxes_max: Some(5),
            vcpus_max: None,
            memory_mib_max: Some(4096),
        }
    }

    #[test]
    fn keys_are_a_line_each() {
        assert_eq!(
            format!("\n{}", table(&[key()], NOW)),
            "
ID                    NAME  KEY       SCOPE  TENANT   AGE  USED  REVOKED  SANDBOXES  VCPUS  MEMORY
ky0123456789abcdefgh  ci\u{fffd}   wrn_ab12  write  default  3m   60s   -        5          -      4096
"
        );
    }

    #[test]
    fn programs_get_the_secret_once() {
        let new = NewKey { secret: "wrn_secret".to_owned(), key: key() };
        let value = new_json(&new).unwrap();
        assert_eq!((&value["id"], &value["secret"]), (&json!("ky0123456789abcdefgh"), &json!("wrn_secret")));
        assert_eq!(revoked_json("ky1", Ok(key())), json!({ "id": "ky1", "error": null }));
        assert_eq!(revoked_json("ky1", Err(ClientError::Key))["error"]["code"], "unavailable");
    }

    #[test]
    fn without_a_server_it_is_said_what_to_give() {
        let error = local(Path::new("/nowhere"), KeyVerb::Ls { json: false }).unwrap_err();
        assert!(error.to_string().contains("--url"), "{error}");
    }
}
