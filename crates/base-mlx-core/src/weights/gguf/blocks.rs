//! The block formats of GGUF, each as the affine groups that it is. All factors are small integers times 16-bit
//! floats, so `scale * q + bias` in f32 gives exactly what the format's own formula gives (a zero may lose its sign).
//!
//! Layouts after ggml's `ggml-common.h`.

use half::f16;

/// One block format: how its blocks lie in the file, and how wide its affine groups are.
pub struct Format {
    pub name: &'static str,
    /// ggml's number of the type.
    pub id: u32,
    /// How many values are in a block.
    pub values: usize,
    /// How many bytes a block takes.
    pub bytes: usize,
    /// Width of a value in affine form; more than the file's only for IQ4_NL, whose steps are uneven.
    pub bits: u32,
    /// How many values share a scale and a bias.
    pub group: usize,
    /// Whether scales are products with a block's 16-bit scale, which take 32 bits to be exact.
    pub wide_scales: bool,
    pub(super) unpack: fn(&[u8], &mut Block),
}

/// One block in affine form; of each array the format's `values` or groups are filled.
pub(super) struct Block {
    pub(super) q: [u8; MAX_VALUES],
    pub(super) scales: [f32; MAX_VALUES / 16],
    pub(super) biases: [f32; MAX_VALUES / 16],
}

impl Block {
    pub(super) const EMPTY: Self =
        Self { q: [0; MAX_VALUES], scales: [0.0; 16], biases: [0.0; 16] };
}

impl Format {
    pub fn by_id(id: u32) -> Option<&'static Format> {
        FORMATS.iter().find(|format| format.id == id)
    }

    pub fn by_name(name: &str) -> Option<&'static Format> {
        FORMATS.iter().find(|format| format.name == name)
    }

    /// All names, for messages.
    pub(super) fn names() -> String {
        FORMATS.iter().map(|format| format.name).collect::<Vec<_>>().join(", ")
    }
}

impl std::fmt::Debug for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

pub static FORMATS: &[Format] = &[
    simple("Q4_0", 2, 18, 4, q4_0),
    simple("Q4_1", 3, 20, 4, q4_1),
    simple("Q5_0", 6, 22, 5, q5_0),
    simple("Q5_1", 7, 24, 5, q5_1),
    simple("Q8_0", 8, 34, 8, q8_0),
    nested("Q2_K", 10, 84, 2, 16, q2_k),
    nested("Q3_K", 11, 110, 3, 16, q3_k),
    nested("Q4_K", 12, 144, 4, 32, q4_k),
    nested("Q5_K", 13, 176, 5, 32, q5_k),
    nested("Q6_K", 14, 210, 6, 16, q6_k),
    simple("IQ4_NL", 20, 18, 8, iq4_nl),
];

/// 32 values with one scale.
const fn simple(
    name: &'static str,
    id: u32,
    bytes: usize,
    bits: u32,
    unpack: fn(&[u8], &mut Block),
) -> Format {
    Format { name, id, values: 32, bytes, bits, group: 32, wide_scales: false, unpack }
}

/// 256 values in groups, whose scales are small integers times the block's.
const fn nested(
    name: &'static str,
    id: u32,
    bytes: usize,
    bits: u32,
    group: usize,
    unpack: fn(&[u8], &mut Block),
) -> Format {
    Format { name, id, values: MAX_VALUES, bytes, bits, group, wide_scales: true, unpack }
}

/// `d * (q - 8)`
fn q4_0(bytes: &[u8], block: &mut Block) {
    let (d, nibbles) = (float(bytes, 0), &bytes[2..18]);
    split_nibbles(nibbles, &mut block.q);
    (block.scales[0], block.biases[0]) = (d, -8.0 * d);
}

/// `d * q + m`
fn q4_1(bytes: &[u8], block: &mut Block) {
    split_nibbles(&bytes[4..20], &mut block.q);
    (block.scales[0], block.biases[0]) = (float(bytes, 0), float(bytes, 2));
}

/// `d * (q - 16)`; the fifth bits of all 32 values are a word of their own.
fn q5_0(bytes: &[u8], block: &mut Block) {
    let d = float(bytes, 0);
    split_nibbles(&bytes[6..22], &mut block.q);
    add_fifth_bits(&bytes[2..6], &mut block.q);
    (block.scales[0], block.biases[0]) = (d, -16.0 * d);
}

/// `d * q + m`
fn q5_1(bytes: &[u8], block: &mut Block) {
    split_nibbles(&bytes[8..24], &mut block.q);
    add_fifth_bits(&bytes[4..8], &mut block.q);
    (block.scales[0], block.biases[0]) = (float(bytes, 0), float(bytes, 2));
}

/// `d * q`, q signed.
fn q8_0(bytes: &[u8], block: &mut Block) {
    let d = float(bytes, 0);
    for (q, byte) in block.q[..32].iter_mut().zip(&bytes[2..34]) {
        *q = byte ^ 0x80; // q + 128
    }
    (block.scales[0], block.biases[0]) = (d, -128.0 * d);
}

/// `d * LEVELS[q]`
fn iq4_nl(bytes: &[u8], block: &mut Block) {
    let d = float(bytes, 0);
    split_nibbles(&bytes[2..18], &mut block.q);
    for q in &mut block.q[..32] {
        *q = (IQ4_NL_LEVELS[usize::from(*q & 15)] as u8) ^ 0x80; // level + 128
    }
    (block.scales[0], block.biases[0]) = (d, -128.0 * d);
}

/// `d * scale * q - dmin * min`: 16 bytes of a 4-bit scale and a 4-bit min, 64 of 2-bit values, d, dmin.
fn q2_k(bytes: &[u8], block: &mut Block) {
    let (d, dmin) = (float(bytes, 80), float(bytes, 82));
    for (group, byte) in bytes[..16].iter().enumerate() {
        block.scales[group] = d * f32::from(byte & 15);
        block.biases[group] = -(dmin * f32::from(byte >> 4));
    }
    split_pairs(&bytes[16..80], &mut block.q);
}

/// `d * (scale - 32) * (q - 4)`: 32 bytes of third bits, 64 of 2-bit values, 12 of 6-bit scales, d.
fn q3_k(bytes: &[u8], block: &mut Block) {
    let d = float(bytes, 108);
    let (low, high) = bytes[96..108].split_at(8);
    for group in 0..16 {
        let low = low[group % 8] >> (4 * (group / 8)) & 15;
        let high = high[group % 4] >> (2 * (group / 4)) & 3;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        (block.scales[group], block.biases[group]) = (scale, -4.0 * scale);
    }
    split_pairs(&bytes[32..96], &mut block.q);
    for (part, values) in block.q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (q, high) in values.iter_mut().zip(&bytes[..32]) {
            *q |= (high >> part & 1) << 2;
        }
    }
}

/// `d * scale * q - dmin * min`: d, dmin, 12 bytes of eight 6-bit scales and mins, 128 of 4-bit values.
fn q4_k(bytes: &[u8], block: &mut Block) {
    scales_and_mins(bytes, block);
    split_nibbles_by_64(&bytes[16..144], &mut block.q);
}

/// As Q4_K, with 32 bytes of fifth bits before the nibbles.
fn q5_k(bytes: &[u8], block: &mut Block) {
    scales_and_mins(bytes, block);
    split_nibbles_by_64(&bytes[48..176], &mut block.q);
    for (part, values) in block.q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (q, high) in values.iter_mut().zip(&bytes[16..48]) {
            *q |= (high >> part & 1) << 4;
        }
    }
}

/// `d * scale * (q - 32)`: 128 bytes of low nibbles, 64 of high pairs, 16 of signed scales, d.
fn q6_k(bytes: &[u8], block: &mut Block) {
    let d = float(bytes, 208);
    for (group, &scale) in bytes[192..208].iter().enumerate() {
        let scale = d * f32::from(scale as i8);
        (block.scales[group], block.biases[group]) = (scale, -32.0 * scale);
    }
    let halves = block.q.as_chunks_mut::<128>().0.iter_mut();
    let low = bytes[..128].as_chunks::<64>().0;
    let high = bytes[128..192].as_chunks::<32>().0;
    for ((values, low), high) in halves.zip(low).zip(high) {
        for i in 0..32 {
            values[i] = low[i] & 15 | (high[i] & 3) << 4;
            values[i + 32] = low[i + 32] & 15 | (high[i] >> 2 & 3) << 4;
            values[i + 64] = low[i] >> 4 | (high[i] >> 4 & 3) << 4;
            values[i + 96] = low[i + 32] >> 4 | (high[i] >> 6) << 4;
        }
    }
}

fn float(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// 16 bytes to 32 values: the low nibbles first, then the high ones.
fn split_nibbles(bytes: &[u8], q: &mut [u8; MAX_VALUES]) {
    let (low, high) = q[..32].split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(&bytes[..16]) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

/// 128 bytes to 256 values: of every 32 bytes the low nibbles first, then the high ones.
fn split_nibbles_by_64(bytes: &[u8], q: &mut [u8; MAX_VALUES]) {
    for (values, bytes) in q.as_chunks_mut::<64>().0.iter_mut().zip(bytes.as_chunks::<32>().0) {
        for i in 0..32 {
            (values[i], values[i + 32]) = (bytes[i] & 15, bytes[i] >> 4);
        }
    }
}

/// 64 bytes to 256 values: of every 32 bytes the lowest two bits first, the highest last.
fn split_pairs(bytes: &[u8], q: &mut [u8; MAX_VALUES]) {
    for (values, bytes) in q.as_chunks_mut::<128>().0.iter_mut().zip(bytes.as_chunks::<32>().0) {
        for i in 0..32 {
            values[i] = bytes[i] & 3;
            values[i + 32] = bytes[i] >> 2 & 3;
            values[i + 64] = bytes[i] >> 4 & 3;
            values[i + 96] = bytes[i] >> 6;
        }
    }
}

fn add_fifth_bits(word: &[u8], q: &mut [u8; MAX_VALUES]) {
    let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
    for (i, q) in q[..32].iter_mut().enumerate() {
        *q |= ((word >> i & 1) as u8) << 4;
    }
}

/// The head of Q4_K and Q5_K. Of twelve bytes, four hold scales 0..4 and four mins 0..4 in their low six bits; the
/// last four hold the low nibbles of scales and mins 4..8, whose high pairs are the first eight bytes' top bits.
fn scales_and_mins(bytes: &[u8], block: &mut Block) {
    let (d, dmin) = (float(bytes, 0), float(bytes, 2));
    let packed = &bytes[4..16];
    for i in 0..4 {
        let (scale, min, rest) = (packed[i], packed[i + 4], packed[i + 8]);
        block.scales[i] = d * f32::from(scale & 63);
        block.biases[i] = -(dmin * f32::from(min & 63));
        block.scales[i + 4] = d * f32::from(rest & 15 | scale >> 6 << 4);
        block.biases[i + 4] = -(dmin * f32::from(rest >> 4 | min >> 6 << 4));
    }
}

const MAX_VALUES: usize = 256;

#[rustfmt::skip]
const IQ4_NL_LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
