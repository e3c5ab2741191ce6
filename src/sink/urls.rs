//! URLs in the settings of sinks.

use secrecy::SecretString;

/// Takes each URL of a variable apart; what is wrong with one names its place, never the URL, which may hold a password.
pub(super) fn parse_each<T>(
    variable: &str,
    urls: &[SecretString],
    parse: impl Fn(&SecretString) -> Result<T, String>,
    problems: &mut Vec<String>,
) -> Vec<T> {
    let mut parsed = Vec::with_capacity(urls.len());
    for (position, url) in urls.iter().enumerate() {
        match parse(url) {
            Ok(place) => parsed.push(place),
            Err(problem) if urls.len() > 1 => {
                problems.push(format!("{variable}, number {}: {problem}", position + 1));
            }
            Err(problem) => problems.push(format!("{variable}: {problem}")),
        }
    }
    parsed
}

/// Hosts and ports for people and for comparing: the same for the same servers, whatever their order.
pub(super) fn listed(places: impl Iterator<Item = String>) -> String {
    let mut places: Vec<String> = places.map(|place| place.to_lowercase()).collect();
    places.sort_unstable();
    places.dedup();
    places.join(", ")
}

/// Each `%XY` as its byte; what only looks like one stays.
pub(super) fn percent_decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_servers_has_no_order() {
        let texts = ["B:2", "a:1", "b:2"].map(str::to_owned);
        assert_eq!(listed(texts.into_iter()), "a:1, b:2");
    }

    #[test]
    fn only_what_is_encoded_is_decoded() {
        assert_eq!(percent_decoded("a%20%c3%bc%"), "a ü%".as_bytes());
    }
}
