//! What the GGUF parser lets through must be safe to use: the config, and every tensor's blocks.

#![no_main]

use base_mlx_core::backend::Pool;
use base_mlx_core::weights::Storage;
use base_mlx_core::weights::gguf::{Blocks, config, dequantize, parse, repack};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Ok(header) = parse(file) else { return };
    let _ = config(&header);
    for entry in &header.tensors {
        let data = &file[entry.data.clone()];
        let Storage::Blocks(format) = entry.storage else { continue };
        let columns = entry.shape[entry.shape.len() - 1];
        let rows = entry.shape.iter().product::<usize>() / columns;
        let weight = repack(&Pool::new(1), Blocks { format, data }, [rows, columns], |row| row);
        assert_eq!(weight.shape(), [rows, columns]);
        assert_eq!(dequantize(format, data).len(), rows * columns);
    }
});
