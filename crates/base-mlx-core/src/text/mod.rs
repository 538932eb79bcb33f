//! Tokenizers, incremental decoding and chat templates.
//!
//! May import `weights` (for GGUF metadata and errors) and nothing else of this crate.

mod charsmap;
mod decoder;
mod end;
mod folder;
mod gguf;
mod json;
pub mod output;
mod pretokenize;
mod template;
mod tokenizer;

pub use decoder::{Decoder, Opening};
pub use json::parse_json;
pub use template::{ChatInput, ChatTemplate, Clock, SpecialTokens, TemplateError};
pub use tokenizer::{AddSpecial, Tokenizer};

use std::path::Path;

use self::output::{OutputFormat, UnknownFormat};

use crate::TokenId;
use crate::weights::gguf::Metadata;
use crate::weights::{Checkpoint, Config, LoadError};

/// What a model needs to read messages and to write text.
#[derive(Clone, Debug)]
pub struct Text {
    pub tokenizer: Tokenizer,
    /// None if the model was not made for conversations.
    pub template: Option<ChatTemplate>,
    /// Why there is none, though the model was made for conversations. Texts it can complete all the same.
    pub template_error: Option<TemplateError>,
    /// The tokens that end an answer, in ascending order.
    pub end_tokens: Vec<TokenId>,
    /// How the model writes calls and thoughts.
    pub output: OutputFormat,
}

impl Text {
    /// From the files beside a folder's weights, or from a GGUF file's metadata.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self, LoadError> {
        match checkpoint.gguf() {
            Some(metadata) => Self::from_gguf(checkpoint.path(), metadata),
            None => Self::from_folder(checkpoint.path(), checkpoint.config()),
        }
    }

    fn new(
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        template_error: Option<TemplateError>,
        end_tokens: Vec<TokenId>,
    ) -> Self {
        let sources = template.as_ref().map(ChatTemplate::sources).unwrap_or_default();
        let output = OutputFormat::of_template(&sources);
        let text = Self { tokenizer, template, template_error, end_tokens, output: output.clone() };
        text.with_output(output)
    }

    /// With calls written as the format of this name has them, whatever the template says.
    pub fn with_tool_format(self, name: &str) -> Result<Self, UnknownFormat> {
        let output = self.output.clone().with_tools(name)?;
        Ok(self.with_output(output))
    }

    fn with_output(mut self, output: OutputFormat) -> Self {
        let tokenizer = self.tokenizer.showing(output.markers());
        self.output = output.with_special(|marker| tokenizer.has_special(marker));
        self.tokenizer = tokenizer;
        self
    }

    /// From the files beside a folder's weights.
    pub fn from_folder(folder: &Path, config: &Config) -> Result<Self, LoadError> {
        folder::load(folder, config)
    }

    /// From a GGUF file's metadata alone; errors name `path`.
    pub fn from_gguf(path: &Path, metadata: &Metadata) -> Result<Self, LoadError> {
        gguf::load(path, metadata)
    }
}

/// No vocabulary is nearly as large; a file that says so lies.
const MAX_TOKENS: usize = 1 << 24;
