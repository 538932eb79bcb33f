//! Compiles the bridge, once for each compiler, MLX and state of its sources, into the folder where the wheels are:
//! programs that `cargo install` built find it there when the build's own folder is gone.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{fs, io};

use sha2::{Digest, Sha256};

use crate::find::Mlx;
use crate::version;

/// What both sides of the table are written in, in the order of `table.rs`.
const SOURCES: [&str; 5] =
    ["src/bridge.h", "src/bridge.cc", "src/cuda.h", "src/cuda.cc", "src/table.rs"];

pub(crate) fn build(mlx: &Mlx) -> Result<(), String> {
    let mut sources = Vec::new();
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
        sources.push(fs::read(source).map_err(|error| format!("cannot read {source}: {error}"))?);
    }
    let texts: Vec<&[u8]> = sources.iter().map(Vec::as_slice).collect();
    let version = version::version(&texts);
    let macos = cfg!(target_os = "macos");
    let name = if macos { "libbase-mlx-bridge.dylib" } else { "libbase-mlx-bridge.so" };
    let lib = mlx.lib.to_str().ok_or("the path of MLX is not UTF-8")?;

    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").pic(true).opt_level(2).debug(false).warnings(false);
    build.flag("-fvisibility=hidden").flag("-isystem").flag(&mlx.include);
    build.define("BASE_MLX_BRIDGE_VERSION", format!("0x{version:x}").as_str());
    let compiler = build.try_get_compiler().map_err(|error| error.to_string())?;
    let mut compile = compiler.to_command();
    compile.args([if macos { "-dynamiclib" } else { "-shared" }, "src/bridge.cc"]);
    // A Mac's libmlx has none of what it calls.
    if cfg!(feature = "cuda") && !macos {
        compile.args(["-DBASE_MLX_CUDA", "src/cuda.cc"]);
    }
    compile.args(["-L", lib, "-lmlx"]);
    if macos {
        compile.args(["-Wl,-rpath,@loader_path", &format!("-Wl,-rpath,{lib}")]);
        compile.arg(format!("-Wl,-install_name,@rpath/{name}"));
    } else {
        // MLX's own needs are met where the program runs. The tags are old because only an old RPATH also finds what
        // libmlx needs, in an archive where all of it lies in one folder.
        compile.args(["-Wl,--no-undefined", "-Wl,--allow-shlib-undefined", "-ldl"]);
        compile.args(["-Wl,--disable-new-dtags", &format!("-Wl,-rpath,$ORIGIN:{lib}")]);
    }

    let told = run(Command::new(compiler.path()).arg("--version"))?;
    let mut all = Sha256::new();
    all.update(&told.stdout);
    all.update(format!("{} {}", written(&compile), mlx.identity));
    let folder = mlx.cache.join(format!("bridge-{}", &hexadecimal(all)[..16]));
    if !folder.join(name).is_file() {
        // It gets its name when it is whole, and another build may be first.
        let partial = mlx.cache.join(format!(".bridge-{}", std::process::id()));
        fs::create_dir_all(&partial)
            .map_err(|error| format!("cannot create {}: {error}", partial.display()))?;
        let compiled = run(compile.arg("-o").arg(partial.join(name)));
        let renamed = compiled.and_then(|_| {
            // As old as its sources: cargo would take a newer file for a change, and build again.
            age(&partial.join(name)).map_err(|error| format!("{}: {error}", partial.display()))?;
            rename(&partial, &folder, name)
        });
        let _ = fs::remove_dir_all(&partial);
        renamed?;
    }
    // Built again if somebody tidies the cache.
    println!("cargo::rerun-if-changed={}", folder.join(name).display());
    println!("cargo::rustc-env=BASE_MLX_BRIDGE_DIR={}", folder.display());
    Ok(())
}

fn age(library: &Path) -> io::Result<()> {
    let sources = SOURCES.iter().map(|source| fs::metadata(source)?.modified());
    let newest = sources.collect::<io::Result<Vec<_>>>()?.into_iter().max();
    let library = fs::File::options().write(true).open(library)?;
    newest.map_or(Ok(()), |newest| library.set_modified(newest))
}

fn rename(partial: &Path, folder: &PathBuf, name: &str) -> Result<(), String> {
    match fs::rename(partial, folder) {
        Err(error) if !folder.join(name).is_file() => {
            Err(format!("cannot rename {} to {}: {error}", partial.display(), folder.display()))
        }
        _ => Ok(()),
    }
}

/// The C++ compiler, which `cc` names without looking whether it is there.
fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|error| {
        let program = command.get_program().display();
        format!(
            "cannot run the C++ compiler {program}: {error}\nhint: install one, or name it in CXX"
        )
    })?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let hint = match cfg!(feature = "cuda") && said.contains("mlx::core::cu::") {
        true => {
            "\nhint: --features cuda wants an MLX that was built for CUDA; is BASE_MLX_MLX_DIR one?"
        }
        false => "",
    };
    Err(format!("{}: {}\n{}{hint}", written(command), output.status, said.trim()))
}

fn written(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.display().to_string()).collect::<Vec<_>>().join(" ")
}

fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
