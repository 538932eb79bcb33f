//! Finds MLX and compiles the bridge against it, a library that the program opens when it runs. The compiler of Rust
//! gets to know where it lies (`BASE_MLX_BRIDGE_DIR`).

#[cfg(any(feature = "mlx", target_os = "macos"))]
#[path = "build/bridge.rs"]
mod bridge;
#[cfg(any(feature = "mlx", target_os = "macos"))]
#[path = "build/find.rs"]
mod find;
#[cfg(any(feature = "mlx", target_os = "macos"))]
#[path = "src/version.rs"]
mod version;

fn main() {
    println!("cargo::rerun-if-changed=build");
    #[cfg(any(feature = "mlx", target_os = "macos"))]
    {
        if let Err(message) = find::mlx().and_then(|mlx| bridge::build(&mlx)) {
            for line in message.lines() {
                println!("cargo::error={line}");
            }
        }
    }
}
