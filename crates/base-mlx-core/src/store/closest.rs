use std::collections::BTreeSet;

/// The known names that a person may have meant, at most three, the best first. Only for messages: no file is
/// ever chosen by likeness.
pub(super) fn closest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Vec<String> {
    let wanted: Vec<char> = name.to_lowercase().chars().take(MAX_CHARS).collect();
    let mut found = BTreeSet::new();
    for candidate in known {
        let whole: Vec<char> = candidate.to_lowercase().chars().take(MAX_CHARS).collect();
        // Many type the model's name without its owner.
        let last = whole.rsplit(|&char| char == '/').next().unwrap_or(&whole);
        let distance = distance(&wanted, &whole).min(distance(&wanted, last) + 1);
        let contained = wanted.len() >= 3 && contains(&whole, &wanted);
        if contained || distance <= (wanted.len() / 3).max(2) {
            found.insert((if contained { distance.min(1) } else { distance }, candidate));
        }
    }
    found.into_iter().take(3).map(|(_, candidate)| candidate.to_owned()).collect()
}

fn contains(whole: &[char], part: &[char]) -> bool {
    whole.windows(part.len()).any(|window| window == part)
}

/// Levenshtein's: insertions, deletions and replacements.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Names come from requests; the work per name stays bounded.
const MAX_CHARS: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_slip_finds_its_name() {
        let known = ["smollm2", "qwen3-0.6b", "qwen3-8b", "mlx-community/Qwen3-8B-4bit"];
        let of = |name| closest(name, known.into_iter());
        assert_eq!(of("smolm2"), ["smollm2"]);
        assert_eq!(of("qwen3"), ["mlx-community/Qwen3-8B-4bit", "qwen3-0.6b", "qwen3-8b"]);
        assert_eq!(of("Qwen3-8B-4bit")[0], "mlx-community/Qwen3-8B-4bit");
        assert!(of("gpt-oss-120b").is_empty());
        assert!(of(&"x".repeat(100_000)).is_empty());
    }
}
