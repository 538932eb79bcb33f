//! Keys and values in blocks on CUDA, which own kernels write and read through a table of addresses. A fork shares the
//! blocks; who writes into a shared one copies it first. (The idea is vLLM's: Kwon et al. 2023, arXiv:2309.06180.)

use std::sync::Arc;

use base_mlx_sys::{self as mlx, Array, CudaLaunch, Dtype};

use super::MlxBackend;
use super::array::{MlxArray, Norm, Recipe, Turned};
use super::attention::look;
use super::device::{Device, built, copied, failed};
use super::kernels::{Float, Heads, Kernel, Kernels, PLACE_WARPS};
use super::kv::Store;
use super::linear::Product;
use crate::backend::{Attend, DeviceError, KV_CHUNK, LayerSpec, Qkv, Rope, Span, not_a_chunk};

/// One sequence's blocks.
pub(super) struct Paged {
    layout: Arc<BlockLayout>,
    len: usize,
    blocks: Vec<Arc<Block>>,
}

/// What a block holds: for each layer the keys of [`BLOCK`] positions, then their values, `[kv_heads, BLOCK, head_dim]`.
struct BlockLayout {
    dtype: Dtype,
    /// Of each layer's keys and values, in elements.
    offsets: Vec<[u32; 2]>,
    elements: usize,
}

struct Block {
    array: Array,
    address: u64,
}

impl Paged {
    pub(super) fn new(layers: &[LayerSpec], dtype: Dtype) -> Self {
        let mut elements = 0;
        let mut place = |layer: &LayerSpec| {
            let start = elements;
            elements += BLOCK * layer.kv_heads * layer.head_dim;
            start as u32
        };
        let offsets = layers.iter().map(|layer| [place(layer), place(layer)]).collect();
        let layout = Arc::new(BlockLayout { dtype, offsets, elements });
        Self { layout, len: 0, blocks: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn truncate(&mut self, len: usize) -> usize {
        self.len = self.len.min(len);
        self.blocks.truncate(self.len.div_ceil(BLOCK));
        self.len
    }

    pub(super) fn fork(&self) -> Self {
        Self { layout: self.layout.clone(), len: self.len, blocks: self.blocks.clone() }
    }

    pub(super) fn share(&mut self, from: &Self, len: usize) {
        let blocks = len.min(self.len).min(from.len) / BLOCK;
        self.blocks[..blocks].clone_from_slice(&from.blocks[..blocks]);
    }

    pub(super) fn save(&self, chunk: usize) -> Result<Vec<u8>, DeviceError> {
        // Kernels write into blocks behind MLX's back.
        mlx::synchronize().map_err(failed)?;
        let mut saved = Vec::new();
        for block in &self.blocks[KV_CHUNK / BLOCK * chunk..KV_CHUNK / BLOCK * (chunk + 1)] {
            saved.extend(block.array.to_bytes().map_err(failed)?);
        }
        Ok(saved)
    }

    pub(super) fn restore(&mut self, saved: &[u8]) -> Result<(), DeviceError> {
        let BlockLayout { dtype, elements, .. } = *self.layout;
        let expected = KV_CHUNK / BLOCK * elements * dtype.size();
        if saved.len() != expected {
            return Err(not_a_chunk(saved.len(), expected));
        }
        for bytes in saved.chunks_exact(elements * dtype.size()) {
            let host = Array::from_bytes(bytes, &[elements], dtype).map_err(failed)?;
            self.blocks.push(Arc::new(Block::copy_of(&host)?));
        }
        self.len += KV_CHUNK;
        Ok(())
    }

    pub(super) fn bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.array.nbytes()).sum()
    }

    /// Makes room for `count` positions more, and counts them as held: the step that is being built writes them.
    fn extend(&mut self, count: usize) -> Result<(), DeviceError> {
        let (old, end) = (self.len, self.len + count);
        if count > 0
            && let Some(last) = self.blocks.get_mut(old / BLOCK)
            && Arc::get_mut(last).is_none()
        {
            *last = Arc::new(last.copied()?);
        }
        while self.blocks.len() < end.div_ceil(BLOCK) {
            self.blocks.push(Arc::new(Block::new(&self.layout)?));
        }
        self.len = end;
        Ok(())
    }
}

impl Block {
    fn new(layout: &BlockLayout) -> Result<Self, DeviceError> {
        Self::of(Array::cuda_empty(&[layout.elements], layout.dtype).map_err(failed)?)
    }

    fn copied(&self) -> Result<Self, DeviceError> {
        Self::copy_of(&self.array)
    }

    /// In MLX's order of work: after what was started to write the old one, before what will write the new one.
    fn copy_of(array: &Array) -> Result<Self, DeviceError> {
        let copy = copied(array).map_err(failed)?;
        mlx::async_eval(&[&copy]).map_err(failed)?;
        Self::of(copy)
    }

    fn of(array: Array) -> Result<Self, DeviceError> {
        #[allow(unsafe_code)]
        // SAFETY: the address is used as long as the array is held, by kernels that MLX orders by their other arrays.
        let address = unsafe { array.data_pointer() }.map_err(failed)?;
        Ok(Self { array, address })
    }
}

/// A step's sequences, as the kernels find them.
pub struct Pages {
    /// See `cuda/launch.cuh`.
    batch: Array,
    tokens: u32,
    table_width: u32,
    /// Of each token in its sequence; `batch` begins with them.
    positions: Vec<u32>,
    /// Of each sequence, before the step.
    starts: Vec<usize>,
    offsets: Arc<BlockLayout>,
}

impl Pages {
    /// `None` where the keys lie in arrays.
    pub(super) fn of(
        device: &Device,
        spans: &mut [Span<MlxBackend>],
    ) -> Result<Option<Self>, DeviceError> {
        let Some(kernels) = &device.kernels else { return Ok(None) };
        let mut starts = Vec::with_capacity(spans.len());
        let tokens = spans.iter().map(|span| span.rows.end).max().unwrap_or(0);
        let mut words = vec![0; 2 * tokens];
        for (number, span) in spans.iter_mut().enumerate() {
            let Store::Paged(kv) = &mut span.kv.0 else { return Ok(None) };
            starts.push(kv.len);
            for row in span.rows.clone() {
                words[row] = (kv.len + row - span.rows.start) as u32;
                words[tokens + row] = number as u32;
            }
            kv.extend(span.rows.len())?;
        }
        let all = || spans.iter().map(|span| paged(span));
        let Some(first) = all().next() else { return Ok(None) };
        let offsets = first.layout.clone();
        let table_width = all().map(|kv| kv.blocks.len()).max().unwrap_or(0);
        for kv in all() {
            let addresses = kv.blocks.iter().map(|block| block.address);
            let addresses = addresses.chain(std::iter::repeat(0)).take(table_width);
            words.extend(addresses.flat_map(|address| [address as u32, (address >> 32) as u32]));
        }
        let batch = kernels.upload(&words, &[words.len()]);
        words.truncate(tokens);
        let (tokens, table_width) = (tokens as u32, table_width as u32);
        Ok(Some(Self { batch, tokens, table_width, positions: words, starts, offsets }))
    }

    /// Writes the keys and values of all rows to their blocks, then lets each query look at its own sequence.
    pub(super) fn attend(
        &self,
        device: &Device,
        layer: usize,
        qkv: Qkv<MlxBackend>,
        spans: &[Span<MlxBackend>],
        how: Attend,
    ) -> Array {
        let kernels = device.kernels.as_ref().expect("pages are for own kernels");
        let launches =
            Launches { device, kernels, pages: self, offsets: self.offsets.offsets[layer] };
        let prompts = spans.iter().any(|span| span.rows.len() >= PROMPT_ROWS);
        let (shape, [q, k, v]) = launches.place(&qkv, prompts);
        if !prompts {
            return launches.look(shape, &q, 0, self.tokens as usize, how);
        }
        let mut out = Vec::new();
        let mut few = 0..0;
        for (number, span) in spans.iter().enumerate() {
            let rows = span.rows.clone();
            if rows.len() < PROMPT_ROWS {
                few = if few.is_empty() { rows } else { few.start..rows.end };
                continue;
            }
            if !few.is_empty() {
                out.push(launches.look(shape, &q, few.start, few.len(), how));
                few = 0..0;
            }
            let start = self.starts[number];
            out.push(launches.look_from_prompt(shape, [&q, &k, &v], number, start, rows, how));
        }
        if !few.is_empty() {
            out.push(launches.look(shape, &q, few.start, few.len(), how));
        }
        match &out[..] {
            [one] => one.clone(),
            many => built(Array::concatenate(&many.iter().collect::<Vec<_>>(), 0)),
        }
    }
}

fn paged<'s>(span: &'s Span<MlxBackend>) -> &'s Paged {
    match &span.kv.0 {
        Store::Paged(kv) => kv,
        Store::Growing(_) => panic!("a sequence whose keys are not in blocks like the others'"),
    }
}

/// What the launches of one layer's attention share.
struct Launches<'a> {
    device: &'a Device,
    kernels: &'a Kernels,
    pages: &'a Pages,
    offsets: [u32; 2],
}

/// What a family made of its products before attention.
struct Unrolled<'a> {
    product: Option<&'a Product>,
    plain: &'a MlxArray,
    norm: Option<&'a Norm>,
    turned: Option<&'a Turned>,
}

/// Back to the product, as long as nobody has wanted what lies between.
fn unrolled(array: &MlxArray) -> Unrolled<'_> {
    let mut found = Unrolled { product: None, plain: array, norm: None, turned: None };
    if let Some(Recipe::Rope(turned)) = found.plain.recipe() {
        (found.plain, found.turned) = (&turned.x, Some(turned));
        if let Some(Recipe::Norm(norm)) = found.plain.recipe() {
            (found.plain, found.norm) = (&norm.x, Some(norm));
        }
    }
    if let Some(Recipe::Linear(product)) = found.plain.recipe() {
        found.product = Some(product);
    }
    found
}

impl Launches<'_> {
    /// q `[tokens, heads, head_dim]`; where prompts want them, k and v `[tokens, kv_heads, head_dim]` too.
    fn place(&self, Qkv { q, k, v }: &Qkv<MlxBackend>, keep: bool) -> (Heads, [Array; 3]) {
        let [tokens, heads, head_dim] = [q.rows(), q.shape().dim(1), q.width()];
        let kv_heads = k.shape().dim(1);
        let device = self.device;
        let (of_q, of_k) = (unrolled(q.array()), unrolled(k.array()));
        // One kernel norms and rotates both, if both are to be treated alike, by heads, and by the batch's own positions.
        let same_rope = |a: &Turned, b: &Turned| {
            a.positions.is(&b.positions)
                && a.positions.holds(&self.pages.positions)
                && Arc::ptr_eq(&a.rope.inv_freq, &b.rope.inv_freq)
                && a.rope.attention_factor == b.rope.attention_factor
        };
        let same_norm = match (of_q.norm, of_k.norm) {
            (Some(q), Some(k)) => {
                q.eps == k.eps && q.shape[1] == head_dim && k.shape[1] == head_dim
            }
            (None, None) => true,
            _ => false,
        };
        let ropes = of_q.turned.zip(of_k.turned);
        let alike = same_norm && ropes.is_some_and(|(q, k)| same_rope(q, k));
        let flat = |array: &MlxArray, heads: usize| {
            built(array.value(device).reshape(&[tokens, heads * head_dim]))
        };
        let products = match (of_q.product, of_k.product, v.array().recipe()) {
            (Some(q), Some(k), Some(Recipe::Linear(v))) if alike => {
                device.project(&[q, k, v], None)
            }
            _ => None,
        };
        let qkv = products.unwrap_or_else(|| {
            let (q, k) = if alike { (of_q.plain, of_k.plain) } else { (q.array(), k.array()) };
            let parts = [flat(q, heads), flat(k, kv_heads), flat(v.array(), kv_heads)];
            built(Array::concatenate(&parts.each_ref(), 1))
        });
        let dtype = built(qkv.dtype());
        assert_eq!(dtype, self.pages.offsets.dtype, "keys of the blocks' type");
        let shape = Heads { dtype: Float::of(dtype), heads, kv_heads, head_dim };

        let rope = of_q.turned.filter(|_| alike).map(|turned| &turned.rope);
        let norms = of_q.norm.zip(of_k.norm).filter(|_| alike);
        let inv_freq = device.radians(rope, head_dim);
        let norm_weights = norms.map_or([0, 0], |(q, k)| {
            [q.weight.address(device, dtype), k.weight.address(device, dtype)]
        });
        let kernel = Kernel::Place {
            shape,
            rotary: rope.map_or(head_dim, |rope| 2 * rope.inv_freq.len()),
            head_norm_eps: norms.map(|(q, _)| q.eps.to_bits()),
            factor: rope.map_or(1.0, |rope| rope.attention_factor).to_bits(),
            keep,
        };
        let kept = if keep { tokens } else { 0 };
        let Pages { tokens: all, table_width, .. } = *self.pages;
        let launch = CudaLaunch {
            grid: [((heads + 2 * kv_heads) as u32).div_ceil(PLACE_WARPS), tokens as u32, 1],
            block: [PLACE_WARPS * 32, 1, 1],
            cluster: 1,
            shared_memory: 0,
            addresses: &norm_weights,
            numbers: &[all, table_width, self.offsets[0], self.offsets[1]],
            outputs: [
                (&[tokens, heads, head_dim], dtype),
                (&[kept, kv_heads, head_dim], dtype),
                (&[kept, kv_heads, head_dim], dtype),
            ],
        };
        let inputs = [&qkv, &self.pages.batch, &inv_freq];
        #[allow(unsafe_code)]
        // SAFETY: as `launch_place` wants them. It writes into blocks that this step alone extends, and whoever reads
        // them takes its output.
        let placed = unsafe { self.kernels.launch(kernel, &inputs, launch) };
        (shape, placed)
    }

    /// `[rows, heads, head_dim]` of the rows from `first` on.
    fn look(
        &self,
        shape: Heads,
        q: &Array,
        first: usize,
        rows: usize,
        Attend { scale, window }: Attend,
    ) -> Array {
        let Heads { dtype, heads, kv_heads, head_dim } = shape;
        let q = self.rows(q, first, rows);
        let rounds = (heads / kv_heads).div_ceil(8) as u32;
        let parts = parts_of(rows * kv_heads * rounds as usize);
        // Many queries keep a multiprocessor busy with small blocks; few must share one query's keys among many warps.
        let warps = if parts == 1 { 2 } else { 4 };
        let window = window.map_or(0, |window| u32::try_from(window).unwrap_or(0));
        let Pages { tokens, table_width, ref batch, .. } = *self.pages;
        let numbers =
            &[tokens, first as u32, table_width, window, self.offsets[0], self.offsets[1]];
        let grid = [parts as u32, kv_heads as u32 * rounds, rows as u32];
        let block = [warps * 32, 1, 1];
        let scale = scale.to_bits();
        let kernel = Kernel::Attend { shape, scale, in_parts: parts > 1, warps };
        let whole = [rows, heads, head_dim];
        if parts == 1 {
            let outputs = [(&whole[..], dtype.dtype())];
            let launch = CudaLaunch {
                grid,
                block,
                cluster: 1,
                shared_memory: 0,
                addresses: &[],
                numbers,
                outputs,
            };
            #[allow(unsafe_code)]
            // SAFETY: as `launch_attend` wants them; the blocks of the batch are held by its sequences.
            let [out] = unsafe { self.kernels.launch(kernel, &[&q, batch], launch) };
            return out;
        }
        let outputs = [
            (&[rows, heads, parts, head_dim][..], Dtype::F32),
            (&[rows, heads, parts, 2][..], Dtype::F32),
        ];
        let launch = CudaLaunch {
            grid,
            block,
            cluster: 1,
            shared_memory: 0,
            addresses: &[],
            numbers,
            outputs,
        };
        #[allow(unsafe_code)]
        // SAFETY: as `launch_attend_in_parts` wants them; the blocks are held by their sequences.
        let [sums, stats] = unsafe { self.kernels.launch(kernel, &[&q, batch], launch) };
        let launch = CudaLaunch {
            grid: [heads as u32, rows as u32, 1],
            block: [head_dim as u32, 1, 1],
            cluster: 1,
            shared_memory: 0,
            addresses: &[],
            numbers: &[],
            outputs: [(&whole[..], dtype.dtype())],
        };
        let kernel = Kernel::Combine { dtype, heads, head_dim, parts };
        #[allow(unsafe_code)]
        // SAFETY: as `launch_combine` wants them.
        let [out] = unsafe { self.kernels.launch(kernel, &[&sums, &stats], launch) };
        out
    }

    /// `[rows, heads, head_dim]` of a sequence that adds many rows, by MLX's own attention over keys without gaps.
    fn look_from_prompt(
        &self,
        shape: Heads,
        [q, k, v]: [&Array; 3],
        number: usize,
        start: usize,
        rows: std::ops::Range<usize>,
        how: Attend,
    ) -> Array {
        let Heads { heads, kv_heads, head_dim, .. } = shape;
        let count = rows.len();
        let heads_first = |x: &Array, heads: usize| {
            let x = self.rows(x, rows.start, count);
            let x = built(x.reshape(&[1, count, heads, head_dim]));
            built(x.transpose(&[0, 2, 1, 3]))
        };
        let keys_and_values = if start == 0 {
            [heads_first(k, kv_heads), heads_first(v, kv_heads)]
        } else {
            self.gather(shape, k, number, start + count)
        };
        let seen = look(self.device, &heads_first(q, heads), keys_and_values, how);
        let seen = built(seen.transpose(&[0, 2, 1, 3]));
        built(seen.reshape(&[count, heads, head_dim]))
    }

    /// Keys and values of a whole sequence, `[1, kv_heads, length, head_dim]` each.
    /// `placed` is an output of the kernel that wrote the last of them.
    fn gather(&self, shape: Heads, placed: &Array, number: usize, length: usize) -> [Array; 2] {
        let Heads { dtype, kv_heads, head_dim, .. } = shape;
        let Pages { tokens, table_width, ref batch, .. } = *self.pages;
        let units = (length * head_dim).div_ceil(8 * GATHER_THREADS as usize) as u32;
        let whole = [1, kv_heads, length, head_dim];
        let launch = CudaLaunch {
            grid: [units, kv_heads as u32, 1],
            block: [GATHER_THREADS, 1, 1],
            cluster: 1,
            shared_memory: 0,
            addresses: &[],
            numbers: &[
                tokens,
                number as u32,
                length as u32,
                table_width,
                self.offsets[0],
                self.offsets[1],
            ],
            outputs: [(&whole[..], dtype.dtype()), (&whole[..], dtype.dtype())],
        };
        #[allow(unsafe_code)]
        // SAFETY: as `launch_gather` wants them; the blocks are held by their sequence, and MLX runs this after the kernel
        // that wrote to them, whose output it takes.
        unsafe {
            self.kernels.launch(Kernel::Gather { shape }, &[batch, placed], launch)
        }
    }

    fn rows(&self, x: &Array, first: usize, count: usize) -> Array {
        let shape = x.shape();
        if count == shape[0] {
            return x.clone();
        }
        built(x.slice(&[first, 0, 0], &[first + count, shape[1], shape[2]]))
    }
}

impl Device {
    /// Radians per position for each pair: `[rotary / 2]`. Without a rope all are 0, which turns nothing.
    fn radians(&self, rope: Option<&Rope>, head_dim: usize) -> Array {
        match rope {
            None => built(Array::from_f32(&vec![0.0; head_dim / 2], &[head_dim / 2])),
            Some(rope) => self
                .radians
                .get(rope, |rope| built(Array::from_f32(&rope.inv_freq, &[rope.inv_freq.len()]))),
        }
    }
}

/// In how many parts the context is looked at when so many blocks look at once: an H100 has 132 multiprocessors. Not by the
/// context's length: each number of parts has kernels of its own, and an answer should not wait for them midway.
fn parts_of(blocks: usize) -> usize {
    match blocks {
        0..=33 => 16,
        34..=132 => 4,
        _ => 1,
    }
}

/// Positions of a block: `BLOCK` of `cuda/cache.cuh`.
pub(super) const BLOCK: usize = 32;
/// From so many rows on a sequence's attention is a matter of products, which MLX's own has the tensor cores for.
const PROMPT_ROWS: usize = 64;
const GATHER_THREADS: u32 = 256;
