//! What runs on MLX: on its CPU device, or on the one that `BASE_MLX_TEST_DEVICE` names (`metal`, `cuda`, `mlx-cpu`).

#![allow(clippy::unwrap_used, reason = "all of it is test code, its helpers too")]

#[path = "../support/mod.rs"]
mod support;

mod device;
mod families;
mod kv;
mod sampling;
mod table;
