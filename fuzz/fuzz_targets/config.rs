//! `config.json`: what is accepted can be multiplied without overflow and says the same when written out again.
#![no_main]

use duquant::checkpoint::{Group, parse_config};
use std::path::Path;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let path = Path::new("config.json");
    let Ok(config) = parse_config(path, bytes) else { return };
    for projection in Group::ALL.into_iter().flat_map(Group::projections) {
        let (n, k) = config.linear_shape(*projection);
        assert!(n.checked_mul(k).and_then(|count| count.checked_mul(4)).is_some());
    }
    assert_eq!(config.heads % config.kv_heads, 0);
    let again = parse_config(path, config.to_hugging_face().to_string().as_bytes()).expect("its own output");
    assert_eq!(again.linear_shape(Group::Down.projections()[0]), config.linear_shape(Group::Down.projections()[0]));
});
