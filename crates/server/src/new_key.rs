//! Makes keys: for a server, and for who has no server yet.

use wrenn_client::types::{Key, NewKey, NewKeyRequest};

use crate::attributes::LOCAL;
use crate::auth::Secret;
use crate::db::Database;
use crate::error::{ApiError, shown};
use crate::ids::new_id;
use crate::time::now_unix_ms;

/// Longest name of a key, in characters.
const NAME_CHARS_MAX: usize = 64;
/// The tenant, if nothing is said.
const TENANT: &str = "default";
/// Longest name of a tenant, in bytes.
const TENANT_BYTES_MAX: usize = 64;

/// Makes a key and writes it down, all but its secret.
pub async fn make(db: &Database, request: NewKeyRequest) -> Result<NewKey, ApiError> {
    let NewKeyRequest { name, scope, tenant, sandboxes_max, vcpus_max, memory_mib_max } = request;
    if name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
        return Err(ApiError::invalid(format!(
            "`name` is at most {NAME_CHARS_MAX} characters, none of them a control character"
        )));
    }
    let tenant = tenant.unwrap_or_else(|| TENANT.to_owned());
    check_tenant(&tenant)?;
    let secret = Secret::new()?;
    let key = Key {
        id: new_id("ky")?,
        name,
        prefix: secret.prefix(),
        scope,
        tenant,
        created_unix_ms: now_unix_ms(),
        last_used_unix_ms: None,
        revoked_unix_ms: None,
        sandboxes_max,
        vcpus_max,
        memory_mib_max,
    };
    db.add_key(&key, &secret.digest().to_hex()).await?;
    Ok(NewKey { secret: secret.reveal(), key })
}

fn check_tenant(tenant: &str) -> Result<(), ApiError> {
    if tenant == LOCAL {
        return Err(ApiError::invalid(format!("the tenant `{LOCAL}` is whoever makes sandboxes on the host itself")));
    }
    let fits = (1..=TENANT_BYTES_MAX).contains(&tenant.len());
    let begins_well = tenant.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    if fits && begins_well && tenant.chars().all(is_part) {
        return Ok(());
    }
    let form = format!("1 to {TENANT_BYTES_MAX} characters of [a-z0-9._-], beginning with a letter or digit");
    Err(ApiError::invalid(format!("`{}` is no tenant: one is {form}", shown(tenant))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_have_names_that_can_be_written_down() {
        for good in ["default", "a", "team-1.x_y", "0"] {
            check_tenant(good).unwrap();
        }
        for bad in ["", "local", "-a", "A", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert!(check_tenant(bad).is_err(), "{bad}");
        }
    }
}
