//! Matrices of plain floats, laid out once so that a product reads them as one stream.
//!
//! Thirty-two outputs side by side are a panel, which has their first values, then their second ones, and so on. So one value
//! of x meets whole vectors of outputs, whose sums need never be added up across lanes. The last panel is filled up with zeros.
//! A panel of rounded values has pairs of neighbouring ones in their place, and the scales of their runs in front; one of split
//! values has them in the order of AMX's tiles.

mod product;
mod rounded;
mod split;

use std::io;

use half::{bf16, f16};

use self::rounded::{PAIRS, Pair, RoundPanel, runs};
use self::split::{split_panel, steps, unsplit};
use crate::amx::Halves;
use crate::floats::{Floats, Value};
use crate::isa::{Isa, Kernel, Lanes, MOST_LANES};
use crate::memory::{Arena, LINE, Line, Lines};
use crate::pool::{Pool, VALUES_IN_PIECE};
use crate::shared::SharedMut;

pub use product::linear;

/// A matrix `[outputs, inner]` of floats, in the type that they were given in or rounded, and an order of its own.
pub struct Dense {
    outputs: usize,
    inner: usize,
    kind: Kind,
    /// Panel after panel: the scales of each, if there are any, and its `[inner, PANEL]`.
    lines: Lines,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    F32,
    F16,
    BF16,
    Rounded,
    Split,
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
        let kind = match floats {
            Floats::F32(_) => Kind::F32,
            Floats::F16(_) => Kind::F16,
            Floats::BF16(_) => Kind::BF16,
        };
        let mut matrix = Self::zeros(arena, kind, floats, [outputs, inner])?;
        match floats {
            Floats::F32(bytes) => fill::<4>(pool, bytes.as_chunks().0, inner, &mut matrix.lines),
            Floats::F16(bytes) | Floats::BF16(bytes) => {
                fill::<2>(pool, bytes.as_chunks().0, inner, &mut matrix.lines);
            }
        }
        Ok(matrix)
    }

    /// The same rounded to some 16 bits, whose products round x as well, in the form that is the fastest with `isa`, which
    /// products must then be given. They are less exact: each value is off by some ten-thousandth of the root mean square of
    /// those around it. They are faster where [`Isa::rounds_to_gain`].
    pub fn rounded(
        pool: &Pool,
        isa: Isa,
        arena: &Arena,
        floats: Floats,
        outputs: usize,
        inner: usize,
    ) -> io::Result<Self> {
        // Split halves would take twice the memory that they were given in.
        let splits = isa.amx().is_some() && matches!(floats, Floats::F32(_));
        let kind = if splits { Kind::Split } else { Kind::Rounded };
        let mut matrix = Self::zeros(arena, kind, floats, [outputs, inner])?;
        let (panels, panel_lines) = (matrix.panels(), matrix.panel_bytes() / LINE);
        let head_lines = matrix.head_lines();
        let all = SharedMut::new(&mut matrix.lines);
        pool.run(panels, |panel, _| {
            // SAFETY: each piece has its own panel.
            let lines = unsafe { all.part(panel * panel_lines..(panel + 1) * panel_lines) };
            let (head, cells) = lines.split_at_mut(head_lines);
            let outputs = panel * PANEL..outputs.min((panel + 1) * PANEL);
            // SAFETY: halves, pairs and floats are plain numbers.
            unsafe {
                if splits {
                    split_panel(floats, outputs, inner, values_of(cells));
                } else {
                    let (scales, cells) = (values_of(head), values_of(cells));
                    isa.run(RoundPanel { floats, outputs, inner, cells, scales });
                }
            }
        });
        Ok(matrix)
    }

    /// With room for `floats`, `[outputs, inner]`, in the form of `kind`.
    fn zeros(
        arena: &Arena,
        kind: Kind,
        floats: Floats,
        [outputs, inner]: [usize; 2],
    ) -> io::Result<Self> {
        assert!(inner > 0, "an empty matrix");
        assert_eq!(floats.len(), outputs * inner, "a dense matrix [{outputs}, {inner}]");
        let empty = Self { outputs, inner, kind, lines: arena.lines(0)? };
        let lines = arena.lines(empty.panels() * empty.panel_bytes() / LINE)?;
        Ok(Self { lines, ..empty })
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
        self.depth() * PANEL * self.kind.size() + self.head_lines() * LINE
    }

    /// How many cells of a panel lie behind each other.
    fn depth(&self) -> usize {
        match self.kind {
            Kind::Rounded => self.inner.div_ceil(2),
            Kind::Split => steps(self.inner),
            Kind::F32 | Kind::F16 | Kind::BF16 => self.inner,
        }
    }

    fn head_lines(&self) -> usize {
        match self.kind {
            Kind::Rounded => runs(self.inner) * CELL_LINES,
            Kind::F32 | Kind::F16 | Kind::BF16 | Kind::Split => 0,
        }
    }

    /// `[depth, PANEL]`
    #[inline(always)]
    fn panel<T: Copy>(&self, panel: usize) -> &[[T; PANEL]] {
        assert!(size_of::<T>() == self.kind.size(), "values of another size");
        let lines = &self.panel_lines(panel)[self.head_lines()..];
        // SAFETY: any bytes are a `T`, the lines hold so many, and are aligned to more than a float.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), self.depth()) }
    }

    /// `[depth]`
    #[inline(always)]
    fn halves(&self, panel: usize) -> &[Halves] {
        assert!(self.kind == Kind::Split, "values of another kind");
        let lines = self.panel_lines(panel);
        // SAFETY: any bytes are halves, the lines hold so many, and are aligned as they are.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), self.depth()) }
    }

    /// Of its runs; none where nothing is rounded.
    #[inline(always)]
    fn scales(&self, panel: usize) -> &[[f32; PANEL]] {
        let lines = &self.panel_lines(panel)[..self.head_lines()];
        // SAFETY: any bytes are floats, and a line is aligned to more.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() / CELL_LINES) }
    }

    #[inline(always)]
    fn panel_lines(&self, panel: usize) -> &[Line] {
        let lines = self.panel_bytes() / LINE;
        &self.lines[panel * lines..][..lines]
    }
}

impl Kind {
    /// Bytes of a cell, what a panel has for an output.
    #[inline(always)]
    fn size(self) -> usize {
        match self {
            Self::Split => size_of::<Halves>() / PANEL,
            Self::F32 => size_of::<f32>(),
            Self::Rounded => size_of::<Pair>(),
            Self::F16 | Self::BF16 => size_of::<f16>(),
        }
    }
}

/// # Safety
/// Any bytes are a `T`, of which a line holds a whole number, or the other way round.
unsafe fn values_of<T>(lines: &mut [Line]) -> &mut [T] {
    // SAFETY: a line is bytes without padding, and the caller's word is that any are such values.
    let (before, values, behind) = unsafe { lines.align_to_mut() };
    assert!(before.is_empty() && behind.is_empty(), "lines are aligned, and hold whole values");
    values
}

/// Lines of as many floats, or pairs, as there are outputs in a panel.
const CELL_LINES: usize = PANEL * size_of::<f32>() / LINE;

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
            Kind::Rounded => self.rounded(),
            Kind::Split => self.split(),
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

    #[inline(always)]
    fn rounded(self) {
        let rows = self.to.chunks_exact_mut(self.matrix.inner);
        for (&row, to) in self.rows.iter().zip(rows) {
            let panel = row as usize / PANEL;
            let (cells, lane) = (self.matrix.panel::<Pair>(panel), row as usize % PANEL);
            for (run, scales) in self.matrix.scales(panel).iter().enumerate() {
                let cells = cells[run * PAIRS..].iter().take(PAIRS);
                let to = to[run * 2 * PAIRS..].chunks_mut(2);
                for (to, cell) in to.zip(cells) {
                    to.iter_mut().zip(cell[lane]).for_each(|(to, value)| {
                        *to = scales[lane] * f32::from(value);
                    });
                }
            }
        }
    }

    #[inline(always)]
    fn split(self) {
        let rows = self.to.chunks_exact_mut(self.matrix.inner);
        for (&row, to) in self.rows.iter().zip(rows) {
            let panel = row as usize / PANEL;
            unsplit(self.matrix.halves(panel), row as usize % PANEL, to);
        }
    }
}
