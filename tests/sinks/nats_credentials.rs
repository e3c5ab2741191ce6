//! Logging in to NATS with a credentials file, as its decentralised authentication has it: an operator vouches for
//! accounts, an account for users, each by a signed JSON web token.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use outrigger::sink::SinkState;
use outrigger::sink::nats::{self, NatsSettings};
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::harness::{Is, Running, assert_verdicts, message};
use crate::nats_node::{NatsNode, RawClient};
use crate::world::Place;

/// Says about `subject` what `nats` says, and that `issuer` says so.
fn token(issuer: &KeyPair, subject: &KeyPair, mut nats: Value) -> String {
    nats["version"] = json!(2);
    let subject = subject.public_key();
    let claims = json!({
        "jti": subject, "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject, "name": "test", "nats": nats,
    });
    let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let part = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let signed = format!("{}.{}", part(header), part(claims));
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn account_token(operator: &KeyPair, account: &KeyPair, storage: i64) -> String {
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        "mem_storage": storage, "disk_storage": storage, "streams": storage.signum(), "consumer": storage.signum(),
    });
    token(
        operator,
        account,
        json!({"type": "account", "limits": limits}),
    )
}

fn user_token(account: &KeyPair, user: &KeyPair) -> String {
    token(
        account,
        user,
        json!({"type": "user", "subs": -1, "data": -1, "payload": -1}),
    )
}

/// What `nsc generate creds` prints.
fn write_credentials(file: &Path, account: &KeyPair, user: &KeyPair) {
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        user_token(account, user),
        user.seed().unwrap()
    );
    std::fs::write(file, text).unwrap();
}

#[tokio::test]
async fn a_credentials_file_logs_in_and_is_read_again_when_it_is_replaced() {
    let operator = KeyPair::new_operator();
    let (system, account) = (KeyPair::new_account(), KeyPair::new_account());
    let config = format!(
        "jetstream {{ store_dir: \"@DIR@/store\" }}\noperator: \"{}\"\nsystem_account: {}\nresolver: MEMORY\n\
         resolver_preload: {{\n  {}: \"{}\"\n  {}: \"{}\"\n}}",
        token(&operator, &operator, json!({"type": "operator"})),
        system.public_key(),
        system.public_key(),
        account_token(&operator, &system, 0),
        account.public_key(),
        account_token(&operator, &account, 16_000_000),
    );
    let node = NatsNode::start_with(&config).await;

    let admin = KeyPair::new_user();
    let mut client = RawClient::connect_knowing(node.port(), |info| {
        let nonce = info["nonce"].as_str().unwrap();
        let signature = admin.sign(nonce.as_bytes()).unwrap();
        json!({"jwt": user_token(&account, &admin), "sig": URL_SAFE_NO_PAD.encode(signature)})
    })
    .await;
    let stream = json!({"name": "E", "subjects": ["e.>"], "storage": "file"});
    client.api("STREAM.CREATE.E", stream, 0).await;

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("relay.creds");
    // An account that no operator knows.
    write_credentials(&file, &KeyPair::new_account(), &KeyPair::new_user());
    let url = format!("nats://127.0.0.1:{}", node.port());
    let settings = NatsSettings {
        urls: vec![SecretString::from(url)],
        known_destinations: vec!["E".into()],
        credentials_file: Some(file.clone()),
        lanes: 1,
        ..NatsSettings::default()
    };
    let mut running = Running::start(nats::start(settings).unwrap());
    let is_refused = |state: &SinkState| matches!(state, SinkState::Down(reason) if reason.contains("credentials"));
    running.await_state("refused", is_refused).await;

    write_credentials(&file, &account, &KeyPair::new_user());
    running.await_state("logged in", SinkState::is_ready).await;
    let place = Place {
        destination: "E".into(),
        routing_key: "e.a".into(),
    };
    let verdicts = running.publish(&[message("a", &place)]).await;
    assert_verdicts("with credentials", &verdicts, |_| Is::Confirmed);
    running.close().await;
}
