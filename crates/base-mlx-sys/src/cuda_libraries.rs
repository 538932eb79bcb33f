//! CUDA's own libraries from Python packages, where the loader would not look.

use std::path::PathBuf;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// What the wheels' libmlx asks the loader for, but for the driver; CUDA 13's before CUDA 12's.
const SONAMES: [&str; 10] = [
    "libnvrtc.so.13",
    "libcublasLt.so.13",
    "libcufft.so.12",
    "libcusolver.so.12",
    "libnvrtc.so.12",
    "libcublasLt.so.12",
    "libcufft.so.11",
    "libcusolver.so.11",
    "libcudnn.so.9",
    "libnccl.so.2",
];

/// Opens them from the folders `nvidia/*/lib` of each site-packages that `BASE_MLX_CUDA_LIBS` lists. What is not there
/// is left to the loader, which names what it misses.
pub(crate) fn preload() {
    let Some(listed) = std::env::var_os("BASE_MLX_CUDA_LIBS") else { return };
    let folders: Vec<PathBuf> = std::env::split_paths(&listed)
        .filter_map(|packages| std::fs::read_dir(packages.join("nvidia")).ok())
        .flatten()
        .filter_map(|package| Some(package.ok()?.path().join("lib")))
        .collect();
    for soname in SONAMES {
        let files = folders.iter().map(|folder| folder.join(soname));
        for file in files.filter(|file| file.is_file()) {
            // SAFETY: NVIDIA's libraries, which MLX would have loaded itself.
            if let Ok(library) = unsafe { Library::open(Some(file), RTLD_GLOBAL | RTLD_NOW) } {
                std::mem::forget(library);
                break;
            }
        }
    }
}
