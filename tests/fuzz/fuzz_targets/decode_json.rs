//! Bytes from the fuzzer in: are they read by the scanner as `serde_json` reads them?

#![no_main]

mod compare;

libfuzzer_sys::fuzz_target!(|payload: &[u8]| {
    compare::compare(payload);
});
