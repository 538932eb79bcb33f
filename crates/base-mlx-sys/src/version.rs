/// FNV-1a of all texts, one after the other (Fowler, Noll and Vo, 1991). Also part of the build script.
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
