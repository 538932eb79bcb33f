//! The memory that all models of a device share: weights, what a step needs, keys and values. A model is let in only if
//! there is room for it, and is promised room for one conversation of a length that it keeps to. What nobody was promised
//! is shared as budgets for keys and values, anew when a model comes or goes, or when the system runs short of memory. Nobody
//! goes beyond a budget, and the sum of all is no more than there is.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use crate::weights::NoRoom;

/// Who has how much.
pub(super) struct Ledger {
    /// Bytes that all models together may have. Not set if nobody knows how much there is.
    ceiling: OnceLock<usize>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rooms: Vec<Weak<Room>>,
    /// Bytes of the ceiling that budgets leave alone because the system is short of memory.
    withheld: usize,
}

/// A model's part. It is given back when the last holder of the model is gone.
#[derive(Debug)]
pub(super) struct Room {
    wish: Wish,
    /// [`Wish::fixed`], or what it has turned out to be.
    fixed: AtomicUsize,
    /// Positions that were promised: the longest conversation.
    promised: AtomicUsize,
    /// Positions that are held.
    used: AtomicUsize,
    /// Positions of keys and values that it may have, at least those.
    budget: AtomicUsize,
    /// Those of them that it holds of other models' sequences, to draft for them.
    drafting: AtomicUsize,
}

/// What a model wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    /// Bytes of weights, and of what a step computes.
    pub(super) fixed: usize,
    /// Bytes of a position of keys and values, not 0.
    pub(super) position: usize,
    /// Positions of the longest conversation.
    pub(super) context: usize,
    /// Positions that it can make use of, no fewer than those.
    pub(super) most: usize,
}

impl Wish {
    fn bytes(&self, positions: usize) -> usize {
        self.fixed.saturating_add(self.position.saturating_mul(positions))
    }
}

/// The system is short of memory when less than this is free.
const RESERVE: usize = 256 << 20;

impl Ledger {
    pub(super) fn new() -> Self {
        Self { ceiling: OnceLock::new(), state: Mutex::default() }
    }

    /// Once, before anybody enters.
    pub(super) fn set_ceiling(&self, bytes: usize) {
        self.ceiling.get_or_init(|| bytes);
    }

    pub(super) fn ceiling(&self) -> Option<usize> {
        self.ceiling.get().copied()
    }

    /// Takes a model in. It is promised its context, or what fits into half of the free memory; the budgets of others may
    /// become smaller by it, but no smaller than what they were promised.
    pub(super) fn enter(&self, wish: Wish) -> Result<Arc<Room>, NoRoom> {
        let mut state = self.state();
        let mut promised = wish.context;
        if let Some(ceiling) = self.ceiling() {
            let others = state.rooms.iter().filter_map(Weak::upgrade);
            let taken: usize = others.map(|room| room.least()).sum();
            let free = ceiling.saturating_sub(taken);
            let least = wish.context.min(SHORTEST);
            let needed = wish.bytes(least);
            if needed > free {
                return Err(NoRoom { needed, ceiling, free });
            }
            let fit = (free - wish.fixed) / wish.position;
            promised = wish.context.min(fit / 2).max(least);
        }
        let room = Arc::new(Room {
            wish,
            fixed: AtomicUsize::new(wish.fixed),
            promised: AtomicUsize::new(promised),
            used: AtomicUsize::new(0),
            budget: AtomicUsize::new(wish.most),
            drafting: AtomicUsize::new(0),
        });
        state.rooms.push(Arc::downgrade(&room));
        self.share(&mut state);
        Ok(room)
    }

    /// A model's weights and what its steps need have turned out to be so many bytes. It is promised less if there is no room for
    /// more; fails if there is none for a short conversation.
    pub(super) fn weigh(&self, room: &Room, fixed: usize) -> Result<(), NoRoom> {
        let mut state = self.state();
        let before = room.fixed.swap(fixed, Ordering::Relaxed);
        if let Some(ceiling) = self.ceiling() {
            let all = state.rooms.iter().filter_map(Weak::upgrade);
            let all: usize = all.map(|room| room.least()).sum();
            let beyond = all.saturating_sub(ceiling).div_ceil(room.wish.position);
            let least = room.wish.context.min(SHORTEST);
            if room.promised() < least + beyond {
                let needed = Wish { fixed, ..room.wish }.bytes(least);
                let free = ceiling.saturating_sub(all - room.least());
                room.fixed.store(before, Ordering::Relaxed);
                return Err(NoRoom { needed, ceiling, free });
            }
            room.promised.fetch_sub(beyond, Ordering::Relaxed);
        }
        self.share(&mut state);
        Ok(())
    }

    /// Takes note of how many bytes the system has left, and of how many are wanted now. When they are few, budgets become
    /// what is held less what is missing, though no smaller than what was promised, and larger again when there is enough.
    /// Whether they became smaller.
    pub(super) fn observe(&self, free: usize, wanted: usize) -> bool {
        let Some(ceiling) = self.ceiling() else { return false };
        let mut state = self.state();
        let reserve = RESERVE.min(ceiling / 8);
        let before = state.withheld;
        let missing = reserve.saturating_add(wanted).saturating_sub(free);
        let spare = free.saturating_sub(2 * reserve);
        let now = if missing > 0 {
            let all: Vec<Arc<Room>> = state.rooms.iter().filter_map(Weak::upgrade).collect();
            let promised: usize = all.iter().map(|room| room.least()).sum();
            let held: usize = all.iter().map(|room| room.beyond_promise()).sum();
            ceiling.saturating_sub(promised).saturating_sub(held.saturating_sub(missing))
        } else {
            before.saturating_sub(spare)
        };
        if now != before {
            state.withheld = now;
            self.share(&mut state);
        }
        now > before
    }

    /// Makes the budgets anew, after a model has gone.
    pub(super) fn settle(&self) {
        self.share(&mut self.state());
    }

    /// Everybody gets what was promised, and the same part of what could be made use of beyond.
    fn share(&self, state: &mut State) {
        let State { rooms, withheld } = state;
        rooms.retain(|room| room.strong_count() > 0);
        let Some(ceiling) = self.ceiling() else { return };
        let all: Vec<Arc<Room>> = rooms.iter().filter_map(Weak::upgrade).collect();
        let promised: usize = all.iter().map(|room| room.least()).sum();
        let wanted = |room: &Arc<Room>| room.wish.most.saturating_sub(room.promised());
        let beyond = all.iter().map(|room| room.wish.position.saturating_mul(wanted(room)));
        let beyond = beyond.fold(0, usize::saturating_add);
        let left = ceiling.saturating_sub(promised + *withheld);
        let part = if beyond <= left { 1.0 } else { left as f64 / beyond as f64 };
        for room in &all {
            let budget = room.promised() + (wanted(room) as f64 * part) as usize;
            room.budget.store(budget, Ordering::Relaxed);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave the list half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    /// Positions of the longest conversation.
    pub(super) fn promised(&self) -> usize {
        self.promised.load(Ordering::Relaxed)
    }

    /// So many positions are held now.
    pub(super) fn holds(&self, positions: usize) {
        self.used.store(positions, Ordering::Relaxed);
    }

    /// Bytes held beyond what was promised.
    fn beyond_promise(&self) -> usize {
        self.used.load(Ordering::Relaxed).saturating_sub(self.promised()) * self.wish.position
    }

    /// Positions that the model's own sequences may have.
    pub(super) fn positions(&self) -> usize {
        let drafting = self.drafting.load(Ordering::Relaxed);
        self.budget.load(Ordering::Relaxed).saturating_sub(drafting).max(self.promised())
    }

    /// Bytes that it has in any case.
    fn least(&self) -> usize {
        let fixed = self.fixed.load(Ordering::Relaxed);
        Wish { fixed, ..self.wish }.bytes(self.promised())
    }

    /// A drafter that held `before` positions wants to hold `now`; false if that is more than what may be beside the longest
    /// conversation.
    pub(super) fn draft(&self, before: usize, now: usize) -> bool {
        let others = self.drafting.load(Ordering::Relaxed) - before;
        let most = self.budget.load(Ordering::Relaxed).saturating_sub(self.promised());
        // Only the device's thread drafts.
        let fits = now <= before || others + now <= most;
        if fits {
            self.drafting.store(others + now, Ordering::Relaxed);
        }
        fits
    }
}

/// Without room for a conversation of so many positions a model is of no use.
const SHORTEST: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn with_ceiling(bytes: usize) -> Ledger {
        let ledger = Ledger::new();
        ledger.set_ceiling(bytes);
        ledger
    }

    const WISH: Wish = Wish { fixed: 100, position: 2, context: 10, most: 1000 };

    #[test]
    fn budgets_fill_the_ceiling_and_never_go_beyond() {
        let ledger = with_ceiling(1000);
        let first = ledger.enter(WISH).unwrap();
        assert_eq!(first.positions(), 450);
        let second = ledger.enter(WISH).unwrap();
        assert_eq!((first.positions(), second.positions()), (200, 200));
        let small = ledger.enter(Wish { most: 10, ..WISH }).unwrap();
        assert_eq!((first.positions(), small.positions()), (170, 10));
        drop(second);
        ledger.settle();
        assert_eq!((first.positions(), small.positions()), (390, 10));
    }

    #[test]
    fn a_promise_is_half_of_what_is_free_and_is_kept() {
        let ledger = with_ceiling(100_000);
        let wish = Wish { fixed: 0, position: 1, context: 80_000, most: 160_000 };
        let first = ledger.enter(wish).unwrap();
        assert_eq!((first.promised(), first.positions()), (50_000, 100_000));
        let second = ledger.enter(wish).unwrap();
        assert_eq!(second.promised(), 25_000);
        assert!(first.positions() >= first.promised() && second.positions() >= 25_000);
        assert!(first.positions() + second.positions() <= 100_000);
    }

    #[test]
    fn who_finds_no_room_is_told_the_numbers() {
        let ledger = with_ceiling(300 << 20);
        let wish = Wish { fixed: 200 << 20, ..WISH };
        let first = ledger.enter(wish).unwrap();
        let refused = ledger.enter(wish).unwrap_err();
        assert!(refused.could_fit());
        let text = refused.to_string();
        assert!(text.starts_with("it needs 201 MiB of memory, and of the 300 MiB"), "{text}");
        assert!(text.contains("100 MiB are free\nhint: unload another model"), "{text}");
        assert!(!ledger.enter(Wish { fixed: 400 << 20, ..WISH }).unwrap_err().could_fit());
        drop(first);
        assert!(ledger.enter(wish).is_ok());
    }

    #[test]
    fn budgets_shrink_while_the_system_is_short_of_memory_and_recover() {
        let ledger = with_ceiling(8000);
        let room = ledger.enter(Wish { most: 100_000, ..WISH }).unwrap();
        assert_eq!(room.positions(), 3950);
        room.holds(1010);
        // Enough is an eighth of the ceiling.
        assert!(!ledger.observe(1500, 0));
        assert_eq!(room.positions(), 3950);
        assert!(ledger.observe(400, 0));
        assert_eq!(room.positions(), 10 + 1000 - 300, "what is held less 600 bytes");
        room.holds(710);
        assert!(!ledger.observe(1500, 0), "neither short nor plenty");
        assert_eq!(room.positions(), 710);
        assert!(!ledger.observe(2300, 0));
        assert_eq!(room.positions(), 710 + 150);
        assert!(ledger.observe(0, 0));
        room.holds(210);
        assert!(ledger.observe(0, 0));
        assert_eq!(room.positions(), 10, "what was promised stays");
        ledger.observe(usize::MAX, 0);
        assert_eq!(room.positions(), 3950);
        room.holds(1010);
        assert!(ledger.observe(2000, 1500));
        assert_eq!(room.positions(), 10 + 1000 - 250, "somebody wants more than there is");
    }

    #[test]
    fn a_model_that_is_heavier_than_its_file_pays_for_it() {
        let ledger = with_ceiling(10_000);
        let wish = Wish { context: 2000, most: 4000, ..WISH };
        let [first, second] = [ledger.enter(wish).unwrap(), ledger.enter(wish).unwrap()];
        assert_eq!((first.promised(), second.promised()), (2000, 1450));
        ledger.weigh(&first, 300).unwrap();
        assert_eq!((first.promised(), second.promised()), (2000, 1450));
        ledger.weigh(&second, 3500).unwrap();
        assert_eq!((first.promised(), second.promised()), (2000, 1100));
        assert!(ledger.weigh(&second, 4000).is_err());
    }

    #[test]
    fn without_a_ceiling_everybody_gets_all() {
        let ledger = Ledger::new();
        let rooms = [ledger.enter(WISH).unwrap(), ledger.enter(WISH).unwrap()];
        assert!(rooms.iter().all(|room| room.positions() == 1000 && room.promised() == 10));
    }

    #[test]
    fn drafts_get_what_lies_beyond_the_promise() {
        let ledger = with_ceiling(1000);
        let room = ledger.enter(WISH).unwrap();
        assert!(room.draft(0, 440) && !room.draft(440, 441) && room.draft(440, 100));
        assert_eq!(room.positions(), 350);
        assert!(!room.draft(0, 341), "beside those of another drafter");
    }
}
