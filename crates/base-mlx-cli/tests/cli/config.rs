use crate::process::{Serving, User, free_port, output, rest};
use crate::test_models::test_models;

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
fn empty_variables_count_as_unset() {
    let user = User::new();
    let mut command = user.command_with_models(&["serve", "--port", "0", "--model", "smollm2"]);
    command.env_remove("BASE_MLX_CONFIG").arg("--models-dir").arg(test_models());
    for name in ["API_KEY", "API_KEY_FILE", "HOST", "MODEL", "MODELS_DIR", "CONFIG", "ALLOW_HOST"] {
        command.env(format!("BASE_MLX_{name}"), "");
    }
    for name in ["PORT", "CORS", "CTX", "THREADS", "PARALLEL", "LOG_FORMAT", "GRACE"] {
        command.env(format!("BASE_MLX_{name}"), "");
    }
    let serving = Serving::start(&mut command);
    assert!(serving.address.starts_with("127.0.0.1:"), "{}", serving.address);
    assert!(!serving.curl.contains("Authorization"), "{}", serving.curl);
    let answer = rest(serving.post("/v1/completions", r#"{"prompt":"a","max_tokens":1}"#));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn an_empty_key_is_refused() {
    let user = User::new();
    let (success, _, stderr) =
        output(&mut user.command_with_models(&["serve", "--port", "0", "--api-key", ""]));
    assert!(!success);
    assert!(stderr.contains("--api-key") && stderr.contains("cannot be empty"), "{stderr}");
}

#[test]
fn a_models_folder_that_was_named_must_be_there() {
    let user = User::new();
    for arguments in [&["list"][..], &["serve", "--port", "0"], &["run", "smollm2", "hi"]] {
        let mut command = user.command(arguments);
        let (success, _, stderr) = output(command.args(["--models-dir", "/nonexistent"]));
        assert!(!success);
        assert!(stderr.starts_with("error: cannot read the models folder /nonexistent: "));
    }
}

#[test]
fn a_config_file_that_was_named_must_be_there() {
    let user = User::new();
    let (success, _, stderr) = output(&mut user.command(&["list", "--config", "absent.toml"]));
    assert!(!success);
    assert!(stderr.starts_with("error: cannot read the config file absent.toml"), "{stderr}");
}
