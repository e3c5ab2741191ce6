//! A real browser, driven by its debugging protocol over two pipes.
//!
//! Needs Chromium: the program that `OUTRIGGER_TEST_CHROMIUM` names, or `chromium` on the path. Without one its tests are
//! skipped, and fail instead if `OUTRIGGER_TEST_REQUIRE` is set. `OUTRIGGER_TEST_SCREENSHOTS` names a folder that
//! keeps what the browser showed.

use base64::Engine as _;
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use crate::support::PATIENCE;

/// A browser with one page. Its folder goes with it.
pub struct Browser {
    child: Child,
    commands: File,
    answers: Receiver<Value>,
    session: String,
    sent: u64,
    /// Events that came while an answer was awaited.
    pub events: Vec<Value>,
    _folder: tempfile::TempDir,
}

pub fn chromium() -> Option<PathBuf> {
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
    pub fn start(program: &Path) -> Self {
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

    pub fn ask(&mut self, method: &str, params: Value) -> Value {
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

    pub fn evaluate(&mut self, expression: &str) -> Value {
        let params =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.ask("Runtime.evaluate", params);
        assert!(
            answer["exceptionDetails"].is_null(),
            "{expression}: {answer}"
        );
        answer["result"]["value"].clone()
    }

    pub fn text(&mut self, id: &str) -> String {
        let text = self.evaluate(&format!("document.getElementById('{id}').innerText"));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an expression is true: looks whenever the page has changed.
    pub fn await_true(&mut self, expression: &str) {
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

    /// Looks at the whole page, which must not be wider than the screen.
    pub fn look(&mut self, state: &str, width: u32, scheme: &str) {
        let screen = json!({ "width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.ask("Emulation.setDeviceMetricsOverride", screen);
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.ask("Emulation.setEmulatedMedia", media);
        let name = format!("{state}-{width}-{scheme}");
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
    pub fn requests(&mut self) -> usize {
        // Whatever was sent before this is answered before it.
        self.evaluate("1");
        self.requests_heard()
    }

    /// Waits until the page has asked for the status so many times in all.
    pub fn await_requests(&mut self, wanted: usize) {
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

    pub fn hide(&mut self, hidden: bool) {
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
