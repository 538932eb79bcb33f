//! Own CUDA kernels: which there are, how they are compiled and kept, and how each is launched.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use base_mlx_sys::{self as mlx, Array, CudaFunction, CudaLaunch, Dtype};
use sha2::{Digest, Sha256};

use super::device::{built, locked};
use crate::backend::LayerSpec;

/// The kernels of the process, each compiled when it is first launched.
pub(super) struct Kernels {
    functions: Mutex<HashMap<Kernel, Loaded>>,
    /// Where machine code is kept between runs.
    folder: Option<PathBuf>,
    /// What machine code depends on beside its source.
    machine: String,
    /// Where the compiler finds CUDA's headers.
    includes: Vec<String>,
}

/// A kernel on the device, and what the compiler has found of it.
#[derive(Clone, Copy)]
struct Loaded {
    function: CudaFunction,
    /// Of a product only.
    facts: Option<Facts>,
}

/// Constants of `Project` in `cuda/project.cuh`; of `ProjectMany` in `cuda/many.cuh` its grid, as items of one team.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Facts {
    threads: u32,
    dynamic_bytes: u32,
    items: u32,
    teams: u32,
}

/// A kernel with all that it is compiled for. Sizes are compiled in: the compiler unrolls what it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kernel {
    Project(Project),
    Place { shape: Heads, rotary: usize, head_norm_eps: Option<u32>, factor: u32, keep: bool },
    Attend { shape: Heads, scale: u32, in_parts: bool, warps: u32 },
    Combine { dtype: Float, heads: usize, head_dim: usize, parts: usize },
    Gather { shape: Heads },
    Copy,
    Sample { dtype: Float, vocab_size: usize, padded: usize },
}

/// A product with one to three matrices, its norm before and its sum after; see `cuda/project.cuh` and `cuda/many.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Project {
    pub(super) dtype: Float,
    /// Most rows: a product of fewer is computed as if there were more.
    pub(super) rows: usize,
    pub(super) inner: usize,
    /// 16 is dense.
    pub(super) bits: u32,
    pub(super) group_size: usize,
    pub(super) outputs: [usize; 3],
    /// The norm's, as bits, if there is one.
    pub(super) norm_eps: Option<u32>,
    pub(super) bias: bool,
    pub(super) epilogue: Epilogue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Epilogue {
    None,
    Add,
    Swiglu,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Heads {
    pub(super) dtype: Float,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

/// A type of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Float {
    F32,
    F16,
    BF16,
}

impl Float {
    pub(super) fn of(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::BF16,
            other => panic!("activations of {other:?}"),
        }
    }

    pub(super) fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::BF16 => Dtype::BF16,
        }
    }

    fn cuda(self) -> &'static str {
        match self {
            Self::F32 => "float",
            Self::F16 => "__half",
            Self::BF16 => "__nv_bfloat16",
        }
    }
}

impl Kernels {
    /// `machine` names the device and its software. `None`, and a word in the log, where nothing can be compiled.
    pub(super) fn new(folder: Option<PathBuf>, machine: String) -> Option<Self> {
        let includes = includes();
        if includes.is_empty() {
            tracing::warn!(
                "no own kernels: found no cuda_fp16.h\nhint: name CUDA's folder in CUDA_HOME, or a site-packages with \
                 nvidia-cuda-runtime in BASE_MLX_CUDA_LIBS"
            );
            return None;
        }
        let kernels = Self { functions: Mutex::default(), folder, machine, includes };
        // The smallest shows whether the compiler can read these headers: later a whole step would fail of it.
        match kernels.tried(Kernel::Copy) {
            Ok(()) => Some(kernels),
            Err(error) => {
                tracing::warn!(
                    "no own kernels: {error}\nhint: name the folder of the CUDA that MLX was built with in CUDA_HOME"
                );
                None
            }
        }
    }

    fn tried(&self, kernel: Kernel) -> mlx::Result<()> {
        // The compiler asks for the device of the thread, which has one when MLX has first computed on it.
        mlx::eval(&[&Array::arange(0.0, 1.0, 1.0, Dtype::F32)?])?;
        let loaded = self.load(kernel)?;
        locked(&self.functions).insert(kernel, loaded);
        Ok(())
    }

    /// Whether attention's kernels know these layers.
    pub(super) fn can_attend(&self, layers: &[LayerSpec]) -> bool {
        layers.iter().all(|layer| layer.head_dim % 16 == 0 && layer.head_dim <= 256)
    }

    /// # Safety
    /// `inputs` and `launch` are what the kernel's entry in `cuda/launch.cuh` takes, of the sizes in `kernel`.
    #[allow(unsafe_code)]
    pub(super) unsafe fn launch<const OUTPUTS: usize>(
        &self,
        kernel: Kernel,
        inputs: &[&Array],
        launch: CudaLaunch<OUTPUTS>,
    ) -> [Array; OUTPUTS] {
        let Loaded { function, .. } = self.loaded(kernel);
        // SAFETY: the caller's.
        built(unsafe { function.launch(inputs, launch) })
    }

    /// Words in the device's own memory.
    pub(super) fn upload(&self, words: &[u32], shape: &[usize]) -> Array {
        let pinned = built(Array::cuda_pinned(bytemuck::cast_slice(words), shape, Dtype::U32));
        let launch = CudaLaunch {
            grid: [(words.len() as u32).div_ceil(256).min(MULTIPROCESSORS), 1, 1],
            block: [256, 1, 1],
            cluster: 1,
            shared_memory: 0,
            addresses: &[],
            numbers: &[words.len() as u32],
            outputs: [(shape, Dtype::U32)],
        };
        #[allow(unsafe_code)]
        // SAFETY: as `launch_copy` wants them.
        let [copy] = unsafe { self.launch(Kernel::Copy, &[&pinned], launch) };
        copy
    }

    /// A product of so many rows, `[rows, out]`.
    ///
    /// # Safety
    /// `inputs` and `addresses` are what `launch_project` takes, of the sizes in `project`.
    #[allow(unsafe_code)]
    pub(super) unsafe fn project(
        &self,
        project: Project,
        inputs: [&Array; 2],
        addresses: &[u64],
        rows: usize,
    ) -> Array {
        let Loaded { function, facts } = self.loaded(Kernel::Project(project));
        let Facts { threads, dynamic_bytes, items, teams } =
            facts.expect("a product's entry is named after them");
        let (blocks, cluster) = match project.split() {
            0 => (items.div_ceil(teams).min(MULTIPROCESSORS), 1),
            split => (items, split as u32),
        };
        let launch = CudaLaunch {
            grid: [blocks, 1, 1],
            block: [threads, 1, 1],
            cluster,
            shared_memory: dynamic_bytes,
            addresses,
            numbers: &[rows as u32],
            outputs: [(&[rows, project.out()][..], project.dtype.dtype())],
        };
        // SAFETY: the caller's.
        let [product] = built(unsafe { function.launch(&inputs, launch) });
        product
    }

    fn loaded(&self, kernel: Kernel) -> Loaded {
        *locked(&self.functions).entry(kernel).or_insert_with(|| built(self.load(kernel)))
    }

    fn load(&self, kernel: Kernel) -> mlx::Result<Loaded> {
        let (source, expression) = (SOURCE, kernel.expression());
        let mut key = Sha256::new();
        for text in [source, &expression, &self.machine] {
            key.update(text);
            key.update([0]);
        }
        let key: String = key.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        // What was kept may be damaged: then it is made again.
        if let Some((code, name)) = self.kept(&key)
            && let Ok(loaded) = self.load_code(kernel, &code, &name)
        {
            return Ok(loaded);
        }
        let includes: Vec<&str> = self.includes.iter().map(String::as_str).collect();
        let (code, name) = CudaFunction::compile(source, &expression, &includes)?;
        self.keep(&key, &code, &name);
        self.load_code(kernel, &code, &name)
    }

    fn load_code(&self, kernel: Kernel, code: &[u8], name: &str) -> mlx::Result<Loaded> {
        let facts = match kernel {
            Kernel::Project(_) => Some(Facts::of(name).ok_or_else(|| {
                mlx::Error::Mlx(format!("the kernel's name has no numbers: {name}"))
            })?),
            _ => None,
        };
        let shared_memory = facts.map_or(0, |facts| facts.dynamic_bytes);
        #[allow(unsafe_code)]
        // SAFETY: made for this device, now or in an earlier run whose key was the same, and kept in the user's folder.
        let function = unsafe { CudaFunction::load(code, name, shared_memory) }?;
        Ok(Loaded { function, facts })
    }

    fn kept(&self, key: &str) -> Option<(Vec<u8>, String)> {
        let folder = self.folder.as_ref()?;
        let name = fs::read_to_string(folder.join(format!("{key}.name"))).ok()?;
        let (length, name) = name.split_once(' ')?;
        let code = fs::read(folder.join(format!("{key}.cubin"))).ok()?;
        // The driver would read on beyond the end of code that is cut short.
        (code.len().to_string() == length).then(|| (code, name.to_owned()))
    }

    /// What cannot be kept is compiled again the next time, no more.
    fn keep(&self, key: &str, code: &[u8], name: &str) {
        let Some(folder) = &self.folder else { return };
        let write = |ending: &str, bytes: &[u8]| {
            let partial = folder.join(format!(".{key}.{ending}.{}", std::process::id()));
            fs::write(&partial, bytes)?;
            fs::rename(&partial, folder.join(format!("{key}.{ending}")))
        };
        // The name last: without it the code is not looked at.
        let kept = fs::create_dir_all(folder)
            .and_then(|()| write("cubin", code))
            .and_then(|()| write("name", format!("{} {name}", code.len()).as_bytes()));
        if let Err(error) = kept {
            tracing::debug!("cannot keep a kernel in {}: {error}", folder.display());
        }
    }
}

impl Facts {
    /// The last four numbers in the entry's mangled name, where a template's number n is `LinE`.
    fn of(name: &str) -> Option<Self> {
        let numbers =
            name.split("Li").skip(1).filter_map(|rest| rest.split('E').next()?.parse().ok());
        let numbers: Vec<u32> = numbers.collect();
        let &[.., threads, dynamic_bytes, items, teams] = &numbers[..] else { return None };
        Some(Self { threads, dynamic_bytes, items, teams })
    }
}

impl Kernel {
    /// The entry's name with its template arguments.
    fn expression(self) -> String {
        let (entry, dtype, arguments): (&str, Float, Vec<i64>) = match self {
            Self::Project(project) => {
                let Project {
                    rows,
                    inner,
                    bits,
                    group_size,
                    outputs,
                    norm_eps,
                    bias,
                    epilogue,
                    ..
                } = project;
                let split = project.split();
                let [out0, out1, out2] = outputs.map(|out| out as i64);
                let sizes = [
                    rows as i64,
                    inner as i64,
                    i64::from(bits),
                    group_size as i64,
                    out0,
                    out1,
                    out2,
                ];
                let end = [i64::from(bias), epilogue as i64];
                if split > 0 {
                    let arguments = [&sizes[..], &end, &[split as i64]].concat();
                    let arguments = listed(project.dtype, &arguments);
                    let plan = format!("base_mlx::ProjectMany<{arguments}>");
                    return format!(
                        "base_mlx::launch_project_many<{arguments}, {plan}::THREADS, {plan}::DYNAMIC_BYTES, \
                         {plan}::GRID, 1>"
                    );
                }
                let Tiling { warps, team, depth } = project.tiling();
                let norm = [i64::from(norm_eps.is_some()), bits_of(norm_eps.unwrap_or(0))];
                let tiling = [i64::from(warps), i64::from(team), i64::from(depth)];
                let arguments = [&sizes[..], &norm, &end, &tiling].concat();
                let arguments = listed(project.dtype, &arguments);
                let plan = format!("base_mlx::Project<{arguments}>");
                let facts = ["THREADS", "DYNAMIC_BYTES", "ITEMS", "TEAMS"]
                    .map(|fact| format!("{plan}::{fact}"))
                    .join(", ");
                return format!("base_mlx::launch_project<{arguments}, {facts}>");
            }
            Self::Place { shape, rotary, head_norm_eps, factor, keep } => {
                let [heads, kv_heads, head_dim] = shape.sizes();
                let arguments = vec![
                    heads,
                    kv_heads,
                    head_dim,
                    rotary as i64,
                    i64::from(head_norm_eps.is_some()),
                    bits_of(head_norm_eps.unwrap_or(0)),
                    bits_of(factor),
                    i64::from(keep),
                    i64::from(PLACE_WARPS),
                ];
                ("launch_place", shape.dtype, arguments)
            }
            Self::Attend { shape, scale, in_parts, warps } => {
                let [heads, kv_heads, head_dim] = shape.sizes();
                let entry = if in_parts { "launch_attend_in_parts" } else { "launch_attend" };
                let arguments = vec![heads, kv_heads, head_dim, bits_of(scale), i64::from(warps)];
                (entry, shape.dtype, arguments)
            }
            Self::Combine { dtype, heads, head_dim, parts } => {
                ("launch_combine", dtype, vec![heads as i64, head_dim as i64, parts as i64])
            }
            Self::Gather { shape } => {
                let [_, kv_heads, head_dim] = shape.sizes();
                ("launch_gather", shape.dtype, vec![kv_heads, head_dim])
            }
            Self::Copy => return "base_mlx::launch_copy".to_owned(),
            Self::Sample { dtype, vocab_size, padded } => {
                ("launch_sample", dtype, vec![vocab_size as i64, padded as i64])
            }
        };
        format!("base_mlx::{entry}<{}>", listed(dtype, &arguments))
    }
}

/// Template arguments: a type, then numbers.
fn listed(dtype: Float, numbers: &[i64]) -> String {
    let numbers = numbers.iter().map(i64::to_string);
    let all: Vec<String> = std::iter::once(dtype.cuda().to_owned()).chain(numbers).collect();
    all.join(", ")
}

/// How a product is cut: warps of a block, warps that share a tile's input, and loads under way (0: by the copy engine).
/// Each multiprocessor has one block.
#[derive(Clone, Copy)]
struct Tiling {
    warps: u32,
    team: u32,
    depth: u32,
}

impl Project {
    pub(super) fn out(&self) -> usize {
        match self.epilogue {
            Epilogue::Swiglu => self.outputs[0],
            _ => self.outputs.iter().sum(),
        }
    }

    /// So many blocks of the kernel of many rows share their outputs and split the input; 0: the kernel of few rows.
    fn split(&self) -> usize {
        if self.bits == 16 || self.rows <= FEW_ROWS {
            return 0;
        }
        let blocks = match self.epilogue {
            Epilogue::Swiglu => self.outputs[0].div_ceil(64),
            _ => self.tiles().div_ceil(8),
        };
        // A block takes 512 bits of each row at once, and should have two of them, to have one under way.
        let most = (self.inner * self.bits as usize / 512 / 2).clamp(1, MOST_SPLIT);
        let mut split = 1;
        while split * 2 <= most && blocks * split < ENOUGH_BLOCKS {
            split *= 2;
        }
        split
    }

    /// Of 16 outputs.
    fn tiles(&self) -> usize {
        self.outputs.iter().map(|out| out.div_ceil(16)).sum()
    }

    /// Measured on an H100 with the products of Qwen3-4B, 4 bits, group 64; other sizes take what the nearest did best.
    fn tiling(&self) -> Tiling {
        let of = |warps, team, depth| Tiling { warps, team, depth };
        let gated = self.epilogue == Epilogue::Swiglu;
        let long = self.inner >= 8192;
        // So few outputs that each multiprocessor gets one tile or two: many warps then share a tile's input.
        let narrow = self.out() <= 4096;
        match (self.bits, self.rows) {
            (16, _) => of(16, 8, 4),
            (_, 5..) if gated => of(8, 4, 3),
            (_, 5..) if long => of(16, 16, 0),
            (_, 5..) => of(16, 8, 0),
            _ if gated => of(12, 4, 0),
            _ if long => of(20, 10, 0),
            _ if narrow => of(16, 8, 0),
            _ if self.out() > 32_768 => of(16, 4, 0),
            _ => of(12, 4, 0),
        }
    }

    /// Whether the kernel can have the norm too: the normed rows must fit into shared memory.
    pub(super) fn can_norm(&self) -> bool {
        self.split() == 0 && self.rows * (self.inner * 2 + 320) < STAGED_BYTES / 2
    }
}

impl Heads {
    fn sizes(self) -> [i64; 3] {
        [self.heads as i64, self.kv_heads as i64, self.head_dim as i64]
    }
}

/// An f32's bits as the compiler's int.
fn bits_of(float: u32) -> i64 {
    i64::from(float as i32)
}

/// The compiler's options for the folders of CUDA's headers. Packages first, as for the compiler itself, which may not be
/// able to read those of another version.
fn includes() -> Vec<String> {
    let named = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os);
    let homes = named.map(PathBuf::from).chain([PathBuf::from("/usr/local/cuda")]);
    let listed = std::env::var_os("BASE_MLX_CUDA_LIBS").unwrap_or_default();
    let packages = std::env::split_paths(&listed)
        .flat_map(|site| ["cu13", "cuda_runtime"].map(|name| site.join("nvidia").join(name)));
    let folders = packages.chain(homes).map(|home| home.join("include"));
    let found = folders.filter(|folder| folder.join("cuda_fp16.h").is_file());
    found.map(|folder| format!("--include-path={}", folder.display())).collect()
}

/// What MLX and the device are, for the key of kept code.
pub(super) fn machine(device: mlx::Device) -> String {
    let info = |key| mlx::device_info(device, key).unwrap_or_default();
    format!("{} {} {}", mlx::version(), info("architecture"), info("device_name"))
}

/// All kernels: a compiler that reads what it does not need loses less than what splitting would cost the reader.
const SOURCE: &str = concat!(
    include_str!("cuda/scalar.cuh"),
    include_str!("cuda/cache.cuh"),
    include_str!("cuda/project.cuh"),
    include_str!("cuda/many.cuh"),
    include_str!("cuda/place.cuh"),
    include_str!("cuda/attend.cuh"),
    include_str!("cuda/sample.cuh"),
    include_str!("cuda/launch.cuh"),
);
pub(super) const PLACE_WARPS: u32 = 4;
/// Above it quantised weights are multiplied by the kernel of many rows. Measured on an H100, 9728×2560 twice, 4 bits, in
/// µs: few 32, 72 at 16 and 32 rows, many 28, 38, and 66 at 64.
const FEW_ROWS: usize = 8;
/// Its blocks split the input until they are so many, but not in more parts than a cluster can have blocks on any device.
const ENOUGH_BLOCKS: usize = 160;
const MOST_SPLIT: usize = 8;
/// Of an H100. On others the grids are a little too large or too small.
const MULTIPROCESSORS: u32 = 132;
/// Of shared memory.
const STAGED_BYTES: usize = 220 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compilers_name_of_a_product_tells_how_to_launch_it() {
        let name = "_ZN8base_mlx14launch_projectI13__nv_bfloat16Li1ELi2560ELi4ELi64ELi4096ELi0ELi0ELi1ELin5ELi0E\
                    Li0ELi12ELi4ELi0ELi416ELi123904ELi256ELi3EEEvPKT_S4_S4_PKvS4_S4_S4_S6_S4_S4_S4_S6_S4_S4_S4_PS2_i";
        let facts = Facts { threads: 416, dynamic_bytes: 123_904, items: 256, teams: 3 };
        assert_eq!(Facts::of(name), Some(facts));
        assert_eq!(Facts::of("launch_project"), None);
    }
}
