//! `outrigger run`: the relay itself.

use super::Failure;
use crate::app;
use crate::settings::Settings;

pub(super) async fn run(settings: &Settings) -> Result<(), Failure> {
    app::run(settings).await
}
