//! What `cargo xtask instructions` runs under callgrind: each hot kernel in turn, on the instruction sets that valgrind has
//! too. Prints their names in the order in which they are counted.

use std::hint::black_box;

use base_mlx_simd::{Isa, Pool};
use support::{HOT, Memory};

#[path = "../benches/support/mod.rs"]
mod support;

fn main() {
    let pool = Pool::new(1);
    for work in HOT {
        let mut ready = work.ready(&pool, Memory::OfOneCall);
        for isa in Isa::all().into_iter().filter(|isa| COUNTED.contains(&isa.name())) {
            // What is done only the first time is not counted.
            (ready.call)(isa);
            counted_call(&mut ready.call, isa);
            println!("{work} {}", isa.name());
        }
    }
}

/// By this name callgrind knows where to count.
#[inline(never)]
fn counted_call(call: &mut dyn FnMut(Isa), isa: Isa) {
    call(isa);
    // The call would otherwise be a jump, and this function over before it.
    black_box(());
}

const COUNTED: [&str; 2] = ["scalar", "avx2"];
