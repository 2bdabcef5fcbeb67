//! The suite with PostgreSQL, and what goes wrong with a server.

use std::io::{Read as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustix::process::Signal;
use wrenn_testworld::postgres::Postgres;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn all_of_it_works_with_postgresql() {
    let Some(mut server) = Postgres::start_unless_left_out() else { return };
    on_postgres(&server).await;
    a_backup_is_pg_dump_s(&server).await;
    a_lock_is_waited_for_but_not_for_ever(&server).await;
    a_lost_connection_is_replaced(&server).await;
    a_frozen_server_is_unavailable_until_it_goes_on(&server).await;
    a_stopped_server_is_unavailable_until_it_is_back(&mut server).await;
    what_is_not_there_is_told(&server).await;
    a_server_without_tls_is_not_talked_to_in_the_clear(&server).await;
    tls_is_what_the_url_says(&mut server).await;
}

async fn a_backup_is_pg_dump_s(server: &Postgres) {
    let database = open(&new_database(server)).await;
    let error = database.backup(Path::new("/nowhere/copy.db")).await.unwrap_err();
    assert!(error.to_string().contains("pg_dump"), "{error}");
}

async fn a_lock_is_waited_for_but_not_for_ever(server: &Postgres) {
    let url = new_database(server);
    let database = open(&url).await;
    let mut other = beside(&url).await;
    query("BEGIN").execute(&mut other).await.unwrap();
    query("LOCK TABLE keys").execute(&mut other).await.unwrap();
    let begun = Instant::now();
    let error = database.add_key(&key(1), &digest(1)).await.unwrap_err();
    assert!(error.is_unavailable() && begun.elapsed() < limits::CALL + Duration::from_secs(1), "{error:?}");
    query("COMMIT").execute(&mut other).await.unwrap();
    database.add_key(&key(1), &digest(1)).await.unwrap();
}

async fn a_lost_connection_is_replaced(server: &Postgres) {
    let url = new_database(server);
    let database = open(&url).await;
    for number in 0..3 {
        run_beside(
            &url,
            "SELECT CAST(count(pg_terminate_backend(pid)) AS BIGINT) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .await;
        database.add_key(&key(number), &digest(number)).await.unwrap();
    }
}

async fn a_frozen_server_is_unavailable_until_it_goes_on(server: &Postgres) {
    let database = open(&new_database(server)).await;
    server.signal_all(Signal::STOP);
    let begun = Instant::now();
    let mut waiters = tokio::task::JoinSet::new();
    for number in 0..20 {
        let database = database.clone();
        waiters.spawn(async move { database.add_key(&key(number), &digest(number)).await });
    }
    let refused = waiters.join_all().await;
    let took = begun.elapsed();
    server.signal_all(Signal::CONT);
    assert!(refused.iter().all(|done| done.as_ref().is_err_and(DbError::is_unavailable)), "{refused:?}");
    assert!(took < limits::CALL + Duration::from_secs(1), "{took:?}");
    database.add_key(&key(100), &digest(100)).await.unwrap();
}

async fn a_stopped_server_is_unavailable_until_it_is_back(server: &mut Postgres) {
    let database = open(&new_database(server)).await;
    database.add_key(&key(1), &digest(1)).await.unwrap();
    server.stop();
    for _ in 0..2 {
        let begun = Instant::now();
        let error = database.find_key(&digest(1)).await.unwrap_err();
        assert!(error.is_unavailable() && begun.elapsed() < limits::CALL + Duration::from_secs(1), "{error:?}");
    }
    server.run();
    assert_eq!(database.find_key(&digest(1)).await.unwrap(), Some(key(1)));
    database.add_key(&key(2), &digest(2)).await.unwrap();
}

async fn what_is_not_there_is_told(server: &Postgres) {
    let error = Database::open(&server.url("no_such_database").parse().unwrap()).await.err().unwrap();
    assert!(error.is_unavailable() && format!("{error:?}").contains("does not exist"), "{error:?}");
}

async fn a_server_without_tls_is_not_talked_to_in_the_clear(server: &Postgres) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // What a server without TLS says to who asks for it.
    let refusing = thread::spawn(move || {
        for _ in 0..limits::OPEN_ATTEMPTS {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 8]).unwrap();
            stream.write_all(b"N").unwrap();
            assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "nothing is said in the clear");
        }
    });
    untrusted(&format!("postgres://wrenn@127.0.0.1:{port}/postgres?sslmode=require")).await;
    refusing.join().unwrap();
    assert!(encryption(&server.url("postgres").parse().unwrap()).await.contains("false"));
}

async fn tls_is_what_the_url_says(server: &mut Postgres) {
    let folder = tempfile::tempdir().unwrap();
    let (ca, other) = (Ca::new(&folder, "ca"), Ca::new(&folder, "other"));
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &ca.issuer).unwrap();
    let port = server.serve_tls(&cert.pem(), &key.serialize_pem());
    let url = |host: &str, rest: &str| format!("postgres://wrenn@{host}:{port}/postgres?{rest}");
    let verified = |ca: &Ca| format!("sslmode=verify-full&sslrootcert={}", ca.file.display());
    for good in [url("127.0.0.1", "sslmode=require"), url("localhost", &verified(&ca))] {
        let url: DatabaseUrl = good.parse().unwrap();
        assert!(encryption(&url).await.contains("true"), "{good}");
        open(&url).await.close().await;
    }
    untrusted(&url("localhost", &verified(&other))).await;
    untrusted(&url("localhost", "sslmode=verify-full")).await;
    untrusted(&url("127.0.0.1", &verified(&ca))).await;
}

/// That a database is not opened, and that it is said why.
async fn untrusted(url: &str) {
    let error = Database::open(&url.parse().unwrap()).await.err().unwrap();
    assert!(matches!(error, DbError::Untrusted { .. }) && error.is_unavailable(), "{url}: {error:?}");
}

/// What the server says of a connection's encryption.
async fn encryption(url: &DatabaseUrl) -> String {
    let mut connection = beside(url).await;
    let select = "SELECT CAST(ssl AS TEXT) FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let said = sqlx::query_scalar(select).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    said
}

/// An authority.
struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: PathBuf,
}

impl Ca {
    fn new(folder: &tempfile::TempDir, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let file = folder.path().join(format!("{name}.pem"));
        fs::write(&file, issuer.pem()).unwrap();
        Self { issuer, file }
    }
}

/// An empty database that nobody else has.
pub(super) fn new_database(server: &Postgres) -> DatabaseUrl {
    server.new_database().parse().unwrap()
}
