//! Any template over any payload ends within its limits, without a panic.

use arbitrary::Arbitrary;
use outrigger::error::ReasonCode;
use outrigger::event::route::Router;
use outrigger::event::{Data, Record};

/// A template, and the row that it meets.
#[derive(Debug, Clone, Arbitrary)]
pub struct Input {
    template: String,
    data: String,
    subject: Option<String>,
}

/// See the module.
pub fn check(input: Input) {
    let Input {
        template,
        data,
        subject,
    } = input;
    let Ok(router) = Router::new("events", &template) else {
        return;
    };
    let extra = router
        .extra_columns()
        .into_iter()
        .map(|name| (name.into(), subject.clone()))
        .collect();
    let record = Record {
        id: "1".to_owned(),
        event_type: "t".to_owned(),
        subject,
        data: Data::Text(data.into()),
        extra,
        ..Record::default()
    };
    let route = router.route(&record);
    assert_eq!(route, router.route(&record), "not deterministic");
    match route {
        Ok((destination, key)) => {
            assert_eq!(destination, "events");
            assert!(key.len() <= 4096 && !key.chars().any(char::is_control));
        }
        Err(reason) => assert_eq!(reason.code, ReasonCode::InvalidRoute),
    }
}
