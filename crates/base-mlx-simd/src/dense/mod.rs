//! Matrices of plain floats, laid out once so that a product reads them as one stream.
//!
//! Thirty-two outputs side by side are a panel, which has their first values, then their second ones, and so on. So one value
//! of x meets whole vectors of outputs, whose sums need never be added up across lanes. The last panel is filled up with zeros.

mod product;

use std::io;

use half::{bf16, f16};

use crate::floats::{Floats, Value};
use crate::isa::{Isa, Kernel, Lanes, MOST_LANES};
use crate::memory::{Arena, LINE, Lines};
use crate::pool::{Pool, VALUES_IN_PIECE};
use crate::shared::SharedMut;

pub use product::linear;

/// A matrix `[outputs, inner]` of floats, in the type that they were given in and an order of its own.
pub struct Dense {
    outputs: usize,
    inner: usize,
    kind: Kind,
    /// Panel after panel: `[inner, PANEL]` each.
    lines: Lines,
}

#[derive(Clone, Copy)]
enum Kind {
    F32,
    F16,
    BF16,
}

/// So many halves are a line of the cache.
const PANEL: usize = 32;

impl Dense {
    /// Lays `floats` out, `[outputs, inner]`, in memory of `arena`. Fails if the system has no memory left to promise.
    pub fn new(
        pool: &Pool,
        arena: &Arena,
        floats: Floats,
        outputs: usize,
        inner: usize,
    ) -> io::Result<Self> {
        assert!(inner > 0, "an empty matrix");
        assert_eq!(floats.len(), outputs * inner, "a dense matrix [{outputs}, {inner}]");
        let kind = match floats {
            Floats::F32(_) => Kind::F32,
            Floats::F16(_) => Kind::F16,
            Floats::BF16(_) => Kind::BF16,
        };
        let panel_lines = inner * PANEL * kind.size() / LINE;
        let mut lines = arena.lines(outputs.div_ceil(PANEL) * panel_lines)?;
        match floats {
            Floats::F32(bytes) => fill::<4>(pool, bytes.as_chunks().0, inner, &mut lines),
            Floats::F16(bytes) | Floats::BF16(bytes) => {
                fill::<2>(pool, bytes.as_chunks().0, inner, &mut lines);
            }
        }
        Ok(Self { outputs, inner, kind, lines })
    }

    /// `[outputs, inner]`
    pub fn shape(&self) -> [usize; 2] {
        [self.outputs, self.inner]
    }

    /// Of memory.
    pub fn bytes(&self) -> usize {
        self.lines.len() * LINE
    }

    /// Writes the rows whose numbers are given, in that order, as f32: `[rows.len(), inner]`.
    pub fn unpack_rows(&self, pool: &Pool, isa: Isa, rows: &[u32], to: &mut [f32]) {
        let (outputs, inner) = (self.outputs, self.inner);
        assert_eq!(to.len(), rows.len() * inner, "unpack_rows");
        assert!(rows.iter().all(|row| (*row as usize) < outputs), "a row of {outputs}: {rows:?}");
        let to = SharedMut::new(to);
        let rows_in_piece = (VALUES_IN_PIECE / inner).max(1);
        pool.run(rows.len().div_ceil(rows_in_piece), |piece, _| {
            let first = piece * rows_in_piece;
            let rows = &rows[first..rows.len().min(first + rows_in_piece)];
            // SAFETY: each piece has its own rows.
            let to = unsafe { to.part(first * inner..(first + rows.len()) * inner) };
            isa.run(Unpack { matrix: self, rows, to });
        });
    }

    /// How many panels there are.
    fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    fn panel_bytes(&self) -> usize {
        self.inner * PANEL * self.kind.size()
    }

    /// `[inner, PANEL]`
    #[inline(always)]
    fn panel<T: Value>(&self, panel: usize) -> &[[T; PANEL]] {
        assert!(size_of::<T>() == self.kind.size(), "values of another size");
        let lines = self.panel_bytes() / LINE;
        let lines = &self.lines[panel * lines..][..lines];
        // SAFETY: any bytes are a `T`, the lines hold so many, and are aligned to more than a float.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), self.inner) }
    }
}

impl Kind {
    /// Bytes of a value.
    #[inline(always)]
    fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

/// Copies values of `SIZE` bytes, `[outputs, inner]`, to panels of zeros.
fn fill<const SIZE: usize>(pool: &Pool, values: &[[u8; SIZE]], inner: usize, lines: &mut Lines) {
    let panels = (values.len() / inner).div_ceil(PANEL);
    let panel_lines = inner * PANEL * SIZE / LINE;
    let lines = SharedMut::new(lines);
    pool.run(panels, |panel, _| {
        // SAFETY: each piece has its own panel.
        let lines = unsafe { lines.part(panel * panel_lines..(panel + 1) * panel_lines) };
        // SAFETY: a line is its bytes, without padding, and nobody else has these.
        let panel_bytes = unsafe {
            std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LINE / SIZE)
        };
        let (to, _) = panel_bytes.as_chunks_mut::<PANEL>();
        let start = panel * PANEL * inner;
        let rows = &values[start..values.len().min(start + PANEL * inner)];
        // As many places at a time as a row has in a line, so that neither side leaves the nearest cache half used.
        for (number, to) in to.chunks_mut(LINE / SIZE).enumerate() {
            for (lane, row) in rows.chunks_exact(inner).enumerate() {
                for (to, value) in to.iter_mut().zip(&row[number * (LINE / SIZE)..]) {
                    to[lane] = *value;
                }
            }
        }
    });
}

struct Unpack<'a> {
    matrix: &'a Dense,
    rows: &'a [u32],
    to: &'a mut [f32],
}

impl Kernel for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        match self.matrix.kind {
            Kind::F32 => self.rows::<L, f32>(lanes),
            Kind::F16 => self.rows::<L, f16>(lanes),
            Kind::BF16 => self.rows::<L, bf16>(lanes),
        }
    }
}

impl Unpack<'_> {
    #[inline(always)]
    fn rows<L: Lanes, T: Value>(self, lanes: L) {
        let rows = self.to.chunks_exact_mut(self.matrix.inner);
        for (&row, to) in self.rows.iter().zip(rows) {
            let panel = self.matrix.panel::<T>(row as usize / PANEL);
            let lane = row as usize % PANEL;
            for (places, to) in panel.chunks(L::WIDTH).zip(to.chunks_mut(L::WIDTH)) {
                let mut values = [T::default(); MOST_LANES];
                for (value, place) in values.iter_mut().zip(places) {
                    *value = place[lane];
                }
                lanes.store_some(T::load(lanes, &values[..L::WIDTH]), to);
            }
        }
    }
}
