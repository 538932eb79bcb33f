//! Keys and values on disk, so that they outlive their place in memory and the process. They lie there in chunks of
//! [`KV_CHUNK`] positions, each a file under `kv/` that is named after the model and all tokens up to the chunk's end:
//! conversations that begin alike share files, and a longer one adds to a shorter one's. `index.redb` says which there
//! are and when they were used last.
//!
//! Nothing here is more than a cache. A file that is not what its name says is worth one line in the log, and the same
//! positions are computed again.

mod blob;
mod digest;
mod entries;
mod index;
mod key;

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use metrics::{counter, gauge};

use self::entries::Entries;
use self::index::Index;
pub(super) use self::key::Key;
use super::device::Waker;
use super::metrics as names;
use crate::TokenId;
use crate::backend::KV_CHUNK;

/// A folder for keys and values. Clones share it; the files stay when the last one goes.
#[derive(Clone)]
pub struct KvDisk(Arc<Disk>);

/// Why a folder cannot hold keys and values.
#[derive(Debug, thiserror::Error)]
pub enum KvDiskError {
    #[error(
        "the folder {path} for keys and values is in use by another process\n\
         hint: give each process a folder of its own"
    )]
    InUse { path: PathBuf },
    #[error("cannot start a thread for keys and values on disk")]
    Thread(#[source] io::Error),
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

struct Disk {
    shared: Arc<Shared>,
    /// `None` when they are to end.
    threads: Option<Threads>,
    /// Chunks that are to be written or are being written.
    writing: Arc<AtomicUsize>,
}

struct Threads {
    writes: Sender<Order>,
    reads: Sender<Read>,
    joins: [JoinHandle<()>; 2],
}

struct Shared {
    folder: PathBuf,
    /// Most bytes of all files together.
    cap: u64,
    index: Index,
    entries: Mutex<Entries>,
    /// It was said that the cap is less than what is to be written.
    too_small: AtomicBool,
    /// The last thing that was tried has failed, and that was said.
    failing: AtomicBool,
}

/// For the thread that writes.
enum Order {
    Write {
        key: Key,
        depth: u32,
        bytes: Vec<u8>,
        waker: Waker,
    },
    /// A file is not what its name says.
    Forget(Key),
    /// Answers when all orders before it are carried out, and on disk.
    Flush(Sender<()>),
}

/// What was read, and how long that took.
pub(super) struct Chunk {
    pub(super) bytes: Vec<u8>,
    pub(super) took: Duration,
}

/// For the thread that reads.
struct Read {
    keys: Vec<Key>,
    to: SyncSender<Chunk>,
    waker: Waker,
}

impl KvDisk {
    /// Takes a folder, which is created if need be, for at most so many bytes. What another process has left there is used;
    /// what is broken is thrown away.
    pub fn open(folder: &Path, bytes: u64) -> Result<Self, KvDiskError> {
        let (index, rows) = Index::open(folder)?;
        let (entries, lost) = reconcile(folder, rows)?;
        let shared = Arc::new(Shared {
            folder: folder.to_owned(),
            cap: bytes,
            index,
            entries: Mutex::new(entries),
            too_small: AtomicBool::new(false),
            failing: AtomicBool::new(false),
        });
        shared.note(shared.index.change(&lost, &[]), "drop what is not there from");
        shared.make_room(0);
        let writing = Arc::new(AtomicUsize::new(0));
        let (writes, orders) = channel();
        let (reads, wanted) = channel();
        let writer = {
            let (shared, writing) = (Arc::clone(&shared), Arc::clone(&writing));
            move || shared.write_all(&orders, &writing)
        };
        let reader = {
            let (shared, writes) = (Arc::clone(&shared), writes.clone());
            move || shared.read_all(&wanted, &writes)
        };
        let joins = [spawn("kv-disk-write", writer)?, spawn("kv-disk-read", reader)?];
        let threads = Some(Threads { writes, reads, joins });
        Ok(Self(Arc::new(Disk { shared, threads, writing })))
    }

    /// The key of all chunks of the model in these files, whose keys and values are saved as `how` says. It takes as long as
    /// reading the files, the first time; until then the key is not there.
    pub(super) fn model_key(&self, path: &Path, how: String) -> Arc<OnceLock<Key>> {
        let key = Arc::new(OnceLock::new());
        let (disk, path, found) = (self.clone(), path.to_owned(), Arc::clone(&key));
        let digest = move || {
            disk.0.shared.gauge();
            match digest::of_model(&path, &disk.0.shared.index) {
                Ok(digest) => {
                    let _ = found.set(Key::of_model(&digest, &how));
                }
                Err(error) => {
                    tracing::warn!("no keys and values on disk for {}: {error}", path.display());
                }
            }
        };
        // Without a thread for it nothing is ever found.
        if let Err(error) = spawn("kv-disk-digest", digest) {
            tracing::warn!("no keys and values on disk: {error}");
        }
        key
    }

    /// How many of these chunks, which follow each other, are there. They count as used.
    pub(super) fn find(&self, keys: &[Key]) -> usize {
        let mut entries = self.0.shared.entries();
        let there = keys.iter().take_while(|key| entries.contains(key)).count();
        entries.touch(&keys[..there]);
        there
    }

    /// Which of these chunks are not there.
    pub(super) fn missing(&self, keys: &[Key]) -> Vec<usize> {
        let entries = self.0.shared.entries();
        (0..keys.len()).filter(|&chunk| !entries.contains(&keys[chunk])).collect()
    }

    /// Whether a chunk may come to be written: each that waits takes memory.
    pub(super) fn can_write(&self) -> bool {
        self.0.writing.load(Ordering::Acquire) < MOST_WAITING
    }

    /// Writes a chunk, the `depth`th of its sequence, in time; wakes when it is done.
    pub(super) fn write(&self, key: Key, depth: usize, bytes: Vec<u8>, waker: Waker) {
        self.0.writing.fetch_add(1, Ordering::AcqRel);
        self.0.order(Order::Write { key, depth: depth as u32, bytes, waker });
    }

    /// Reads chunks one after the other, and wakes after each. The channel ends after the last one, or early.
    pub(super) fn read(&self, keys: Vec<Key>, waker: Waker) -> Receiver<Chunk> {
        // One is read while another is taken in.
        let (to, chunks) = sync_channel(1);
        let read = Read { keys, to, waker };
        if let Some(threads) = &self.0.threads
            && let Err(lost) = threads.reads.send(read)
        {
            // Whoever waits sees that nothing comes.
            (lost.0.waker)();
        }
        chunks
    }

    /// Waits, but not for longer than this, until everything that was to be written is on disk.
    pub(super) fn flush(&self, longest: Duration) {
        let (done, wait) = channel();
        self.0.order(Order::Flush(done));
        let _ = wait.recv_timeout(longest);
    }
}

impl fmt::Debug for KvDisk {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_tuple("KvDisk").field(&self.0.shared.folder).finish()
    }
}

impl Disk {
    fn order(&self, order: Order) {
        if let Some(threads) = &self.threads {
            let _ = threads.writes.send(order);
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let Some(Threads { writes, reads, joins: [writer, reader] }) = self.threads.take() else {
            return;
        };
        // The reader has orders for the writer.
        drop(reads);
        let _ = reader.join();
        drop(writes);
        let _ = writer.join();
    }
}

impl Shared {
    fn write_all(&self, orders: &Receiver<Order>, writing: &AtomicUsize) {
        for order in orders {
            match order {
                Order::Write { key, depth, bytes, waker } => {
                    self.carefully(|| self.write(key, depth, &bytes));
                    drop(bytes);
                    writing.fetch_sub(1, Ordering::AcqRel);
                    waker();
                }
                Order::Forget(key) => self.carefully(|| {
                    self.entries().remove(&key);
                    self.note(self.index.change(&[key], &[]), "take a chunk out of");
                    blob::remove(&self.folder, &key);
                }),
                Order::Flush(done) => {
                    self.carefully(|| self.persist_uses());
                    let _ = done.send(());
                }
            }
            self.gauge();
        }
        self.carefully(|| self.persist_uses());
    }

    /// The database may panic over damage; the thread must not end for it.
    fn carefully(&self, work: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            self.note(Err::<(), _>("its database is damaged"), "write to");
        }
    }

    fn write(&self, key: Key, depth: u32, bytes: &[u8]) {
        let size = blob::size(bytes);
        if self.entries().contains(&key) || !self.make_room(size) {
            return;
        }
        let written = blob::write(&self.folder, &key, bytes);
        if !self.note(written, "write keys and values into") {
            blob::remove(&self.folder, &key);
            return;
        }
        let mut entries = self.entries();
        entries.insert(key, size, depth);
        let rows = entries.take_touched();
        drop(entries);
        self.note(self.index.change(&[], &rows), "enter a chunk into");
        counter!(names::DISK_WRITES).increment(1);
    }

    /// Drops what was not used for longest until a file of this size fits; false if it never will.
    fn make_room(&self, size: u64) -> bool {
        // The index counts too, and grows with the change.
        let index = (2 * self.index.bytes()).max(SMALLEST_INDEX);
        let cap = self.cap.saturating_sub(index);
        let Some(cap) = cap.checked_sub(size) else {
            if !self.too_small.swap(true, Ordering::Relaxed) {
                let (most, folder) = (self.cap >> 20, self.folder.display());
                tracing::warn!("{folder} may have {most} MB, too few for {} MB", size >> 20);
            }
            return false;
        };
        let mut entries = self.entries();
        // Some more than is needed, so that not every write looks for what is oldest.
        let slack = if entries.bytes() > cap { cap / 32 } else { 0 };
        let dropped = entries.evict_down_to(cap - slack);
        drop(entries);
        if !dropped.is_empty() {
            // A file without an entry is dropped when the folder is opened; an entry without a file costs a failed read.
            self.note(self.index.change(&dropped, &[]), "take chunks out of");
            dropped.iter().for_each(|key| blob::remove(&self.folder, key));
            counter!(names::DISK_EVICTIONS).increment(dropped.len() as u64);
        }
        true
    }

    fn persist_uses(&self) {
        let rows = self.entries().take_touched();
        self.note(self.index.change(&[], &rows), "write to");
    }

    fn read_all(&self, wanted: &Receiver<Read>, writes: &Sender<Order>) {
        for Read { keys, to, waker } in wanted {
            for key in keys {
                // It may have made room for another since.
                let Some(size) = self.entries().size(&key) else { break };
                let began = Instant::now();
                match blob::read(&self.folder, &key, size) {
                    Ok(bytes) => {
                        let took = began.elapsed();
                        let ms = took.as_millis() as u64;
                        tracing::debug!(bytes = bytes.len(), ms, "keys and values read");
                        counter!(names::DISK_READS).increment(1);
                        // Whoever wanted it may have gone.
                        if to.send(Chunk { bytes, took }).is_err() {
                            break;
                        }
                        waker();
                    }
                    Err(error) => {
                        let path = blob::path(&self.folder, &key);
                        tracing::warn!("{} is ignored: {error}", path.display());
                        counter!(names::DISK_FAILURES).increment(1);
                        if error.is_about_content() {
                            let _ = writes.send(Order::Forget(key));
                        }
                        break;
                    }
                }
            }
            drop(to);
            waker();
        }
    }

    /// Says in the log what went wrong; whether nothing did.
    fn note<T, E: fmt::Display>(&self, result: Result<T, E>, action: &str) -> bool {
        if let Err(error) = &result {
            counter!(names::DISK_FAILURES).increment(1);
            // A full disk stays full for a while.
            if !self.failing.swap(true, Ordering::Relaxed) {
                tracing::warn!("cannot {action} {}: {error}", self.folder.display());
            }
        } else {
            self.failing.store(false, Ordering::Relaxed);
        }
        result.is_ok()
    }

    fn gauge(&self) {
        gauge!(names::DISK).set((self.entries().bytes() + self.index.bytes()) as f64);
        gauge!(names::DISK_BUDGET).set(self.cap as f64);
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        // A panic elsewhere cannot leave the list half changed.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Entries whose files are there, and the keys of the others. Files of ours without an entry are removed.
fn reconcile(
    folder: &Path,
    rows: Vec<(Key, entries::Entry)>,
) -> Result<(Entries, Vec<Key>), KvDiskError> {
    let files = blob::list(folder)?;
    let mut entries = Entries::default();
    let mut lost = Vec::new();
    for (key, entry) in rows {
        match files.get(&key) {
            Some(&size) if size == entry.bytes => entries.restore(key, entry),
            found => {
                let path = blob::path(folder, &key);
                let size = found.map_or("no".to_owned(), u64::to_string);
                let expected = entry.bytes;
                tracing::warn!("{}: {size} bytes of {expected}, ignored", path.display());
                lost.push(key);
            }
        }
    }
    for key in files.keys().filter(|key| !entries.contains(key)) {
        blob::remove(folder, key);
    }
    Ok((entries, lost))
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, KvDiskError> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    spawned.map_err(KvDiskError::Thread)
}

/// The keys of the whole chunks of a sequence.
pub(super) fn keys(model: &Key, tokens: &[TokenId]) -> Vec<Key> {
    let mut key = *model;
    let next = |chunk: &[TokenId]| {
        key = key.then(chunk);
        key
    };
    tokens.chunks_exact(KV_CHUNK).map(next).collect()
}

/// Creates a folder that nobody else can read: what people have asked can be read out of keys and values.
fn private_folder(path: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Bytes that are set aside for the index in any case.
const SMALLEST_INDEX: u64 = 1 << 20;
/// Chunks that wait to be written, at most.
const MOST_WAITING: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes chunks of a conversation and waits until they are on disk.
    fn write(disk: &KvDisk, keys: &[Key], bytes: usize) {
        for (depth, key) in keys.iter().enumerate() {
            while !disk.can_write() {
                std::thread::yield_now();
            }
            disk.write(*key, depth, vec![depth as u8; bytes], Arc::new(|| {}));
        }
        disk.flush(Duration::from_secs(10));
    }

    fn read(disk: &KvDisk, keys: &[Key]) -> Vec<Vec<u8>> {
        disk.read(keys.to_vec(), Arc::new(|| {})).iter().map(|chunk| chunk.bytes).collect()
    }

    fn on_disk(folder: &Path) -> u64 {
        let blobs: u64 = blob::list(folder).unwrap().values().sum();
        blobs + std::fs::metadata(folder.join("index.redb")).unwrap().len()
    }

    fn conversation(number: u32, chunks: usize) -> Vec<Key> {
        keys(&Key([3; 32]), &vec![number; chunks * KV_CHUNK + 7])
    }

    #[test]
    fn the_cap_holds_and_the_longest_unused_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let cap = 3 << 20;
        let [a, b, c] = [1, 2, 3].map(|number| conversation(number, 5));
        let disk = KvDisk::open(folder.path(), cap).unwrap();
        write(&disk, &a, 150_000);
        write(&disk, &b, 150_000);
        assert_eq!((disk.find(&b), disk.find(&a)), (5, 5));
        write(&disk, &c, 150_000);
        assert!(on_disk(folder.path()) <= cap, "{}", on_disk(folder.path()));
        assert_eq!((disk.find(&a), disk.find(&c)), (5, 5), "b was not used for longest");
        assert!(disk.find(&b) < 5);
        assert!(disk.missing(&a).is_empty());
        let too_large = conversation(4, 1);
        write(&disk, &too_large, 3 << 20);
        assert_eq!((disk.find(&too_large), disk.find(&a)), (0, 5));
        drop(disk);

        // What was used last is known to the next process, which has less room.
        let disk = KvDisk::open(folder.path(), 2_000_000).unwrap();
        assert!(on_disk(folder.path()) <= 2_000_000);
        assert_eq!((disk.find(&a), disk.find(&c)), (5, 0));
        assert_eq!(read(&disk, &a)[4], vec![4; 150_000]);
    }

    #[test]
    fn a_conversation_is_found_as_far_as_it_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let disk = KvDisk::open(folder.path(), 10 << 20).unwrap();
        let mut tokens = vec![5; 4 * KV_CHUNK];
        let model = Key([3; 32]);
        write(&disk, &keys(&model, &tokens), 100);
        tokens[2 * KV_CHUNK + 9] = 6;
        assert_eq!(disk.find(&keys(&model, &tokens)), 2);
        assert_eq!(disk.missing(&keys(&model, &tokens)), [2, 3]);
        assert_eq!(disk.find(&keys(&Key([4; 32]), &tokens)), 0, "another model's");
    }

    #[test]
    fn a_file_that_is_gone_ends_the_reading_and_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let disk = KvDisk::open(folder.path(), 10 << 20).unwrap();
        let all = conversation(1, 3);
        write(&disk, &all, 100);
        blob::remove(folder.path(), &all[1]);
        assert_eq!(read(&disk, &all), [vec![0; 100]]);
        disk.flush(Duration::from_secs(10));
        assert_eq!(disk.find(&all), 1);
        assert!(matches!(KvDisk::open(folder.path(), 1), Err(KvDiskError::InUse { .. })));
    }

    #[test]
    fn a_model_has_another_key_when_a_file_of_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let model = tempfile::tempdir().unwrap();
        std::fs::write(model.path().join("config.json"), "{}").unwrap();
        std::fs::write(model.path().join("model.safetensors"), "weights").unwrap();
        let disk = KvDisk::open(folder.path(), 10 << 20).unwrap();
        let key = |how: &str| {
            let key = disk.model_key(model.path(), how.to_owned());
            while key.get().is_none() {
                std::thread::yield_now();
            }
            *key.get().unwrap()
        };
        let first = key("f16");
        assert_eq!(key("f16"), first);
        assert_ne!(key("q8_0"), first);
        std::fs::write(model.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
        let second = key("f16");
        assert_ne!(second, first);
        std::fs::write(model.path().join("model.safetensors"), "WEIGHTS").unwrap();
        assert_ne!(key("f16"), second);
    }
}
