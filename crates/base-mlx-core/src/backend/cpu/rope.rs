use std::sync::{Arc, Mutex, PoisonError};

use base_mlx_simd::{Pool, RopeTable};

use super::{CpuArray, CpuBackend};
use crate::backend::Rope;
use crate::tensor::Tensor;

pub(super) fn rope(
    backend: &CpuBackend,
    x: &Tensor<CpuBackend>,
    positions: &Tensor<CpuBackend>,
    rope: &Rope,
) -> CpuArray {
    let (heads, head_dim) = (x.shape().dim(1), x.width());
    assert_eq!(x.rows(), positions.rows(), "rope: x {:?}", x.shape());
    let table = backend.device.rope_tables.get(backend.pool(), positions.array().as_u32(), rope);
    let x = x.array().as_f32();
    let mut out = backend.spare.buffer(x.len());
    base_mlx_simd::rope(backend.pool(), backend.isa(), x, heads, head_dim, &table, &mut out);
    CpuArray::f32(out)
}

/// The tables of the step under way: all layers rotate by the same angles.
#[derive(Default)]
pub(super) struct RopeTables(Mutex<Vec<Known>>);

/// Holding the positions and frequencies keeps their addresses from being used for others.
struct Known {
    positions: Arc<Vec<u32>>,
    rope: Rope,
    table: Arc<RopeTable>,
}

impl RopeTables {
    fn get(&self, pool: &Pool, positions: &Arc<Vec<u32>>, rope: &Rope) -> Arc<RopeTable> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.iter().position(|known| {
            Arc::ptr_eq(&known.positions, positions)
                && Arc::ptr_eq(&known.rope.inv_freq, &rope.inv_freq)
                && known.rope.attention_factor == rope.attention_factor
        });
        if let Some(found) = found {
            return known[found].table.clone();
        }
        let table = RopeTable::new(pool, positions, &rope.inv_freq, rope.attention_factor);
        let table = Arc::new(table);
        known.truncate(KINDS_IN_A_MODEL - 1);
        let new = Known { positions: positions.clone(), rope: rope.clone(), table: table.clone() };
        known.insert(0, new);
        table
    }
}

/// Some families rotate local and global layers differently.
const KINDS_IN_A_MODEL: usize = 2;
