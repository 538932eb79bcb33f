//! `<etag>.ranges`: a file that is fetched in several places at once. The content comes first, with holes; behind
//! its end a table says how much of each piece is there. The name is our own, because Hugging Face's tools take
//! whatever is in `<etag>.incomplete` for a beginning, and go on from its end.
//!
//! Content is written before the table says so. A kill in between costs one write, fetched again.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;

/// How much of each piece is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pieces {
    size: u64,
    piece_bytes: u64,
    done: Vec<u64>,
}

impl Pieces {
    /// Makes the file, or goes on with one, whose pieces keep their length. A beginning left at `incomplete` is used.
    pub(super) fn open(
        path: &Path,
        incomplete: &Path,
        size: u64,
        piece_bytes: u64,
    ) -> io::Result<Self> {
        if !path.exists() && incomplete.exists() {
            fs::rename(incomplete, path)?;
        }
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let beginning = match Self::read(&mut file, size)? {
            Some(Here::Pieces(pieces)) => return Ok(pieces),
            Some(beginning) => beginning,
            None => {
                file.set_len(0)?;
                Here::Beginning(0)
            }
        };
        let pieces = beginning.into_pieces(size, piece_bytes);
        // One write, so that the file is never longer than the content without a table behind it.
        file.seek(SeekFrom::Start(size))?;
        file.write_all(&pieces.table())?;
        Ok(pieces)
    }

    /// How many bytes of the content a file holds, whoever is to use them.
    pub(super) fn bytes_here(path: &Path, size: u64) -> u64 {
        let here = File::open(path).and_then(|mut file| Self::read(&mut file, size));
        let here = here.ok().flatten();
        here.map_or(0, |here| here.into_pieces(size, size.max(1)).bytes())
    }

    /// Cuts the table off, and makes what is left last.
    pub(super) fn close(path: &Path, size: u64) -> io::Result<()> {
        let file = File::options().write(true).open(path)?;
        file.set_len(size)?;
        file.sync_all()
    }

    pub(super) fn count(&self) -> usize {
        self.done.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.done.iter().sum()
    }

    pub(super) fn is_whole(&self, index: usize) -> bool {
        let range = self.range(index);
        self.done[index] == range.end - range.start
    }

    /// Where a piece lies in the content.
    pub(super) fn range(&self, index: usize) -> Range<u64> {
        let start = index as u64 * self.piece_bytes;
        start..(start + self.piece_bytes).min(self.size)
    }

    pub(super) fn writer(&self, path: &Path, index: usize) -> io::Result<PieceWriter> {
        let range = self.range(index);
        let file = File::options().write(true).open(path)?;
        let at = range.start + self.done[index];
        let row = self.size + (HEAD_WORDS + index) as u64 * WORD_BYTES;
        Ok(PieceWriter { file, at, range, row })
    }

    /// What a file says of itself, or `None` if it is not of this content.
    fn read(file: &mut File, size: u64) -> io::Result<Option<Here>> {
        let len = file.metadata()?.len();
        if len <= size {
            // A kill left it so: before the table was written, or after it was cut off.
            return Ok(Some(Here::Beginning(len)));
        }
        file.seek(SeekFrom::Start(size))?;
        let mut table = Vec::new();
        file.take(MAX_TABLE_BYTES).read_to_end(&mut table)?;
        let mut words = table
            .chunks_exact(WORD_BYTES as usize)
            .map(|word| u64::from_le_bytes(word.try_into().expect("chunks of this length")));
        let (Some(of_size), Some(piece_bytes)) = (words.next(), words.next()) else {
            return Ok(None);
        };
        let pieces = Self { size, piece_bytes, done: words.collect() };
        let fits = of_size == size
            && piece_bytes > 0
            && pieces.count() as u64 == size.div_ceil(piece_bytes)
            && (0..pieces.count()).all(|index| {
                let range = pieces.range(index);
                pieces.done[index] <= range.end - range.start
            });
        Ok(fits.then_some(Here::Pieces(pieces)))
    }

    fn table(&self) -> Vec<u8> {
        let head = [self.size, self.piece_bytes];
        head.iter().chain(&self.done).flat_map(|word| word.to_le_bytes()).collect()
    }
}

enum Here {
    Beginning(u64),
    Pieces(Pieces),
}

impl Here {
    fn into_pieces(self, size: u64, piece_bytes: u64) -> Pieces {
        match self {
            Self::Pieces(pieces) => pieces,
            Self::Beginning(len) => {
                // A table that would be too long to be read again is not written.
                let piece_bytes = piece_bytes.max(size.div_ceil(MAX_PIECES)).max(1);
                let count = size.div_ceil(piece_bytes);
                let done = |index| len.saturating_sub(index * piece_bytes).min(piece_bytes);
                Pieces { size, piece_bytes, done: (0..count).map(done).collect() }
            }
        }
    }
}

/// Appends to one piece.
pub(super) struct PieceWriter {
    file: File,
    at: u64,
    range: Range<u64>,
    /// Where the table has this piece.
    row: u64,
}

impl PieceWriter {
    /// What is still to come.
    pub(super) fn rest(&self) -> Range<u64> {
        self.at..self.range.end
    }

    pub(super) fn done(&self) -> u64 {
        self.at - self.range.start
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.at))?;
        self.file.write_all(bytes)?;
        self.at += bytes.len() as u64;
        self.file.seek(SeekFrom::Start(self.row))?;
        self.file.write_all(&self.done().to_le_bytes())
    }
}

const WORD_BYTES: u64 = 8;
/// The size of the content and the length of a piece.
const HEAD_WORDS: usize = 2;
const MAX_PIECES: u64 = 1 << 20;
const MAX_TABLE_BYTES: u64 = (MAX_PIECES + HEAD_WORDS as u64) * WORD_BYTES;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_remembered_and_their_length_with_them() {
        let folder = tempfile::tempdir().unwrap();
        let (path, incomplete) = (folder.path().join("x.ranges"), folder.path().join("x"));
        let fresh = Pieces::open(&path, &incomplete, 25, 10).unwrap();
        assert_eq!((fresh.count(), fresh.bytes(), fresh.range(2)), (3, 0, 20..25));
        let mut last = fresh.writer(&path, 2).unwrap();
        last.write(b"last!").unwrap();
        let mut second = fresh.writer(&path, 1).unwrap();
        second.write(b"sec").unwrap();
        assert_eq!(second.rest(), 13..20);
        assert_eq!(Pieces::bytes_here(&path, 25), 8);
        let again = Pieces::open(&path, &incomplete, 25, 7).unwrap();
        assert_eq!(again.done, [0, 3, 5], "cut as it was begun");
        assert!(again.is_whole(2) && !again.is_whole(1));
        Pieces::close(&path, 25).unwrap();
        let content = fs::read(&path).unwrap();
        assert_eq!(&content[10..13], b"sec");
        assert_eq!(&content[20..], b"last!");
    }

    #[test]
    fn a_beginning_without_holes_is_used_and_nonsense_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (path, incomplete) = (folder.path().join("x.ranges"), folder.path().join("x"));
        fs::write(&incomplete, "0123456789abc").unwrap();
        let taken = Pieces::open(&path, &incomplete, 25, 10).unwrap();
        assert_eq!(taken.done, [10, 3, 0]);
        assert!(!incomplete.exists());

        // A kill before the table, or after it was cut off.
        for (len, done) in [(13, [10, 3, 0]), (25, [10, 10, 5])] {
            fs::write(&path, vec![b'x'; len]).unwrap();
            assert_eq!(Pieces::open(&path, &incomplete, 25, 10).unwrap().done, done);
        }
        // Of another size, cut off, and with more of a piece than there is to it.
        let words = |words: &[u64]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>();
        let tables = [words(&[24, 10, 1, 1, 1]), words(&[25, 10, 1]), words(&[25, 10, 1, 1, 6])];
        for table in tables.iter().chain([&vec![0; 40], &vec![1]]) {
            fs::write(&path, [&[b'x'; 25][..], table].concat()).unwrap();
            assert_eq!(Pieces::bytes_here(&path, 25), 0);
            assert_eq!(Pieces::open(&path, &incomplete, 25, 10).unwrap().done, [0, 0, 0]);
        }
    }
}
