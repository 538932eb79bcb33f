//! SentencePiece's table of what is written for what. The library that looks things up in it trusts it, and it comes with a
//! foreign file.

/// Fails if a lookup could leave the table: the size of a trie, the trie, and the texts that it leads to, each with a zero
/// behind it. The trie is a double array of 32-bit units, as darts-clone lays it out.
pub(super) fn check(charsmap: &[u8]) -> Result<(), String> {
    let damaged = |what: &str| Err(format!("`tokenizer.ggml.precompiled_charsmap` {what}"));
    let Some((size, rest)) = charsmap.split_first_chunk::<4>() else {
        return damaged("ends before its trie does");
    };
    let size = u32::from_le_bytes(*size) as usize;
    let Some((trie, texts)) = rest.split_at_checked(size) else {
        return damaged("ends before its trie does");
    };
    let Ok(texts) = std::str::from_utf8(texts) else {
        return damaged("has texts that are not UTF-8");
    };
    let units: Vec<usize> =
        trie.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit) as usize).collect();
    if units.is_empty() {
        return damaged("has an empty trie");
    }
    for (place, &unit) in units.iter().enumerate() {
        if unit & IS_VALUE != 0 {
            continue;
        }
        // The children's places differ from it in their last byte.
        let children = place ^ (unit >> 10 << ((unit & WIDE) >> 6));
        if children | 0xff >= units.len() {
            return damaged(&format!("has a trie whose unit {place} leads out of it"));
        }
        let value = units[children] & !IS_VALUE;
        if unit & HAS_VALUE != 0 && !(value < texts.len() && texts.is_char_boundary(value)) {
            return damaged(&format!("has a trie whose unit {place} leads to no text"));
        }
    }
    Ok(())
}

const IS_VALUE: usize = 1 << 31;
/// The offset of the children counts in 256ths.
const WIDE: usize = 1 << 9;
const HAS_VALUE: usize = 1 << 8;

#[cfg(test)]
mod tests {
    use super::*;

    /// A trie that leads from `a` to the text `b`.
    fn sound() -> Vec<u32> {
        let mut units = vec![0; 512];
        units[0] = 256 << 10;
        units[256 ^ 0x61] = 0x61 | HAS_VALUE as u32 | 0x61 << 10;
        units[256] = IS_VALUE as u32;
        units
    }

    fn bytes(units: &[u32], texts: &[u8]) -> Vec<u8> {
        let size = (units.len() as u32 * 4).to_le_bytes();
        [&size[..], &units.iter().flat_map(|unit| unit.to_le_bytes()).collect::<Vec<_>>(), texts]
            .concat()
    }

    #[test]
    fn a_sound_table_is_looked_up() {
        use tokenizers::normalizers::Precompiled;
        let table = bytes(&sound(), b"b\0");
        check(&table).unwrap();
        assert_eq!(Precompiled::from(&table).unwrap().normalize_string("cac"), "cbc");
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        let wrong = |change: fn(&mut Vec<u32>)| {
            let mut units = sound();
            change(&mut units);
            check(&bytes(&units, "bß\0".as_bytes())).unwrap_err()
        };
        assert!(wrong(|units| units[0] = 512 << 10).ends_with("unit 0 leads out of it"));
        assert!(wrong(|units| units.truncate(400)).ends_with("unit 0 leads out of it"));
        assert!(wrong(|units| units[256] |= 2).ends_with("unit 353 leads to no text"));
        assert!(wrong(|units| units[256] |= 4).ends_with("unit 353 leads to no text"));
        assert!(wrong(Vec::clear).ends_with("an empty trie"));
        assert!(check(&u32::MAX.to_le_bytes()).unwrap_err().ends_with("before its trie does"));
        assert!(check(&bytes(&sound(), b"\xff")).unwrap_err().ends_with("not UTF-8"));
    }
}
