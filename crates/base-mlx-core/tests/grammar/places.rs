use base_mlx_core::TokenId;
use base_mlx_core::grammar::Constraint;
use base_mlx_core::sample::Mask;
use base_mlx_core::text::output::Rule;
use proptest::prelude::*;
use serde_json::json;

use crate::support::dice::Dice;
use crate::vocabulary::{Vocabulary, json as rule};

/// Grammars with long runs that are forced, with choices, and with free text.
fn rules() -> Vec<Rule> {
    let schema = json!({
        "type": "object", "additionalProperties": false,
        "properties": {
            "conversation_identifier": { "enum": ["first", "first of all", "<|im_end|>", "日本"] },
            "count": { "type": "integer", "minimum": 0, "maximum": 300 },
            "list": { "type": "array", "items": { "type": ["string", "null"] }, "maxItems": 3 },
        },
        "required": ["conversation_identifier", "count"],
    });
    vec![
        rule(&schema, true),
        rule(&json!({}), true),
        Rule::Regex("(ab?)*c{2,5}".to_owned()),
        Rule::Choice(vec!["yes".to_owned(), "yesterday".to_owned(), "no".to_owned()]),
        Rule::Lark(
            "start: call+\ncall: \"<tool_call>\\n\" /[a-z ]{1,20}/ \"\\n</tool_call>\"".to_owned(),
        ),
    ]
}

/// All that a constraint says of the place it is at.
fn said(constraint: &mut Constraint) -> (Mask, Vec<TokenId>, bool, bool) {
    let mask = constraint.allowed().unwrap();
    (mask, constraint.forced(), constraint.may_stop(), constraint.is_over())
}

/// A place that a constraint was at, and what it said there.
struct Path<'a> {
    vocabulary: &'a Vocabulary,
    dice: Dice,
}

impl Path<'_> {
    /// A token that may come next.
    fn token(&mut self, constraint: &mut Constraint) -> TokenId {
        let allowed = self.vocabulary.allowed(&constraint.allowed().unwrap());
        self.dice.one_of(&allowed)
    }

    /// Does what the loop may do between two tokens, and comes back.
    fn digress(&mut self, constraint: &mut Constraint) {
        for _ in 0..self.dice.below(3) {
            match self.dice.below(5) {
                0 => drop(constraint.forced()),
                1 => {
                    let tokens: Vec<_> =
                        (0..4).map(|_| self.dice.below(self.vocabulary.size) as TokenId).collect();
                    constraint.follows(&tokens);
                }
                2 => {
                    let forced = constraint.forced();
                    let follow = constraint.follows(&forced);
                    assert_eq!(follow, forced.len(), "what is forced may follow");
                }
                3 => drop(constraint.may_stop()),
                _ => {
                    let steps = self.dice.below(6);
                    let mut taken = Vec::new();
                    for _ in 0..steps {
                        let token = self.token(constraint);
                        constraint.accept(token).unwrap();
                        taken.push(token);
                        if self.vocabulary.end_tokens.contains(&token) {
                            break;
                        }
                    }
                    constraint.rollback(taken.len()).unwrap();
                    taken.retain(|token| !self.vocabulary.end_tokens.contains(token));
                    assert_eq!(
                        constraint.follows(&taken),
                        taken.len(),
                        "what was taken may follow"
                    );
                }
            }
        }
    }
}

#[test]
fn a_mask_depends_on_nothing_but_the_tokens_before_it() {
    let vocabulary = Vocabulary::smollm2();
    let rules = rules();
    let config = ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() };
    proptest!(config, |(seed in any::<u64>(), which in 0..rules.len())| {
        let start = vocabulary.compile(rules[which].clone()).unwrap();
        let mut path = Path { vocabulary: &vocabulary, dice: Dice(seed) };
        let mut straight = start.clone();
        let mut winding = start.clone();
        let mut taken = Vec::new();
        for _ in 0..30 {
            path.digress(&mut winding);
            prop_assert_eq!(said(&mut straight), said(&mut winding), "after {:?}", taken);
            if straight.is_over() {
                break;
            }
            let token = path.token(&mut straight);
            straight.accept(token).unwrap();
            winding.accept(token).unwrap();
            taken.push(token);
            if vocabulary.end_tokens.contains(&token) {
                break;
            }
        }
        // All the way back is the beginning.
        winding.rollback(taken.len()).unwrap();
        prop_assert_eq!(said(&mut start.clone()), said(&mut winding));
    });
}

#[test]
fn a_clone_moves_by_itself() {
    let vocabulary = Vocabulary::smollm2();
    for rule in rules() {
        let start = vocabulary.compile(rule).unwrap();
        let alone = |seed: u64| {
            let mut constraint = start.clone();
            let mut path = Path { vocabulary: &vocabulary, dice: Dice(seed) };
            let mut seen = Vec::new();
            while seen.len() < 20 && !constraint.is_over() {
                let token = path.token(&mut constraint);
                if vocabulary.end_tokens.contains(&token) {
                    break;
                }
                constraint.accept(token).unwrap();
                seen.push((token, said(&mut constraint)));
            }
            seen
        };
        let expected: Vec<_> = (0..4).map(alone).collect();
        let together: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|seed| scope.spawn(move || alone(seed))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(expected == together);
    }
}

#[test]
fn after_the_end_come_only_end_tokens_and_one_can_go_back() {
    let vocabulary = Vocabulary::smollm2();
    let mut constraint = vocabulary.compile(Rule::Choice(vec!["no".to_owned()])).unwrap();
    let before = said(&mut constraint);
    let tokens = constraint.forced();
    for &token in &tokens {
        constraint.accept(token).unwrap();
    }
    let end = vocabulary.end_tokens[0];
    assert!(constraint.may_stop());
    let allowed = vocabulary.allowed(&constraint.allowed().unwrap());
    assert!(allowed.iter().all(|token| vocabulary.end_tokens.contains(token)), "{allowed:?}");
    constraint.accept(end).unwrap();
    assert!(constraint.is_over());
    constraint.rollback(tokens.len() + 1).unwrap();
    assert_eq!(said(&mut constraint), before);
}
