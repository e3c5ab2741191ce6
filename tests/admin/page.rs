//! The status page in a real browser, driven by its debugging protocol over two pipes.
//!
//! Needs Chromium: the program that `OUTRIGGER_TEST_CHROMIUM` names, or `chromium` on the path. Without one it is
//! skipped, and fails instead if `OUTRIGGER_TEST_REQUIRE` is set. `OUTRIGGER_TEST_SCREENSHOTS` names a folder that
//! keeps what the browser showed.

use base64::Engine as _;
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use crate::client::{address_of, await_answer};
use crate::servers;
use crate::support::{PATIENCE, Stage};

/// A browser with one page. Its folder goes with it.
struct Browser {
    child: Child,
    commands: File,
    answers: Receiver<Value>,
    session: String,
    sent: u64,
    /// Events that came while an answer was awaited.
    events: Vec<Value>,
    _folder: tempfile::TempDir,
}

fn chromium() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("OUTRIGGER_TEST_CHROMIUM") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join("chromium"))
        .find(|program| program.is_file());
    let required = std::env::var_os("OUTRIGGER_TEST_REQUIRE").is_some();
    assert!(found.is_some() || !required, "chromium is not installed");
    if found.is_none() {
        println!("SKIPPED: chromium is not installed, the status page is not looked at");
    }
    found
}

impl Browser {
    fn start(program: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pipe = |name: &str| {
            let path = folder.path().join(name);
            assert!(
                Command::new("mkfifo")
                    .arg(&path)
                    .status()
                    .unwrap()
                    .success()
            );
            path
        };
        let (commands, answers) = (pipe("commands"), pipe("answers"));
        // It reads commands from descriptor 3 and answers on 4. Opened for both ways, no end waits for the other.
        let script = "exec setpriv --pdeathsig KILL \"$0\" --headless --no-sandbox --disable-gpu --disable-dev-shm-usage \
             --hide-scrollbars --no-first-run --user-data-dir=\"$1/profile\" --remote-debugging-pipe \
             3<>\"$1/commands\" 4<>\"$1/answers\"";
        let child = Command::new("sh")
            .args(["-c", script])
            .args([program, folder.path()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let open = |path: &Path| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .unwrap()
        };
        let (commands, answers) = (open(&commands), open(&answers));
        let (send, received) = channel();
        // Ends with the test's process: this end of the pipe is open for writing, too.
        std::thread::spawn(move || {
            for message in BufReader::new(answers).split(0).map_while(Result::ok) {
                if send
                    .send(serde_json::from_slice(&message).unwrap())
                    .is_err()
                {
                    return;
                }
            }
        });
        let mut browser = Self {
            child,
            commands,
            answers: received,
            session: String::new(),
            sent: 0,
            events: Vec::new(),
            _folder: folder,
        };
        let target = browser.ask("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.ask("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.ask(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    fn ask(&mut self, method: &str, params: Value) -> Value {
        self.sent += 1;
        let mut command = json!({ "id": self.sent, "method": method, "params": params });
        if !self.session.is_empty() {
            command["sessionId"] = json!(self.session);
        }
        self.commands
            .write_all(format!("{command}\0").as_bytes())
            .unwrap();
        loop {
            let message = self.answers.recv_timeout(PATIENCE).expect(method);
            if message["id"] == json!(self.sent) {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    fn evaluate(&mut self, expression: &str) -> Value {
        let params =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.ask("Runtime.evaluate", params);
        assert!(
            answer["exceptionDetails"].is_null(),
            "{expression}: {answer}"
        );
        answer["result"]["value"].clone()
    }

    fn text(&mut self, id: &str) -> String {
        let text = self.evaluate(&format!("document.getElementById('{id}').innerText"));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an expression is true: looks whenever the page has changed.
    fn await_true(&mut self, expression: &str) {
        // Shorter than the wait for the answer, which could not say what the page shows instead.
        let limit = (PATIENCE / 2).as_millis();
        let seen = self.evaluate(&format!(
            "new Promise((done) => {{ \
               const look = () => {{ if ({expression}) {{ observer.disconnect(); done(true); }} }}; \
               const observer = new MutationObserver(look); \
               observer.observe(document, {{ subtree: true, childList: true, attributes: true, characterData: true }}); \
               setTimeout(() => done(document.body.innerText), {limit}); \
               look(); \
             }})"
        ));
        assert_eq!(seen, json!(true), "never true: {expression}");
    }

    fn look(&mut self, width: u32, scheme: &str) {
        let screen = json!({ "width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.ask("Emulation.setDeviceMetricsOverride", screen);
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.ask("Emulation.setEmulatedMedia", media);
        let name = format!("{width}-{scheme}");
        let wide = self.evaluate("document.documentElement.scrollWidth");
        assert!(
            wide.as_u64().unwrap() <= u64::from(width),
            "{name}: {wide} pixels wide"
        );
        let params = json!({ "format": "png", "captureBeyondViewport": true });
        let shot = self.ask("Page.captureScreenshot", params);
        let engine = base64::engine::general_purpose::STANDARD;
        let png = engine.decode(shot["data"].as_str().unwrap()).unwrap();
        assert!(png.starts_with(b"\x89PNG") && png.len() > 10_000, "{name}");
        if let Some(folder) = std::env::var_os("OUTRIGGER_TEST_SCREENSHOTS") {
            std::fs::write(Path::new(&folder).join(format!("{name}.png")), png).unwrap();
        }
    }

    /// Requests for the status so far.
    fn requests(&mut self) -> usize {
        // Whatever was sent before this is answered before it.
        self.evaluate("1");
        self.requests_heard()
    }

    /// Waits until the page has asked for the status so many times in all.
    fn await_requests(&mut self, wanted: usize) {
        while self.requests_heard() < wanted {
            let message = self.answers.recv_timeout(PATIENCE);
            self.events.push(message.expect("live updates"));
        }
    }

    fn requests_heard(&self) -> usize {
        let sent = self.events.iter().filter(|event| {
            let url = event["params"]["request"]["url"].as_str();
            event["method"] == "Network.requestWillBeSent"
                && url.is_some_and(|url| url.ends_with("/status"))
        });
        sent.count()
    }

    fn hide(&mut self, hidden: bool) {
        self.evaluate(&format!(
            "Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }}); \
             document.dispatchEvent(new Event('visibilitychange')); 1"
        ));
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Both fail when it has ended already. Its helpers end with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_what_happens_in_both_themes_and_on_a_phone() {
    let Some(program) = chromium() else { return };
    let stage = Stage::bare(servers().await, "", &Default::default()).await;
    stage.route("good.#").await;
    let relay = stage
        .settings()
        .set("RELAY_NAME", "<b>relay-0</b>")
        .set("RETRY_MAX_ATTEMPTS", 2)
        .set("RETRY_BACKOFF_INITIAL", "10ms")
        .start();
    stage
        .run(
            "insert into outbox (type, key, data) select 'good.order', 'k' || g, '{\"secret\": \"payload\"}' from generate_series(1, 1500) g; \
             insert into outbox (type, key) select 'order.nowhere', 'person-' || g from generate_series(1, 3) g",
        )
        .await;
    let address = address_of(&relay).await;
    await_answer(
        address,
        "/status",
        "samples and failures are there",
        |answer| {
            let status: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
            status["failures"].as_array().unwrap().len() == 3
                && status["failures"][0]["state"] == "dead"
                && status["failure_groups"][0]["events"] == 3
                && status["backlog"]["events"] == 0
                && status["published"] == 1500
                && status["history"]["rate"].as_array().unwrap().len() >= 3
        },
    )
    .await;
    let looked = tokio::task::spawn_blocking(move || {
        let mut browser = Browser::start(&program);
        browser.ask(
            "Page.navigate",
            json!({ "url": format!("http://{address}/") }),
        );
        browser.await_true("document.getElementById('freshness')?.innerText === 'live'");
        // Something was given up: that comes first.
        let title = browser.evaluate("document.title");
        assert_eq!(title, "\u{26a0} outbox · Outrigger");
        let verdict = browser.text("verdict");
        assert!(verdict.contains("3 events were given up"), "{verdict}");
        let broker = browser.text("broker");
        assert!(
            broker.starts_with("rabbitmq 127.0.0.1:") && broker.contains(" vhost "),
            "{broker}"
        );
        // Names are text, not markup.
        assert_eq!(browser.text("relay"), "<b>relay-0</b>");
        let numbers = browser.text("numbers");
        assert!(numbers.contains("1,500 since the start"), "{numbers}");
        assert!(numbers.contains("3 dead, 0 blocked"), "{numbers}");
        let failures = browser.text("failures");
        let command = "outrigger dead list --state dead --reason unroutable";
        assert!(failures.contains(command), "{failures}");
        assert!(failures.contains("unroutable"), "{failures}");
        assert_eq!(
            browser.evaluate("document.querySelectorAll('#partitions .mine').length"),
            16
        );
        assert_eq!(
            browser.evaluate("document.querySelectorAll('#charts svg').length"),
            4
        );
        assert_eq!(
            browser.evaluate("document.querySelectorAll('#checks .ok').length"),
            8
        );
        let page = browser.evaluate("document.documentElement.innerHTML");
        for secret in ["payload", "person-1"] {
            assert!(!page.as_str().unwrap().contains(secret), "{secret}");
        }
        for (width, scheme) in [
            (1280, "light"),
            (1280, "dark"),
            (390, "light"),
            (390, "dark"),
        ] {
            browser.look(width, scheme);
        }

        // It goes on by itself, rests while nobody looks, and goes on again.
        let first = browser.requests();
        browser.await_requests(first + 2);
        browser.hide(true);
        browser.await_true("document.getElementById('freshness').innerText === 'paused'");
        let hidden = browser.requests();
        // Two and a half periods of the page, on its own clock.
        browser.evaluate("new Promise((done) => setTimeout(() => done(1), 5000))");
        assert_eq!(browser.requests(), hidden, "it asks while it is hidden");
        browser.hide(false);
        browser.await_true("document.getElementById('freshness').innerText === 'live'");
        assert!(browser.requests() > hidden);

        // Nothing was refused by the policy, nothing came from elsewhere, nothing went wrong.
        let trouble: Vec<&Value> = browser
            .events
            .iter()
            .filter(|event| {
                ["Log.entryAdded", "Runtime.exceptionThrown"]
                    .contains(&event["method"].as_str().unwrap_or_default())
            })
            .collect();
        assert!(trouble.is_empty(), "{trouble:#?}");
        for event in &browser.events {
            if let Some(url) = event["params"]["request"]["url"].as_str() {
                let ours = url.starts_with(&format!("http://{address}/")) || url == "data:,";
                assert!(ours, "asked for {url}");
            }
        }
        browser
    });
    let mut browser = looked.await.unwrap();
    relay.stop().await;
    // What it shows now is old, and it says so.
    tokio::task::spawn_blocking(move || {
        browser.await_true("!document.getElementById('notice').hidden");
        let notice = browser.text("notice");
        assert!(notice.contains("has not answered"), "{notice}");
    })
    .await
    .unwrap();
}
