//! A pull as a process of its own, which knows its surroundings from the environment alone, and can be killed.

use std::process::Command;

use base_mlx_core::store::{Silent, Store, StoreOptions};

use crate::World;

/// This very program again, with the test below as all that it does.
pub(crate) fn pull(world: &World) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["child::a_pull_as_a_process", "--exact", "--nocapture"]);
    command.env_clear().env("HOME", world.folder.path()).env("STORE_TEST_PULLS", "owner/tiny");
    command.env("HF_ENDPOINT", &world.options.hub_endpoint);
    command.env("STORE_TEST_CONNECTIONS", world.options.hub_connections.to_string());
    command.env("STORE_TEST_RANGE_BYTES", world.options.hub_range_bytes.to_string());
    command
}

/// Does nothing unless it is started as above.
#[test]
fn a_pull_as_a_process() {
    let var = |name: &str| std::env::var(name).unwrap();
    if std::env::var_os("STORE_TEST_PULLS").is_none() {
        return;
    }
    let mut options = StoreOptions::from_env();
    options.hub_connections = var("STORE_TEST_CONNECTIONS").parse().unwrap();
    options.hub_range_bytes = var("STORE_TEST_RANGE_BYTES").parse().unwrap();
    if let Err(error) = Store::open(options).pull(&var("STORE_TEST_PULLS"), &Silent) {
        panic!("{error}");
    }
}
