//! Finds MLX, compiles the bridge against it, and tells dependents where its library lies (`DEP_MLX_LIB`).

#[cfg(not(feature = "mlx"))]
fn main() {}

#[cfg(feature = "mlx")]
#[path = "build/find.rs"]
mod find;

#[cfg(feature = "mlx")]
fn main() {
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=src");
    let mlx = match find::mlx() {
        Ok(mlx) => mlx,
        Err(message) => {
            for line in message.lines() {
                println!("cargo::error={line}");
            }
            return;
        }
    };
    cxx_build::bridge("src/bridge.rs")
        .file("src/bridge.cc")
        .flag("-isystem")
        .flag(mlx.include.to_str().expect("found with a UTF-8 path"))
        .std("c++20")
        .warnings(false)
        .compile("base-mlx-bridge");
    let lib = mlx.lib.display();
    println!("cargo::metadata=LIB={lib}");
    println!("cargo::rustc-link-search=native={lib}");
    println!("cargo::rustc-link-lib=dylib=mlx");
    // For this crate's own tests; dependents set theirs from the metadata.
    println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    if cfg!(target_os = "linux") {
        // The wheel brings its own linear algebra, and the CUDA one wants libraries that are only there at run time.
        println!("cargo::rustc-link-arg=-Wl,--allow-shlib-undefined");
    }
}
