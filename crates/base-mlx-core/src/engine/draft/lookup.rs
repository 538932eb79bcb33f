use crate::TokenId;

/// What followed, earlier in `tokens`, the place that is most like its end: at most `most` tokens, and by how many tokens
/// the two places are alike. Where what followed ends, it goes on with itself, as repetitions do. (Saxena 2023, "Prompt
/// lookup decoding".)
pub(super) fn lookup(tokens: &[TokenId], most: usize) -> Option<(Vec<TokenId>, usize)> {
    let (last, before) = tokens.split_last()?;
    let mut best: Option<(usize, usize)> = None;
    // The latest of equals: what was said last is said again sooner.
    for end in (1..tokens.len()).rev().filter(|&end| tokens[end - 1] == *last) {
        let earlier = tokens[..end - 1].iter().rev().zip(before.iter().rev());
        let alike = 1 + earlier.take(LONGEST - 1).take_while(|(a, b)| a == b).count();
        if best.is_none_or(|(_, longest)| alike > longest) {
            best = Some((end, alike));
        }
        if alike == LONGEST {
            break;
        }
    }
    let (end, alike) = best?;
    let mut draft: Vec<TokenId> = Vec::with_capacity(most);
    for place in end..end + most {
        draft.push(if place < tokens.len() { tokens[place] } else { draft[place - tokens.len()] });
    }
    Some((draft, alike))
}

/// Places alike by more tokens are no better than by so many.
const LONGEST: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_the_most_similar_place_is_proposed() {
        // "3" was seen after "1 2" and, later, after "9".
        let tokens = [1, 2, 3, 4, 5, 9, 3, 6, 1, 2, 3];
        assert_eq!(lookup(&tokens, 3), Some((vec![4, 5, 9], 3)));
        assert_eq!(
            lookup(&[1, 3, 4, 2, 3, 5, 9, 3], 1),
            Some((vec![5], 1)),
            "the latest of equals"
        );
        assert_eq!(lookup(&[1, 2, 3], 4), None);
        assert_eq!(lookup(&[], 4), None);
    }

    #[test]
    fn a_repetition_goes_on_beyond_its_end() {
        assert_eq!(lookup(&[7, 1, 2, 1, 2], 5), Some((vec![1, 2, 1, 2, 1], 2)));
        assert_eq!(lookup(&[4, 4], 3), Some((vec![4, 4, 4], 1)));
    }
}
