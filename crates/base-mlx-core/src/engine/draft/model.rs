use std::collections::HashMap;
use std::sync::{Arc, Weak};

use crate::TokenId;
use crate::backend::{Backend, DeviceError, KvCache, LayerSpec, NO_TOKEN};
use crate::engine::compute::draw;
use crate::engine::memory::Room;
use crate::engine::prefix::shared_len;
use crate::engine::sequence::SequenceId;
use crate::models::LanguageModel;
use crate::sample::{History, SamplingParams, choose};
use crate::step::Step;
use crate::tensor::Tensor;

/// A model as others see it that let it draft for them.
pub(in crate::engine) struct DraftModel<B: Backend> {
    pub(in crate::engine) backend: B,
    pub(in crate::engine) model: Arc<dyn LanguageModel<B>>,
    pub(in crate::engine) layers: Vec<LayerSpec>,
    pub(in crate::engine) vocab_size: usize,
    pub(in crate::engine) room: Arc<Room>,
}

/// A model that drafts for the sequences of another, and what it remembers of them.
pub(in crate::engine) struct ModelDrafter<B: Backend> {
    /// Its requests keep it alive.
    model: Weak<DraftModel<B>>,
    caches: HashMap<SequenceId, Cache<B>>,
    /// Of sequences that are gone, the oldest first.
    kept: Vec<Cache<B>>,
    /// Positions of all of them, as the model's room knows.
    held: usize,
}

struct Cache<B: Backend> {
    kv: B::Kv,
    /// What it holds the keys and values of, perhaps with drafts at its end that were wrong.
    tokens: Vec<TokenId>,
}

/// A sequence to draft for.
pub(in crate::engine) struct Wanted<'a> {
    pub(in crate::engine) id: SequenceId,
    pub(in crate::engine) tokens: &'a [TokenId],
    pub(in crate::engine) params: &'a SamplingParams,
    pub(in crate::engine) history: &'a History,
    /// How many tokens, at least one.
    pub(in crate::engine) most: usize,
}

impl<B: Backend> ModelDrafter<B> {
    pub(in crate::engine) fn new(model: &Arc<DraftModel<B>>) -> Self {
        Self { model: Arc::downgrade(model), caches: HashMap::new(), kept: Vec::new(), held: 0 }
    }

    pub(in crate::engine) fn is_of(&self, model: &Arc<DraftModel<B>>) -> bool {
        std::ptr::eq(self.model.as_ptr(), Arc::as_ptr(model))
    }

    /// False when the model was unloaded.
    pub(in crate::engine) fn is_alive(&self) -> bool {
        self.model.strong_count() > 0
    }

    /// A draft for each, which has what this model would have chosen by the same rules and random numbers. Computes at most
    /// `step_tokens` positions at a time; who is further behind than that catches up a part, and gets no draft yet.
    pub(in crate::engine) fn draft(
        &mut self,
        wanted: &[Wanted],
        step_tokens: usize,
    ) -> Result<Vec<Vec<TokenId>>, DeviceError> {
        let Some(model) = self.model.upgrade() else { return Ok(vec![Vec::new(); wanted.len()]) };
        let mut drafts = vec![Vec::new(); wanted.len()];
        let known = |wanted: &Wanted| self.caches.get(&wanted.id).map_or(0, |c| c.tokens.len());
        let more = wanted
            .iter()
            .map(|wanted| (wanted.tokens.len() + wanted.most).saturating_sub(known(wanted)));
        let more = more.sum();
        if !self.hold(more) {
            return Ok(drafts);
        }
        let mut histories: Vec<History> = Vec::with_capacity(wanted.len());
        let mut left = step_tokens;
        let mut caches = Vec::with_capacity(wanted.len());
        for wanted in wanted {
            histories.push(wanted.history.clone());
            caches.push(self.cache(&model, wanted)?);
        }
        // Who computes what: at first what it is behind, then each time the token drafted last.
        let mut pending: Vec<Vec<TokenId>> = Vec::with_capacity(wanted.len());
        let mut caught_up = vec![false; wanted.len()];
        for ((wanted, cache), caught_up) in wanted.iter().zip(&caches).zip(&mut caught_up) {
            let behind = &wanted.tokens[cache.tokens.len()..];
            let now = behind.len().min(left);
            (left, *caught_up) = (left - now, now == behind.len());
            pending.push(behind[..now].to_vec());
        }
        loop {
            let works = |index: &usize| {
                !pending[*index].is_empty() && drafts[*index].len() < wanted[*index].most
            };
            let active: Vec<usize> = (0..wanted.len()).filter(works).collect();
            if active.is_empty() {
                break;
            }
            let logits = model.logits(&mut caches, &pending, &active)?;
            let next = |&index: &usize| Next {
                params: wanted[index].params,
                history: &histories[index],
                position: wanted[index].tokens.len() + drafts[index].len(),
            };
            let next: Vec<Next> = active.iter().map(next).collect();
            let chosen = model.choose(&logits, &next)?;
            for (&index, token) in active.iter().zip(chosen) {
                pending[index].clear();
                let Some(token) = token.filter(|_| caught_up[index]) else { continue };
                drafts[index].push(token);
                histories[index].push(token);
                if drafts[index].len() < wanted[index].most {
                    pending[index].push(token);
                }
            }
        }
        for (wanted, cache) in wanted.iter().zip(caches) {
            self.caches.insert(wanted.id, cache);
        }
        Ok(drafts)
    }

    /// The sequence is gone; what is known of it may serve the next that begins like it.
    pub(in crate::engine) fn retire(&mut self, id: SequenceId) {
        self.kept.extend(self.caches.remove(&id));
        if self.kept.len() > MOST_KEPT {
            self.kept.remove(0);
        }
        self.hold(0);
    }

    /// Gives all memory back.
    pub(in crate::engine) fn clear(&mut self) {
        self.caches.clear();
        self.kept.clear();
        self.hold(0);
    }

    /// Takes note of the positions that it has, and will have when so many more are computed; gives up what is kept for them
    /// if need be. False if there is no room for them all the same.
    fn hold(&mut self, more: usize) -> bool {
        loop {
            let all = self.caches.values().chain(&self.kept);
            let now = all.map(|cache| cache.tokens.len()).sum::<usize>() + more;
            let Some(model) = self.model.upgrade() else { return false };
            if model.room.draft(self.held, now) {
                self.held = now;
                return true;
            }
            if self.kept.is_empty() {
                return false;
            }
            self.kept.remove(0);
        }
    }

    /// The sequence's cache, right as far as it goes, and at least one token behind.
    fn cache(&mut self, model: &DraftModel<B>, wanted: &Wanted) -> Result<Cache<B>, DeviceError> {
        let mut cache = match self.caches.remove(&wanted.id) {
            Some(cache) => cache,
            None => {
                let most = |cache: &&Cache<B>| shared_len(&cache.tokens, wanted.tokens);
                match self.kept.iter().max_by_key(most).filter(|cache| most(cache) > 0) {
                    Some(kept) => Cache { kv: kept.kv.fork(), tokens: kept.tokens.clone() },
                    None => {
                        let kv = model.backend.new_kv(&model.layers)?;
                        Cache { kv, tokens: Vec::new() }
                    }
                }
            }
        };
        let right = shared_len(&cache.tokens, wanted.tokens).min(wanted.tokens.len() - 1);
        cache.kv.truncate(right);
        cache.tokens.truncate(right);
        Ok(cache)
    }
}

impl<B: Backend> DraftModel<B> {
    /// Computes what is pending and gives each one's last row, `[active, vocab_size]`.
    fn logits(
        &self,
        caches: &mut [Cache<B>],
        pending: &[Vec<TokenId>],
        active: &[usize],
    ) -> Result<Tensor<B>, DeviceError> {
        let Self { backend, model, .. } = self;
        let mut batch = Vec::with_capacity(active.len());
        let mut rows = Vec::with_capacity(active.len());
        let mut end = 0;
        for (index, cache) in caches.iter_mut().enumerate() {
            if active.contains(&index) {
                cache.tokens.extend(&pending[index]);
                end += pending[index].len();
                rows.push(end as u32 - 1);
                batch.push((&mut cache.kv, &pending[index][..]));
            }
        }
        let mut step = Step::new(backend, batch)?;
        Ok(model.logits(&model.hidden(&mut step).take_rows(&rows)))
    }

    /// A token from each row of `[next, vocab_size]`, where one is left.
    fn choose(
        &self,
        logits: &Tensor<B>,
        next: &[Next],
    ) -> Result<Vec<Option<TokenId>>, DeviceError> {
        let Self { backend, model, vocab_size, .. } = self;
        if B::CHOOSES && next.iter().all(|next| next.params.is_plain()) {
            let draws: Vec<_> = next.iter().map(|next| draw(next.params, next.position)).collect();
            let tokens = backend.download(&backend.choose(logits, *vocab_size, &draws))?.to_u32();
            let left = |token: TokenId| (token != NO_TOKEN).then_some(token);
            return Ok(tokens.into_iter().map(left).collect());
        }
        let all = backend.download(logits.array())?.to_f32();
        let rows = all.chunks_exact(model.vocab_size());
        let chosen = next.iter().zip(rows).map(|(next, row)| {
            let Next { params, history, position } = next;
            let params = SamplingParams { logprobs: None, ..(*params).clone() };
            choose(&row[..*vocab_size], &params, history, *position, None)
                .ok()
                .map(|chosen| chosen.token)
        });
        Ok(chosen.collect())
    }
}

/// A token to choose: what decides about it.
struct Next<'a> {
    params: &'a SamplingParams,
    history: &'a History,
    /// Its place in the sequence.
    position: usize,
}

/// Sequences that are gone.
const MOST_KEPT: usize = 16;
