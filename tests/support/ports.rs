//! Ports for servers of tests.

#![allow(dead_code, unreachable_pub)]

use std::net::TcpListener;

use rand::Rng as _;

/// Where the kernel takes no ports for outgoing connections (it begins at 32768): a server that is stopped and started
/// again would else find its port taken by somebody's connection.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// A port that nobody listens on now.
pub fn free_port() -> u16 {
    let mut random = rand::rng();
    loop {
        let port = random.random_range(RANGE);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Different ones.
pub fn free_ports<const N: usize>() -> [u16; N] {
    loop {
        let ports = [(); N].map(|()| free_port());
        let mut sorted = ports;
        sorted.sort_unstable();
        if sorted.windows(2).all(|pair| pair[0] != pair[1]) {
            return ports;
        }
    }
}
