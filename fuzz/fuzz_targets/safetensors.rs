//! Every tensor that the safetensors parser lets through lies inside the file, and no two overlap.

#![no_main]

use base_mlx_core::weights::safetensors::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Ok(entries) = parse(file) else { return };
    let bytes: usize = entries.iter().map(|entry| file[entry.data.clone()].len()).sum();
    assert!(bytes <= file.len());
});
