use crate::process::{Serving, User, free_port, output};

#[test]
fn a_flag_beats_a_variable_which_beats_the_file() {
    let user = User::new();
    let [in_file, in_variable, in_flag] = [free_port(), free_port(), free_port()];
    let file = user.home.path().join("config.toml");
    std::fs::write(&file, format!("port = {in_file}\nmodel = \"smollm2\"\n")).unwrap();
    let port = |flag: Option<u16>, variable: Option<u16>| {
        let mut command = user.command_with_models(&["serve"]);
        command.arg("--config").arg(&file);
        if let Some(port) = flag {
            command.args(["--port", &port.to_string()]);
        }
        if let Some(port) = variable {
            command.env("BASE_MLX_PORT", port.to_string());
        }
        let address = Serving::start(&mut command).address.clone();
        address.rsplit(':').next().unwrap().parse::<u16>().unwrap()
    };
    assert_eq!(port(None, None), in_file);
    assert_eq!(port(None, Some(in_variable)), in_variable);
    assert_eq!(port(Some(in_flag), Some(in_variable)), in_flag);
}

#[test]
fn the_file_lies_in_the_users_folder_for_configuration() {
    let user = User::new();
    let folder = user.home.path().join(".config/base-mlx");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.toml"), "# mine\nprot = 1\n").unwrap();
    let (success, _, stderr) = output(user.command(&["list"]).env_remove("BASE_MLX_CONFIG"));
    assert!(!success);
    assert!(stderr.contains("config.toml, line 2, key `prot`: unknown field"), "{stderr}");
}

#[test]
fn a_config_file_that_was_named_must_be_there() {
    let user = User::new();
    let (success, _, stderr) = output(&mut user.command(&["list", "--config", "absent.toml"]));
    assert!(!success);
    assert!(stderr.starts_with("error: cannot read the config file absent.toml"), "{stderr}");
}
