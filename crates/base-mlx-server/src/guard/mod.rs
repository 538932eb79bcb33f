//! Who may talk to the server: the `Host` check, web pages of other origins, and API keys. Each file is one middleware
//! that either answers with an error or lets the request pass; none of them knows what the routes do.

pub(crate) mod cors;
pub(crate) mod host;
pub(crate) mod key;
