use crate::TokenId;

/// How one sequence's tokens are chosen. Ranges are checked where requests are parsed.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy, unaffected by the filters and the seed.
    pub temperature: f32,
    /// Keep the k most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of most probable tokens whose probabilities reach this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this times as probable as the most probable one; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in the prompt or the answer; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of every token in the answer.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit for each time the answer has it.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens; -100 and below bans.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// With the position it fixes every random number of the sequence.
    pub seed: u64,
    /// How many alternatives to report with each token's log probability; `None` reports nothing.
    pub logprobs: Option<usize>,
}

impl SamplingParams {
    /// Whether temperature and filters are all that decides, and nobody asks about probabilities.
    pub fn is_plain(&self) -> bool {
        self.repetition_penalty == 1.0
            && self.presence_penalty == 0.0
            && self.frequency_penalty == 0.0
            && self.logit_bias.is_empty()
            && self.logprobs.is_none()
    }
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}
