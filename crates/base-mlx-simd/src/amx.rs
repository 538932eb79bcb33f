//! AMX, which Intel's servers have since Sapphire Rapids: registers that are tiles of 16 rows of 64 bytes, and an instruction
//! that multiplies two of them. In assembly, as the compiler's functions for it are not stable.

#[cfg(target_arch = "x86_64")]
pub(crate) use self::here::Amx;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) use self::nowhere::Amx;

/// Rows of a block, and outputs of a panel: two tiles each way are the four that sums have room for beside their factors.
pub(crate) const SIDE: usize = 32;
/// Places that a tile of bfloats has in a row.
pub(crate) const STEP: usize = 32;

/// Thirty-two places of thirty-two rows of x, or of as many outputs of a matrix.
///
/// Of x: row after row. Of a matrix: pair of places after pair, each of all outputs.
pub(crate) type Tile = [[u16; STEP]; SIDE];

/// The higher half of floats' bits, and what is missing from there to the number, as bfloats.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Halves {
    pub(crate) high: Tile,
    pub(crate) low: Tile,
}

/// Sums, `[rows, outputs]`.
#[repr(C, align(64))]
pub(crate) struct Sums(pub(crate) [[f32; SIDE]; SIDE]);

#[cfg(target_arch = "x86_64")]
mod here {
    use std::arch::asm;
    use std::marker::PhantomData;

    use super::{Halves, Sums};

    /// Exists only if the CPU has tiles and products of bfloats, and the system lets this process use them.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Amx(());

    impl Amx {
        /// Asks the system to let this process use tiles, which stays so; its signals' frames are some kilobytes larger then.
        pub(crate) fn detect() -> Option<Self> {
            has_tiles_of_bfloats().then_some(Self(()))
        }

        /// Gives this thread's tiles their shape, which they keep until what is returned is dropped.
        ///
        /// # Safety
        /// The thread has no other [`Tiles`], which would lose their shape with these.
        #[inline(always)]
        pub(crate) unsafe fn begin(self) -> Tiles {
            // All eight of 16 rows of 64 bytes.
            let mut shape = [0_u8; 64];
            shape[0] = 1;
            for tile in 0..8 {
                shape[16 + 2 * tile] = 64;
                shape[48 + tile] = 16;
            }
            // SAFETY: the CPU has the instruction, and this is a shape that it knows. Nothing else uses these registers.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shape, options(nostack, readonly)) };
            Tiles(PhantomData)
        }
    }

    /// A thread's tiles while they have their shape.
    pub(crate) struct Tiles(PhantomData<*const ()>);

    impl Drop for Tiles {
        #[inline(always)]
        fn drop(&mut self) {
            // SAFETY: there are tiles where these are, and whoever wants some next gives them their shape.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }

    impl Tiles {
        /// The products of `x` with `weights`, both of the same places, thirty-two in each: of the high halves, and of each high
        /// half with the other's low one. What is left out is 2^-16 of a product at most.
        #[inline(always)]
        pub(crate) fn products(&self, x: &[Halves], weights: &[Halves], sums: &mut Sums) {
            assert!(x.len() == weights.len() && !x.is_empty(), "as many places of both");
            // SAFETY: the tiles have their shape. All that is read lies in `x` and `weights`, which have as many halves as are
            // counted down, and all that is written in `sums`.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "2:",
                    "tileloadd tmm6, [{w} + {wide}]",
                    "tileloadd tmm4, [{x} + {narrow}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{w} + {wide} + 64]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{x} + {narrow} + 1024]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "tileloadd tmm4, [{x} + {narrow} + 2048]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{x} + {narrow} + 3072]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "tileloadd tmm6, [{w} + {wide} + 2048]",
                    "tileloadd tmm4, [{x} + {narrow}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{w} + {wide} + 2112]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{x} + {narrow} + 1024]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {x}, 4096",
                    "add {w}, 4096",
                    "dec {steps}",
                    "jnz 2b",
                    "tilestored [{sums} + {wide}], tmm0",
                    "tilestored [{sums} + {wide} + 64], tmm1",
                    "tilestored [{sums} + {wide} + 2048], tmm2",
                    "tilestored [{sums} + {wide} + 2112], tmm3",
                    x = inout(reg) x.as_ptr() => _,
                    w = inout(reg) weights.as_ptr() => _,
                    steps = inout(reg) x.len() => _,
                    sums = in(reg) &raw mut *sums,
                    narrow = in(reg) 64_usize,
                    wide = in(reg) 128_usize,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    }

    #[cfg(target_os = "linux")]
    fn has_tiles_of_bfloats() -> bool {
        use std::arch::x86_64::{__cpuid, __cpuid_count};

        const BFLOATS: u32 = 1 << 22;
        const TILES: u32 = 1 << 24;
        /// `ARCH_REQ_XCOMP_PERM`: Linux gives registers of this size to processes that ask for them.
        const ASK: libc::c_long = 0x1023;
        /// `XFEATURE_XTILEDATA`
        const TILE_DATA: libc::c_long = 18;

        let leaf = (__cpuid(0).eax >= 7).then(|| __cpuid_count(7, 0));
        leaf.is_some_and(|leaf| leaf.edx & (BFLOATS | TILES) == BFLOATS | TILES)
            // SAFETY: the call takes these two numbers, touches no memory, and fails where it is not known.
            && unsafe { libc::syscall(libc::SYS_arch_prctl, ASK, TILE_DATA) } == 0
    }

    #[cfg(not(target_os = "linux"))]
    fn has_tiles_of_bfloats() -> bool {
        false
    }
}

/// Other CPUs have none.
#[cfg(not(target_arch = "x86_64"))]
mod nowhere {
    use super::{Halves, Sums};

    #[derive(Clone, Copy, Debug)]
    pub(crate) enum Amx {}

    pub(crate) enum Tiles {}

    impl Amx {
        /// # Safety
        /// Nobody has one to call it with.
        pub(crate) unsafe fn begin(self) -> Tiles {
            match self {}
        }
    }

    impl Tiles {
        pub(crate) fn products(&self, _: &[Halves], _: &[Halves], _: &mut Sums) {
            match *self {}
        }
    }
}

const _: () = assert!(size_of::<Halves>() == 4096 && size_of::<Sums>() == 4096);
