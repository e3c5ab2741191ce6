//! See the property of the same name.
#![no_main]

#[path = "../properties/envelope.rs"]
mod property;

libfuzzer_sys::fuzz_target!(|input: property::Input| property::check(input));
