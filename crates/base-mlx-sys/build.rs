//! Finds MLX and compiles the bridge against it, a library that the program opens when it runs. The compiler of Rust
//! gets to know where it lies (`BASE_MLX_BRIDGE_DIR`) and which one it must be (`BASE_MLX_BRIDGE_VERSION`).

#[cfg(any(feature = "mlx", target_os = "macos"))]
#[path = "build/bridge.rs"]
mod bridge;
#[cfg(any(feature = "mlx", target_os = "macos"))]
#[path = "build/find.rs"]
mod find;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(has_mlx)");
    println!("cargo::rerun-if-changed=build");
    #[cfg(any(feature = "mlx", target_os = "macos"))]
    {
        println!("cargo::rustc-cfg=has_mlx");
        if let Err(message) = find::mlx().and_then(|mlx| bridge::build(&mlx)) {
            for line in message.lines() {
                println!("cargo::error={line}");
            }
        }
    }
}
