use std::collections::HashMap;
use std::time::Duration;

use base_mlx_core::engine::{EngineOptions, KvFormat};
use base_mlx_core::store::ModelDir;

use crate::DraftName;

/// How the server listens, whom it lets in, and what it serves.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// A name or an address to listen on.
    pub host: String,
    /// 0 lets the system choose; `Server::address` says what it chose.
    pub port: u16,
    /// The model of requests that name none.
    pub model: Option<ModelDir>,
    /// Who drafts for requests that do not say.
    pub draft: DraftName,
    /// For every model that is loaded.
    pub engine: EngineOptions,
    /// What some models have of their own, by name.
    pub models: HashMap<String, ModelOptions>,
    /// Keys of which a request must bear one; none lets everybody in.
    pub api_keys: Vec<String>,
    /// Names beside the loopback ones that a `Host` header may carry; `*` allows all.
    pub allow_hosts: Vec<String>,
    /// Origins whose web pages may read the answers.
    pub cors: Vec<String>,
    /// The largest request body.
    pub body_bytes: usize,
    /// How long a request's body may take to arrive.
    pub upload_time: Duration,
    /// How many answers may be under way or waiting; what comes on top is told to come back later.
    pub max_requests: usize,
    /// How long a model stays in memory after its last use, if requests do not say; `None` is until another needs the room.
    pub keep_models: Option<Duration>,
    /// Where chat answers tell what the model thought.
    pub reasoning_field: ReasoningField,
    /// How long a stream may be silent before a comment shows that it lives.
    pub keep_alive: Duration,
    /// How long running answers may go on after the shutdown began.
    pub grace: Duration,
}

/// What the thoughts of a model are called in chat answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReasoningField {
    /// `reasoning_content`, as most local servers have it.
    #[default]
    ReasoningContent,
    /// `reasoning`, as newer ones have it.
    Reasoning,
    /// Both, with the same text.
    Both,
}

/// What one model has instead of what all have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelOptions {
    /// Most tokens of a conversation.
    pub context: Option<usize>,
    /// What its keys and values are kept as.
    pub kv_format: Option<KvFormat>,
    /// How it writes calls, whatever its chat template says.
    pub tool_format: Option<String>,
}

impl ModelOptions {
    pub(crate) fn change(self, options: &mut EngineOptions) {
        options.context = self.context.or(options.context);
        options.kv_format = self.kv_format.or(options.kv_format);
        options.tool_format = self.tool_format.or(options.tool_format.take());
    }
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 11435,
            model: None,
            draft: DraftName::Nobody,
            engine: EngineOptions::default(),
            models: HashMap::new(),
            api_keys: Vec::new(),
            allow_hosts: Vec::new(),
            cors: Vec::new(),
            body_bytes: 32 * 1024 * 1024,
            upload_time: Duration::from_secs(60),
            max_requests: 512,
            keep_models: None,
            reasoning_field: ReasoningField::default(),
            keep_alive: Duration::from_secs(10),
            grace: Duration::from_secs(30),
        }
    }
}
