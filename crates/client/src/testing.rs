//! Servers for tests, in this process.

use axum::Router;
use tokio::net::TcpListener;

use crate::Client;
use crate::types::{OnTimeout, Sandbox, Start, State, Vmm};

/// The key that clients of tests have.
pub const KEY: &str = "wrn_0123456789012345678901234567890123456789";

/// A client of a server that answers with `router` below `/some/where`.
pub async fn serve(router: Router) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().nest("/some/where", router);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Client::new(&format!("http://{address}/some/where"), Some(KEY)).unwrap()
}

/// A sandbox.
pub fn sandbox(id: &str) -> Sandbox {
    Sandbox {
        id: id.to_owned(),
        host: "here".to_owned(),
        state: State::Running,
        reason: None,
        revision: 4,
        created_unix_ms: 1_700_000_000_000,
        deadline_unix_ms: None,
        on_timeout: OnTimeout::Destroy,
        template: "0123456789abcdef".to_owned(),
        kernel: "6.12.9".to_owned(),
        vcpus: 2,
        memory_mib: 512,
        disk_mib: 4096,
        vmm: Vmm { driver: "qemu".to_owned(), version: "10.0.2".to_owned(), accel: "tcg".to_owned() },
        storage: "qcow2".to_owned(),
        start: Start::Warm,
        metadata: [("owner".to_owned(), "me".to_owned())].into(),
        tenant: "default".to_owned(),
        auto_resume: false,
        traffic_token: None,
        access_token: Some("secret".to_owned()),
    }
}
