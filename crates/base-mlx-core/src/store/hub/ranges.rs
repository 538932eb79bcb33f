use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread;

use reqwest::StatusCode;

use super::super::StoreError;
use super::super::digest::Hasher;
use super::download::{Download, ENOUGH_BYTES};
use super::http::{Failure, Retry};
use super::pieces::{PieceWriter, Pieces};

/// Fetches a file in pieces, several at once. `None` if there are no pieces to be had, only the whole.
pub(super) fn run(
    download: &Download,
    hasher: Hasher,
    incomplete: &Path,
) -> Result<Option<PathBuf>, StoreError> {
    let (size, options) = (download.metadata.size, download.pull.options);
    let path = download.pull.cache.ranges(&download.metadata.etag);
    let pieces = Pieces::open(&path, incomplete, size, options.hub_range_bytes)
        .map_err(StoreError::io("write", &path))?;
    download.share.set(pieces.bytes());
    let transfer = Transfer::new(download, &path, &pieces);
    let found = transfer.run(hasher, options.hub_connections);
    match transfer.end() {
        None => {
            download.check_digest(&path, found)?;
            Pieces::close(&path, size).map_err(StoreError::io("write", &path))?;
            Ok(Some(path))
        }
        Some(End::OnlyWhole) => {
            fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
            Ok(None)
        }
        Some(End::Failed(error)) => {
            if let StoreError::Corrupt { .. } = error {
                let _ = fs::remove_file(&path);
            }
            Err(error)
        }
    }
}

struct Transfer<'a> {
    download: &'a Download<'a>,
    path: &'a Path,
    pieces: &'a Pieces,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    todo: VecDeque<usize>,
    is_whole: Vec<bool>,
    threads: usize,
    end: Option<End>,
}

/// Why it ends before all pieces are there.
enum End {
    OnlyWhole,
    Failed(StoreError),
}

/// What a request for a part of the content brought.
enum Came {
    Part,
    OnlyWhole,
}

impl<'a> Transfer<'a> {
    fn new(download: &'a Download, path: &'a Path, pieces: &'a Pieces) -> Self {
        let is_whole: Vec<_> = (0..pieces.count()).map(|index| pieces.is_whole(index)).collect();
        let todo = (0..pieces.count()).filter(|&index| !is_whole[index]).collect();
        let state = Mutex::new(State { todo, is_whole, threads: 1, end: None });
        Self { download, path, pieces, state, changed: Condvar::new() }
    }

    /// Returns the hash of the content, if that comes to its end.
    fn run(&self, hasher: Hasher, connections: usize) -> String {
        let more = connections.min(self.state().todo.len()).saturating_sub(1);
        thread::scope(|scope| {
            // The first answer tells whether there are pieces at all; the others ask after it.
            scope.spawn(move || {
                self.work(|| {
                    self.state().threads += more;
                    (0..more).for_each(|_| drop(scope.spawn(|| self.work(|| {}))));
                });
            });
            self.follow(hasher).unwrap_or_else(|error| {
                self.give_up(End::Failed(StoreError::io("read", self.path)(error)));
                String::new()
            })
        })
    }

    fn end(self) -> Option<End> {
        self.state.into_inner().expect(NO_PANIC).end
    }

    /// Piece after piece, until there are none or somebody gives up. Calls `then` after the first answer.
    fn work(&self, then: impl FnOnce()) {
        let _working = Working(self);
        let mut then = Some(then);
        let mut on_answer = || {
            if let Some(then) = then.take() {
                then();
            }
        };
        while let Some(index) = self.next() {
            match self.fetch(index, &mut on_answer) {
                Ok(()) => self.state().is_whole[index] = true,
                Err(end) => return self.give_up(end),
            }
            self.changed.notify_all();
        }
    }

    fn next(&self) -> Option<usize> {
        let mut state = self.state();
        if state.end.is_some() { None } else { state.todo.pop_front() }
    }

    fn give_up(&self, end: End) {
        self.state().end.get_or_insert(end);
    }

    fn fetch(&self, index: usize, on_answer: &mut dyn FnMut()) -> Result<(), End> {
        let writer = self.pieces.writer(self.path, index);
        let mut writer =
            writer.map_err(|error| End::Failed(StoreError::io("write", self.path)(error)))?;
        let hub = self.download.pull.hub;
        let has_ended = || self.state().end.is_some();
        let mut patience = hub.patience();
        let mut renewed_at = writer.done();
        while !writer.rest().is_empty() {
            let came = self.attempt(&mut writer, on_answer);
            if writer.done() >= renewed_at + ENOUGH_BYTES {
                renewed_at = writer.done();
                patience.renew();
            }
            match came {
                Ok(Came::Part) => {}
                Err(failure) => patience.wait(failure, has_ended).map_err(End::Failed)?,
                Ok(Came::OnlyWhole) => {
                    // Where others knew parts, this one may be an exception.
                    let error = hub.nonsense("it gives no parts of a file".to_owned());
                    let again = Failure { error, retry: Retry::Soon };
                    if self.download.share.here() == 0 {
                        return Err(End::OnlyWhole);
                    }
                    if let Err(error) = patience.wait(again, has_ended) {
                        // What has been fetched is only given up where nothing else has failed.
                        let is_in_vain = hub.lanes.has_failed() || has_ended();
                        return Err(if is_in_vain { End::Failed(error) } else { End::OnlyWhole });
                    }
                }
            }
        }
        Ok(())
    }

    /// One request: from where the piece ends to wherever it gets.
    fn attempt(
        &self,
        writer: &mut PieceWriter,
        on_answer: &mut dyn FnMut(),
    ) -> Result<Came, Failure> {
        let (download, hub) = (self.download, self.download.pull.hub);
        let wanted = writer.rest();
        let mut answer = download.request(Some(&format!("{}-{}", wanted.start, wanted.end - 1)))?;
        match answer.response.status() {
            StatusCode::PARTIAL_CONTENT => download.check_range(&answer, &wanted)?,
            StatusCode::OK | StatusCode::RANGE_NOT_SATISFIABLE => return Ok(Came::OnlyWhole),
            status => {
                let error = hub.nonsense(format!("an unexpected status {}", status.as_u16()));
                return Err(Failure { error, retry: Retry::Soon });
            }
        }
        on_answer();
        let mut buffer = vec![0; 1 << 18];
        while !hub.lanes.has_failed() && self.state().end.is_none() {
            let rest = writer.rest();
            let count = hub.read(&mut answer, &mut buffer)?;
            match count as u64 {
                0 if rest.is_empty() => return Ok(Came::Part),
                0 => {
                    let (file, at) = (&download.file.path, rest.start);
                    let what = format!("{file} ends at {at}, in a part up to {}", wanted.end);
                    return Err(Failure { error: hub.nonsense(what), retry: Retry::Soon });
                }
                count if count > rest.end - rest.start => {
                    let expected = format!("{} bytes", wanted.end - wanted.start);
                    return Err(download.corrupt("a part", expected, "more".to_owned()).into());
                }
                _ => {}
            }
            let written = writer.write(&buffer[..count]);
            written.map_err(StoreError::io("write", self.path))?;
            download.share.advance(count as u64);
        }
        Err(hub.in_vain())
    }

    /// Hashes the content as far as it is there without a hole, while the rest is on its way.
    fn follow(&self, mut hasher: Hasher) -> io::Result<String> {
        let mut file = File::open(self.path)?;
        for index in 0..self.pieces.count() {
            let waits = |state: &mut State| !state.is_whole[index] && state.threads > 0;
            let state = self.changed.wait_while(self.state(), waits).expect(NO_PANIC);
            if !state.is_whole[index] {
                return Ok(String::new());
            }
            drop(state);
            let range = self.pieces.range(index);
            file.seek(SeekFrom::Start(range.start))?;
            hasher.read(Read::by_ref(&mut file).take(range.end - range.start))?;
        }
        Ok(hasher.finish())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(NO_PANIC)
    }
}

/// A thread that is at work. Also one that panics is at an end of it.
struct Working<'a>(&'a Transfer<'a>);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.state().threads -= 1;
        self.0.changed.notify_all();
    }
}

const NO_PANIC: &str = "nothing panics under this lock";
