//! Asks the listener of another process on this host how it is: the client's side of the probes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// How long an answer may take, from connecting to its last byte.
pub const ANSWER_TIME: Duration = Duration::from_secs(3);
/// Bytes of an answer that are read.
const ANSWER_MAX: usize = 16 << 10;

/// Which question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Does the main loop turn?
    Live,
    /// Do events flow?
    Ready,
}

impl Probe {
    /// Its path.
    pub fn path(self) -> &'static str {
        match self {
            Self::Live => "/livez",
            Self::Ready => "/readyz",
        }
    }
}

/// Where to reach a listener from its own host: one that listens everywhere, by the loopback of that family.
pub fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Asks, and returns what a passed probe says.
///
/// # Errors
/// Anything but the answer 200 within [`ANSWER_TIME`], as one line: what came instead, with the checks that failed.
pub async fn ask(address: SocketAddr, probe: Probe) -> Result<String, String> {
    let asked = tokio::time::timeout(ANSWER_TIME, get(address, probe)).await;
    let (status, body) = match asked {
        Ok(answer) => answer?,
        Err(_) => return Err(format!("no answer within {} s", ANSWER_TIME.as_secs())),
    };
    if status == StatusCode::OK {
        return Ok(body);
    }
    let failed: Vec<&str> = body
        .lines()
        .filter_map(|line| line.strip_prefix("[-]"))
        .collect();
    Err(match failed.as_slice() {
        [] => format!("the answer is {status}, not 200"),
        failed => failed.join("; "),
    })
}

async fn get(address: SocketAddr, probe: Probe) -> Result<(StatusCode, String), String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| format!("cannot connect: {error}"))?;
    let broken = |error: &dyn std::fmt::Display| format!("not the answer of a relay: {error}");
    let (mut requests, connection) = http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|error| broken(&error))?;
    let question = async move {
        let request = Request::get(format!("{}?verbose", probe.path()))
            .header(header::HOST, address.to_string())
            .body(Empty::new())
            .map_err(|error| broken(&error))?;
        let answer = requests
            .send_request(request)
            .await
            .map_err(|error| broken(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|error| broken(&error))?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::pin!(question);
    // The connection moves the bytes; it may end before the question has read its answer.
    tokio::select! {
        answer = &mut question => answer,
        _ = connection => question.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_reached_where_it_is() {
        for (listen, reached) in [
            ("0.0.0.0:9647", "127.0.0.1:9647"),
            ("[::]:80", "[::1]:80"),
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("10.1.2.3:9647", "10.1.2.3:9647"),
            ("[fd00::1]:9647", "[fd00::1]:9647"),
        ] {
            let listen: Result<SocketAddr, _> = listen.parse();
            assert_eq!(
                listen.map(reachable).map(|a| a.to_string()),
                Ok(reached.to_owned())
            );
        }
    }
}
