//! The properties of `fuzz/`, with random inputs instead of guided ones: on any compiler, in every run of the tests.
//!
//! `FUZZ_SECONDS=600 cargo test --test fuzz -- NAME` looks for longer. A failure prints its seed; `FUZZ_SEED` repeats it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    unreachable_pub
)]

#[path = "../fuzz/properties/admin.rs"]
mod admin;
#[path = "../fuzz/properties/connection.rs"]
mod connection;
#[path = "../fuzz/properties/envelope.rs"]
mod envelope;
#[path = "../fuzz/properties/settings.rs"]
mod settings;
#[path = "../fuzz/properties/template.rs"]
mod template;

use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

/// Inputs of a property unless `FUZZ_SECONDS` says for how long.
const ROUNDS: u64 = 3000;

/// Words that get further than noise.
const WORDS: &[&str] = &[
    "{{ type }}",
    "{{ data.a | default('x') }}",
    "{% for x in range(9) %}",
    "{% endfor %}",
    "{% if key %}",
    "{\"a\":1}",
    "[1,\"\\u0000\"]",
    "\"x\"",
    "null",
    "application/json",
    "text/plain",
    "/services/orders",
    "https://h/x#y",
    "postgres://u:p@h:5432/d?sslmode=",
    "host=h user='a b' dbname=",
    "amqps://u:p@h/%2f?heartbeat=",
    "nats://t@h:4222",
    "http://u:p@[::1]:80/x",
    "public.outbox",
    "\"a\".\"b",
    "[database]\n",
    "url = \"",
    "\"\n",
    "sink = \"nats\"\n",
    "[relay]\nbatch_size = ",
    "10s",
    "1MiB",
    "true",
    "off",
    "127.0.0.1:0",
    "OUTRIGGER_",
    "GET / HTTP/1.1\r\n",
    "Host: h\r\n",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "\r\n\r\n",
    "h:5432:d:u:p\\:a",
    "*:*:*:*:",
    "é",
    "\u{1f600}",
    "\u{202e}",
    "\0",
    "\u{1b}[31m",
    "%",
    "\\",
    "'",
    "\"",
    "@",
    ",",
];

/// Says how to repeat what made a property fail.
struct Witness {
    name: &'static str,
    seed: u64,
}

impl Drop for Witness {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: repeat with FUZZ_SEED={}", self.name, self.seed);
        }
    }
}

fn look<T: for<'a> Arbitrary<'a> + std::fmt::Debug + Clone>(name: &'static str, check: fn(T)) {
    let number = |variable: &str| -> Option<u64> {
        let text = std::env::var(variable).ok()?;
        Some(
            text.parse()
                .unwrap_or_else(|_| panic!("{variable} is a number")),
        )
    };
    let repeated = number("FUZZ_SEED");
    let seconds = number("FUZZ_SECONDS").map(Duration::from_secs);
    let began = Instant::now();
    let (mut rounds, mut made) = (0, 0_u64);
    loop {
        let seed = repeated.unwrap_or_else(rand::random);
        let witness = Witness { name, seed };
        let bytes = bytes(&mut StdRng::seed_from_u64(seed));
        if let Ok(input) = T::arbitrary_take_rest(Unstructured::new(&bytes)) {
            if repeated.is_some() {
                eprintln!("{input:#?}");
            }
            made += 1;
            check(input);
        }
        drop(witness);
        rounds += 1;
        let enough = match seconds {
            Some(seconds) => began.elapsed() >= seconds,
            None => rounds >= ROUNDS,
        };
        if enough || repeated.is_some() {
            break;
        }
    }
    println!("{name}: {made} inputs of {rounds} in {:?}", began.elapsed());
    // Noise that never becomes an input would prove nothing.
    assert!(made * 2 > rounds, "only {made} inputs of {rounds}");
}

/// Words and noise. Zeros in the end, from where lengths are taken, would make everything empty.
fn bytes(random: &mut StdRng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..random.random_range(1..24) {
        match random.random_range(0..6) {
            0..3 => {
                let word = WORDS[random.random_range(0..WORDS.len())];
                bytes.extend_from_slice(word.as_bytes());
            }
            3 => bytes
                .extend((0..random.random_range(1..24)).map(|_| random.random_range(b' '..=b'~'))),
            4 => bytes.push(random.random()),
            _ => {
                let mut noise = [0; 4];
                random.fill_bytes(&mut noise);
                bytes.extend_from_slice(&noise);
            }
        }
    }
    bytes
}

#[test]
fn envelope() {
    look("envelope", envelope::check);
}

#[test]
fn template() {
    look("template", template::check);
}

#[test]
fn settings() {
    look("settings", settings::check);
}

#[test]
fn connection() {
    look("connection", connection::check);
}

#[test]
fn admin() {
    look("admin", admin::check);
}
