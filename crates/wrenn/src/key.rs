//! `wrenn key …`: the keys that a server is asked with.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};
use wrenn_client::Client;
use wrenn_client::types::{Code, Key, NewKey, NewKeyRequest};
use wrenn_server::db::Database;

use crate::EXIT_FAILED;
use crate::cli::{KeyVerb, NewKeyArgs};
use crate::place::Place;
use crate::sandbox::block_on;
use crate::serve;
use crate::words::{columns, now_unix_ms, printable_line, since};

/// Does one of the verbs: through a server that is asked, or in the database of this host's own.
pub fn run(place: &Place, verb: KeyVerb) -> Result<ExitCode> {
    match place.server() {
        Some(client) => block_on(through(Keys::Of(client), verb)),
        None => serve::local(&place.dir, None, async |db| through(Keys::In(db), verb).await),
    }
}

/// Where keys are looked after.
enum Keys<'a> {
    /// By a server.
    Of(&'a Client),
    /// In a database, whose server need not run.
    In(&'a Database),
}

impl Keys<'_> {
    async fn create(&self, wanted: NewKeyRequest) -> Result<NewKey> {
        match self {
            Self::Of(client) => Ok(client.create_key(&wanted).await?),
            Self::In(db) => serve::make_key(db, wanted).await,
        }
    }

    async fn all(&self) -> Result<Vec<Key>> {
        match self {
            Self::Of(client) => Ok(client.all_keys().await?),
            Self::In(db) => Ok(db.keys(None, u32::MAX).await?),
        }
    }

    async fn revoke(&self, id: &str) -> Result<Key, Refused> {
        match self {
            Self::Of(client) => client.revoke_key(id).await.map_err(|error| Refused {
                code: error.code().unwrap_or(Code::Unavailable),
                message: crate::causes(&error.into()),
            }),
            Self::In(db) => match db.revoke_key(id, now_unix_ms()).await {
                Ok(Some(key)) => Ok(key),
                Ok(None) => {
                    Err(Refused { code: Code::NotFound, message: format!("there is no key {}", printable_line(id)) })
                }
                Err(error) => Err(Refused { code: Code::Unavailable, message: crate::causes(&error.into()) }),
            },
        }
    }
}

/// Why a key was not revoked.
struct Refused {
    code: Code,
    message: String,
}

async fn through(keys: Keys<'_>, verb: KeyVerb) -> Result<ExitCode> {
    match verb {
        KeyVerb::Create(args) => create(&keys, args).await,
        KeyVerb::Ls { json } => list(&keys, json).await,
        KeyVerb::Rm { ids, json } => revoke(&keys, &ids, json).await,
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

async fn create(keys: &Keys<'_>, args: NewKeyArgs) -> Result<ExitCode> {
    let new = keys.create(request(&args)).await?;
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

async fn list(keys: &Keys<'_>, json: bool) -> Result<ExitCode> {
    let keys = keys.all().await?;
    if json {
        println!("{}", serde_json::to_value(&keys)?);
    } else {
        print!("{}", table(&keys, now_unix_ms()));
    }
    Ok(ExitCode::SUCCESS)
}

/// All of them are tried, whatever becomes of one.
async fn revoke(keys: &Keys<'_>, ids: &[String], json: bool) -> Result<ExitCode> {
    let mut answers = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for id in ids {
        let answer = keys.revoke(id).await;
        if answer.is_err() {
            code = ExitCode::from(EXIT_FAILED);
        }
        match answer {
            answer if json => answers.push(revoked_json(id, answer)),
            Ok(key) => println!("key {} ({}) is revoked", key.id, printable_line(&key.name)),
            Err(refused) => eprintln!("wrenn: {}", refused.message),
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

fn revoked_json(id: &str, answer: Result<Key, Refused>) -> Value {
    match answer {
        Ok(_revoked) => json!({ "id": id, "error": null }),
        Err(Refused { code, message }) => json!({ "id": id, "error": { "code": code, "message": message } }),
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
        let refused = Refused { code: Code::NotFound, message: "there is no key ky1".to_owned() };
        assert_eq!(revoked_json("ky1", Ok(key())), json!({ "id": "ky1", "error": null }));
        assert_eq!(revoked_json("ky1", Err(refused))["error"]["code"], "not_found");
    }
}
