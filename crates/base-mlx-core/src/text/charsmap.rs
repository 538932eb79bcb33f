//! SentencePiece's table of what is written for what. The library that looks things up in it trusts it, and it comes with a
//! foreign file.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokenizers::normalizers::NormalizerWrapper;

/// Fails if a lookup in one of the normalizer's tables could leave it.
pub(super) fn check_all(normalizer: &NormalizerWrapper) -> Result<(), String> {
    match normalizer {
        NormalizerWrapper::Sequence(steps) => steps.as_ref().iter().try_for_each(check_all),
        NormalizerWrapper::Precompiled(table) => {
            // The library gives its bytes away in no other form.
            let written = serde_json::to_value(table).ok();
            let bytes = written.as_ref().and_then(|table| table["precompiled_charsmap"].as_str());
            let bytes = bytes.and_then(|bytes| STANDARD.decode(bytes).ok());
            check(&bytes.ok_or("its `precompiled_charsmap` is not base64")?)
        }
        _ => Ok(()),
    }
}

/// Fails if a lookup could leave the table: the size of a trie, the trie, and the texts that it leads to, each with a zero
/// behind it. The trie is a double array of 32-bit units, as darts-clone lays it out.
pub(super) fn check(charsmap: &[u8]) -> Result<(), String> {
    let damaged = |what: &str| Err(format!("its `precompiled_charsmap` {what}"));
    let Some((size, rest)) = charsmap.split_first_chunk::<4>() else {
        return damaged("ends before its trie does");
    };
    let size = u32::from_le_bytes(*size) as usize;
    let Some((trie, texts)) = rest.split_at_checked(size) else {
        return damaged("ends before its trie does");
    };
    if !size.is_multiple_of(4) {
        return damaged(&format!("has a trie of {size} bytes, expected a multiple of 4"));
    }
    let Ok(texts) = std::str::from_utf8(texts) else {
        return damaged("has texts that are not UTF-8");
    };
    let units: Vec<usize> =
        trie.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit) as usize).collect();
    if units.is_empty() {
        return damaged("has an empty trie");
    }
    for (place, &unit) in units.iter().enumerate() {
        // A lookup begins at the first unit without looking what it is; no label leads to another that is a value.
        if place != 0 && unit & IS_VALUE != 0 {
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
    use serde_json::json;

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

    /// Whatever passes is looked up in without a panic.
    #[test]
    fn a_damaged_table_is_refused_or_harmless() {
        use tokenizers::normalizers::Precompiled;
        use tokenizers::{NormalizedString, Normalizer};
        let mut state = 1_u64;
        let mut dice = |sides: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % sides) as usize
        };
        let texts = ["", "a", "caca", "\u{301}a", "東京 a\u{308}b", "🙂a\u{200d}é", "\u{7f}aa\0a"];
        let places = [0, 256, 256 ^ 0x61, 511];
        let mut passed = 0;
        for _ in 0..20_000 {
            let mut units = sound();
            for _ in 0..=dice(3) {
                let place = if dice(2) == 0 { dice(512) } else { places[dice(4)] };
                match dice(3) {
                    0 => units[place] ^= 1 << dice(32),
                    1 => units[place] = units[dice(512)],
                    _ => units[place] = dice(512 << 10) as u32,
                }
            }
            let mut table = bytes(&units, "bß\0\0東".as_bytes());
            if dice(8) == 0 {
                let at = dice(table.len() as u64);
                table[at] ^= 1 << dice(8);
            }
            if check(&table).is_err() {
                continue;
            }
            passed += 1;
            let table = Precompiled::from(&table).unwrap();
            for text in texts {
                table.normalize_string(text);
                table.normalize(&mut NormalizedString::from(text)).unwrap();
            }
        }
        assert!((4_000..16_000).contains(&passed), "{passed}");
    }

    #[test]
    fn a_table_in_a_sequence_is_checked_too() {
        let json = |units: &[u32]| {
            let table = STANDARD.encode(bytes(units, b"b\0"));
            let table = json!({"type": "Precompiled", "precompiled_charsmap": table});
            let inner = json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, table]});
            let outer = json!({"type": "Sequence", "normalizers": [inner]});
            [table, outer].map(|json| serde_json::from_value::<NormalizerWrapper>(json).unwrap())
        };
        assert_eq!(json(&sound()).map(|normalizer| check_all(&normalizer)), [Ok(()), Ok(())]);
        let mut units = sound();
        units[0] |= 1 << 31;
        for normalizer in json(&units) {
            let error = check_all(&normalizer).unwrap_err();
            assert!(error.ends_with("unit 0 leads out of it"), "{error}");
        }
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
        assert!(wrong(|units| units[0] |= 1 << 31).ends_with("unit 0 leads out of it"));
        assert!(wrong(Vec::clear).ends_with("an empty trie"));
        let mut odd = bytes(&sound(), b"b\0");
        odd[0] += 1;
        assert!(
            check(&odd).unwrap_err().ends_with("a trie of 2049 bytes, expected a multiple of 4")
        );
        assert!(check(&u32::MAX.to_le_bytes()).unwrap_err().ends_with("before its trie does"));
        assert!(check(&bytes(&sound(), b"\xff")).unwrap_err().ends_with("not UTF-8"));
    }
}
