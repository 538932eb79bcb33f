// Also part of the build script.

/// The MLX whose C++ interface the bridge is written for. MLX promises no binary compatibility.
pub(crate) const MLX: &str = "0.32.4";

/// FNV-1a of all texts, one after the other (Fowler, Noll and Vo, 1991).
pub(crate) const fn version(texts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut text = 0;
    while text < texts.len() {
        let mut byte = 0;
        while byte < texts[text].len() {
            hash = (hash ^ texts[text][byte] as u64).wrapping_mul(0x0100_0000_01b3);
            byte += 1;
        }
        text += 1;
    }
    hash
}
