//! XLM-RoBERTa (Conneau et al. 2020, arXiv:1911.02116): a BERT whose places are counted from behind the padding token's
//! number, and which has a head of its own.

use serde_json::json;

use crate::backend::Backend;
use crate::weights::{Config, LoadError, Loader};

use super::bert::load_stack;
use super::encoder::{EncoderModel, Scorer, only};

pub(super) fn longest_text(config: &Config) -> Result<usize, LoadError> {
    let positions = config.count("max_position_embeddings")?;
    match positions.checked_sub(FIRST_POSITION) {
        Some(longest @ 1..) => Ok(longest),
        _ => {
            let what = format!("is {positions}, expected more than {FIRST_POSITION}");
            Err(config.error("max_position_embeddings", &what))
        }
    }
}

pub(super) fn load<B: Backend>(loader: &Loader<B>) -> Result<EncoderModel<B>, LoadError> {
    let config = loader.config();
    only(config, "pad_token_id", &json!(FIRST_POSITION - 1))?;
    longest_text(config)?;
    let stack = load_stack(loader, "roberta", FIRST_POSITION)?;
    for scope in ["", "roberta."] {
        for part in ["weight", "bias"] {
            loader.ignore(&format!("{scope}pooler.dense.{part}"));
        }
    }
    let hidden_size = config.count("hidden_size")?;
    let scorer = Scorer::load(loader, ["classifier.dense", "classifier.out_proj"], hidden_size)?;
    Ok(EncoderModel { model: Box::new(stack), scorer })
}

/// The row of a text's first place: the one after that of padding.
const FIRST_POSITION: usize = 2;
