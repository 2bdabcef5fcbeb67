//! Where what is asked for happens: at the agent of a `WRENN_DIR` of this host, or at a server.

use std::path::PathBuf;

use anyhow::{Result, bail};
use wrenn_client::Client;

use crate::cli::ServerArgs;

/// The way to sandboxes.
#[derive(Clone)]
pub struct Place {
    /// The instance of this host.
    pub dir: PathBuf,
    /// A server that is asked instead.
    server: Option<Client>,
}

impl Place {
    /// As the command line says.
    pub fn new(dir: PathBuf, server: &ServerArgs) -> Result<Self> {
        let server = match (server.url.as_deref().filter(|url| !url.is_empty()), server.key.as_deref()) {
            (Some(url), key) => Some(Client::new(url, key.filter(|key| !key.is_empty()))?),
            (None, _key_for_nobody) => None,
        };
        Ok(Self { dir, server })
    }

    /// The server that is asked, if it is one.
    pub fn server(&self) -> Option<&Client> {
        self.server.as_ref()
    }

    /// Refuses what is done on this host alone; `instead` says what there is with a server.
    pub fn demand_local(&self, what: &str, instead: &str) -> Result<()> {
        match &self.server {
            Some(client) => bail!(
                "{what} works on this host, not through the server at {} (--url, WRENN_URL); {instead}",
                client.server()
            ),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_asked_when_there_is_a_url() {
        let place = |url: Option<&str>, key: Option<&str>| {
            let args = ServerArgs { url: url.map(str::to_owned), key: key.map(str::to_owned) };
            Place::new(PathBuf::from("/nowhere"), &args)
        };
        let server = |url, key| place(url, key).unwrap().server().map(|client| client.server().to_owned());
        assert_eq!(server(None, None), None);
        assert_eq!(server(None, Some("wrn_1")), None);
        assert_eq!(server(Some(""), Some("")), None, "an empty variable is none");
        assert_eq!(server(Some("http://127.0.0.1:1/"), None).as_deref(), Some("http://127.0.0.1:1"));
        assert!(place(Some("127.0.0.1:1"), None).is_err());
        let refused =
            place(Some("http://127.0.0.1:1"), None).unwrap().demand_local("`wrenn run`", "use another").unwrap_err();
        assert!(refused.to_string().contains("http://127.0.0.1:1"), "{refused}");
        assert!(place(None, None).unwrap().demand_local("`wrenn run`", "").is_ok());
    }
}
