//! The status page in a real browser.

use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;

use crate::browser::{Browser, chromium};
use crate::client::{Answer, address_of, await_answer};
use crate::servers;
use crate::support::Stage;

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
        assert!(
            verdict.contains("3 events are dead or blocked"),
            "{verdict}"
        );
        let broker = browser.text("broker");
        assert!(
            broker.starts_with("rabbitmq 127.0.0.1:") && broker.contains(" vhost "),
            "{broker}"
        );
        // Names are text, not markup.
        assert_eq!(browser.text("relay"), "<b>relay-0</b>");
        let numbers = browser.text("numbers");
        let own = browser.text("own-numbers");
        assert!(own.contains("1,500 since the start"), "{own}");
        assert!(numbers.contains("3 dead, 0 blocked"), "{numbers}");
        // The table's first rows and the heads of the curves are those of the tiles.
        let heads = browser.text("charts");
        for part in ["Backlog · whole outbox", "Published · this replica", "p99 "] {
            assert!(heads.contains(part), "{part}: {heads}");
        }
        assert_eq!(
            browser.text("retention"),
            "published rows are deleted after 7d"
        );
        let state = browser.text("broker-state");
        assert!(state.starts_with("ready, to "), "{state}");
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
            9
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
            browser.look("failing", width, scheme);
        }

        // It goes on by itself, rests while nobody looks, and goes on again.
        let first = browser.requests();
        browser.await_requests(first + 2);
        browser.hide(true);
        browser.await_true("document.getElementById('freshness').innerText === 'asleep'");
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

const SCREENS: [(u32, &str); 4] = [
    (1280, "light"),
    (1280, "dark"),
    (390, "light"),
    (390, "dark"),
];

/// Opens the page of a relay.
fn open(program: &Path, address: SocketAddr) -> Browser {
    let mut browser = Browser::start(program);
    let page = json!({ "url": format!("http://{address}/") });
    browser.ask("Page.navigate", page);
    browser.await_true("document.getElementById('freshness')?.innerText === 'live'");
    browser
}

fn look(browser: &mut Browser, state: &str) {
    for (width, scheme) in SCREENS {
        browser.look(state, width, scheme);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_and_what_was_discarded_are_shown() {
    let Some(program) = chromium() else { return };
    let stage = Stage::bare(servers().await, "", &Default::default()).await;
    stage.route("good.#").await;
    let settings = stage.settings().set("RETRY_MAX_ATTEMPTS", 1);
    stage
        .run("insert into outbox (type) values ('nowhere'), ('nowhere'), ('good.one')")
        .await;
    let relay = settings.start();
    let dead = "select count(*) from outrigger.failures where state = 'dead'";
    stage.await_count("both are dead", dead, 2).await;
    settings.run(&["dead", "discard", "1"]).await;
    // The next relay is paused before it could publish anything, and knows at once what is looked at once a minute.
    relay.stop().await;
    settings
        .run(&["pause", "--reason", "broker upgrade `x`"])
        .await;
    stage
        .run("insert into outbox (type) select 'good.two' from generate_series(1, 5)")
        .await;
    let known = |answer: &Answer| {
        let status: Value = serde_json::from_str(&answer.body).unwrap();
        status["backlog"]["discarded"] == 1
            && status["backlog"]["events"] == 5
            && status["verdict"]["text"]
                .as_str()
                .unwrap()
                .contains("upgrade")
    };
    let relay = settings.start();
    let address = address_of(&relay).await;
    await_answer(
        address,
        "/status",
        "pause and discarded event are known",
        known,
    )
    .await;
    tokio::task::spawn_blocking(move || {
        let mut browser = open(&program, address);
        let verdict = browser.text("verdict");
        assert!(verdict.starts_with("Paused "), "{verdict}");
        assert!(verdict.contains("ago: broker upgrade x"), "{verdict}");
        assert!(!verdict.contains('`'), "{verdict}");
        for id in ["verdict", "relay-state"] {
            let amber = format!("document.getElementById('{id}').classList.contains('degraded')");
            assert_eq!(browser.evaluate(&amber), true, "{id}");
        }
        let over = browser.text("unpublished");
        assert!(
            over.contains("1 discarded (outrigger dead list --state discarded)"),
            "{over}"
        );
        // What somebody selects, to copy it, outlives the next answers.
        let selected = "getSelection().toString()";
        browser.evaluate(
            "getSelection().selectAllChildren(document.querySelector('#failures td:last-child code')); 1",
        );
        let before = browser.evaluate(selected);
        assert_eq!(
            before,
            "outrigger dead list --state dead --reason unroutable"
        );
        let first = browser.requests();
        browser.await_requests(first + 3);
        assert_eq!(browser.evaluate(selected), before);
        browser.evaluate("getSelection().removeAllRanges(); 1");
        look(&mut browser, "paused");
    })
    .await
    .unwrap();
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_is_said_on_top() {
    let Some(program) = chromium() else { return };
    let stage = Stage::new(servers().await).await;
    stage
        .run("insert into outbox (type, created_at) select 't', now() - interval '1 hour' from generate_series(1, 50)")
        .await;
    let relay = stage
        .settings()
        .variable("OUTRIGGER_RABBITMQ_URL", "")
        .variable("AMQP_URL", "amqp://127.0.0.1:1")
        .start();
    let address = address_of(&relay).await;
    await_answer(address, "/status", "the backlog is known", |answer| {
        let status: Value = serde_json::from_str(&answer.body).unwrap();
        status["backlog"]["events"] == 50 && status["history"]["rate"].as_array().unwrap().len() > 1
    })
    .await;
    tokio::task::spawn_blocking(move || {
        let mut browser = open(&program, address);
        let verdict = browser.text("verdict");
        for part in [
            "Not publishing",
            "50 events wait",
            "Nothing is lost",
            "refused",
        ] {
            assert!(verdict.contains(part), "{part}: {verdict}");
        }
        // By the name that the setting was given by.
        assert!(verdict.contains("AMQP_URL") && !verdict.contains("OUTRIGGER_RABBITMQ_URL"));
        assert!(browser.text("broker").starts_with("rabbitmq 127.0.0.1:1"));
        assert!(
            browser.text("numbers").contains("60 min"),
            "the oldest keeps its age"
        );
        look(&mut browser, "down");
    })
    .await
    .unwrap();
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_outbox_is_calm() {
    let Some(program) = chromium() else { return };
    let stage = Stage::new(servers().await).await;
    let relay = stage.settings().start();
    let address = address_of(&relay).await;
    await_answer(address, "/readyz", "the relay is ready", |answer| {
        answer.status == 200
    })
    .await;
    tokio::task::spawn_blocking(move || {
        let mut browser = open(&program, address);
        browser.await_true("document.getElementById('verdict').innerText === 'Publishing, 1 replica. Nothing waits.'");
        browser.await_true("document.getElementById('numbers').innerText.includes('0 s')");
        // No curve has a highest value of nothing.
        let heads = browser.evaluate("[...document.querySelectorAll('.chart > .ends:first-of-type')].map((e) => e.innerText.trim()).join()");
        assert_eq!(heads, ",,,");
        look(&mut browser, "fresh");
    })
    .await
    .unwrap();
    relay.stop().await;
}
