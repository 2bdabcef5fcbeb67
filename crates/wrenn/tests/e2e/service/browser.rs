//! The test page in a real browser: the whole life of a sandbox by clicking, with a picture of each step.
//!
//! Only on the machine itself: an emulated host has no browser. Pictures are kept in `target/screenshots`.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fantoccini::wd::Capabilities;
use fantoccini::{Client, ClientBuilder, Locator};
use serde_json::json;

use super::server::{Service, run};
use crate::world::{LIMIT, finish, signal};

/// `chromedriver`, and a browser that it starts.
struct Browser {
    driver: Option<Child>,
    port: u16,
    profile: tempfile::TempDir,
}

impl Browser {
    fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("/usr/bin/chromedriver");
        command.arg(format!("--port={port}")).stdout(Stdio::null()).stderr(Stdio::null());
        let profile = tempfile::tempdir().unwrap();
        // What the browser keeps beside its profile is not to be somebody's.
        for folder in ["HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "TMPDIR"] {
            command.env(folder, profile.path());
        }
        let driver = command.spawn().expect("chromedriver is installed; `cargo xtask setup` does it");
        Self { driver: Some(driver), port, profile }
    }

    async fn open(&self, width: u32, height: u32, dark: bool) -> Page {
        let profile = self.profile.path().join(format!("{width}-{dark}"));
        let mut args = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-sync",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-dev-shm-usage",
        ]
        .map(str::to_owned)
        .to_vec();
        args.push(format!("--user-data-dir={}", profile.display()));
        args.push(format!("--window-size={width},{height}"));
        if dark {
            args.push("--blink-settings=preferredColorScheme=0".to_owned());
        }
        let options = json!({ "args": args, "binary": "/usr/bin/chromium" });
        let capabilities = Capabilities::from_iter([("goog:chromeOptions".to_owned(), options)]);
        let begun = Instant::now();
        loop {
            let mut builder = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
            match builder.capabilities(capabilities.clone()).connect(&format!("http://127.0.0.1:{}", self.port)).await {
                Ok(client) => return Page(client),
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(60), "no browser: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn stop(mut self) {
        let driver = self.driver.take().expect("it runs");
        signal(driver.id(), "TERM");
        finish(driver);
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Some(driver) = &self.driver {
            signal(driver.id(), "KILL");
        }
    }
}

/// A page, by what its parts are called.
struct Page(Client);

fn part(name: &str) -> String {
    format!("[data-testid={name}]")
}

impl Page {
    async fn wait(&self, css: &str) -> fantoccini::elements::Element {
        self.0
            .wait()
            .at_most(LIMIT)
            .for_element(Locator::Css(css))
            .await
            .unwrap_or_else(|error| panic!("{css}: {error}"))
    }

    /// Clicks on it, once it can be.
    async fn click(&self, css: &str) {
        let begun = Instant::now();
        loop {
            match self.wait(css).await.click().await {
                Ok(()) => return,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(30), "{css}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn fill(&self, css: &str, text: &str) {
        let field = self.wait(css).await;
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    /// Waits until the part says this.
    async fn says(&self, css: &str, wanted: &str) {
        let begun = Instant::now();
        loop {
            let element = self.wait(css).await;
            let text = element.text().await.unwrap_or_default();
            if text.contains(wanted) {
                return;
            }
            assert!(begun.elapsed() < LIMIT, "{css} says {text:?}, not {wanted:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the chosen sandbox is in this state.
    async fn is(&self, state: &str) {
        self.wait(&format!("{}[data-state={state}]", part("detail"))).await;
    }

    async fn picture(&self, name: &str) {
        let folder = pictures();
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{name}.png")), self.0.screenshot().await.unwrap()).unwrap();
    }

    /// That no error is in sight. A tab that is not looked at may have one: a terminal whose sandbox was paused.
    async fn no_errors(&self) {
        for error in self.0.find_all(Locator::Css("[data-testid=error]")).await.unwrap() {
            let text = error.text().await.unwrap_or_default();
            assert!(!error.is_displayed().await.unwrap_or(false), "the page shows an error: {text}");
        }
    }
}

fn pictures() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("screenshots")
}

#[test]
fn bare_a_sandbox_lives_its_whole_life_by_clicking() {
    let service = Service::begin();
    let browser = Browser::start();
    run(async {
        service.api().await;
        let page = browser.open(1280, 900, false).await;
        page.0.goto(&format!("{}/test", service.url())).await.unwrap();
        page.fill(&part("key-input"), &service.key).await;
        page.picture("1-key").await;
        page.click(&part("key-save")).await;
        page.says(&part("whoami"), "first").await;

        page.click(&format!("{}, {}", part("create-open-first"), part("create-open"))).await;
        page.wait(&format!("{} option", part("create-template"))).await;
        page.picture("2-create").await;
        page.click(&part("create-submit")).await;
        page.is("running").await;
        page.wait(&part("timings")).await;

        page.click(&part("tab-exec")).await;
        page.fill(&part("exec-input"), "echo hello from $(uname -s); exit 3").await;
        page.click(&part("exec-how-shell")).await;
        page.click(&part("exec-run")).await;
        page.wait(&format!("{}[data-code='3']", part("exec-exit"))).await;
        page.says(&part("exec-output"), "hello from Linux").await;
        page.picture("3-exec").await;

        page.click(&part("tab-terminal")).await;
        page.wait(&format!("{}[data-state=open]", part("terminal-state"))).await;
        page.click(&format!("{} .xterm-screen", part("terminal"))).await;
        let keys = page.wait(&format!("{} .xterm-helper-textarea", part("terminal"))).await;
        keys.send_keys("echo typed $((6*7)) > /root/typed; cat /root/typed\u{e007}").await.unwrap();
        page.says(".xterm-rows", "typed 42").await;
        page.picture("4-terminal").await;

        page.click(&part("tab-files")).await;
        page.fill(&part("files-path"), "/root").await;
        page.click(&part("files-go")).await;
        page.wait(&format!("{}[data-name=typed]", part("files-row"))).await;
        page.picture("5-files").await;

        page.click(&part("tab-snapshots")).await;
        page.fill(&part("snapshot-name"), "kept").await;
        page.click(&part("snapshot-create")).await;
        page.wait(&format!("{}[data-name=kept]", part("snapshot-row"))).await;
        page.is("running").await;
        page.picture("6-snapshots").await;

        page.click(&part("action-pause")).await;
        page.is("paused").await;
        page.picture("7-paused").await;
        page.click(&part("action-resume")).await;
        page.is("running").await;

        page.click(&part("action-fork")).await;
        page.click(&part("dialog-confirm")).await;
        page.wait(&format!(
            "{}:nth-of-type(2), {} ~ {}",
            part("sandbox-row"),
            part("sandbox-row"),
            part("sandbox-row")
        ))
        .await;

        for (tab, name) in [("tab-metrics", "8-metrics"), ("tab-logs", "9-logs"), ("tab-events", "10-events")] {
            page.click(&part(tab)).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            page.picture(name).await;
        }
        page.no_errors().await;

        let phone = browser.open(390, 844, true).await;
        phone.0.goto(&format!("{}/test#key={}", service.url(), service.key)).await.unwrap();
        phone.wait(&part("sandbox-row")).await;
        phone.picture("11-phone-dark").await;
        phone.0.close().await.unwrap();

        loop {
            let rows = page.0.find_all(Locator::Css(&part("sandbox-row"))).await.unwrap();
            let Some(row) = rows.into_iter().next() else { break };
            let id = row.attr("data-id").await.unwrap().unwrap();
            page.click(&format!("{}[data-id={id}]", part("sandbox-row"))).await;
            page.wait(&format!("{}[data-id={id}]", part("detail"))).await;
            page.click(&part("action-destroy")).await;
            page.click(&part("dialog-confirm")).await;
            let begun = Instant::now();
            while page.0.find(Locator::Css(&format!("{}[data-id={id}]", part("sandbox-row")))).await.is_ok() {
                assert!(begun.elapsed() < LIMIT, "{id} stays in the list");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        page.picture("12-empty").await;
        page.0.goto(&format!("{}/docs", service.url())).await.unwrap();
        page.wait(".swagger-ui .opblock").await;
        page.picture("13-docs").await;
        page.0.close().await.unwrap();
        service.api().await.delete("/v1/snapshots/kept").await.ok();
    });
    browser.stop();
    service.end();
}
