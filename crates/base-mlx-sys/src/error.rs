//! What can go wrong.

use std::fmt;
use std::path::PathBuf;

/// Why MLX could not be opened, or an operation was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// An exception of MLX, in its words.
    Mlx(String),
    /// Another thread owns MLX.
    Thread,
    /// [`load`](crate::load) has not succeeded.
    NotLoaded,
    /// The bridge is in none of the folders.
    NotFound { folders: Vec<PathBuf> },
    /// The bridge is there, but not what it needs, in the loader's words.
    Load { file: PathBuf, reason: String },
}

pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Mlx(said) => f.write_str(said),
            Self::Thread => f.write_str("MLX belongs to another thread of this process"),
            Self::NotLoaded => f.write_str("MLX is not loaded"),
            Self::NotFound { folders } => {
                let name = crate::library::FILE_NAME;
                let folders: Vec<_> =
                    folders.iter().map(|folder| folder.display().to_string()).collect();
                write!(f, "{name} is in none of {}", folders.join(", "))?;
                f.write_str(match crate::BUILT {
                    true => "\nhint: install again, or name its folder in BASE_MLX_MLX_LIB",
                    false => {
                        "\nhint: this build has no MLX; build with --features cuda, or name the folder of another \
                         build's bridge in BASE_MLX_MLX_LIB"
                    }
                })
            }
            Self::Load { file, reason } => {
                write!(f, "cannot open {}: {reason}", file.display())?;
                if reason.contains("cannot open shared object file") {
                    f.write_str(
                        "\nhint: MLX for CUDA wants NVIDIA's driver and the CUDA 13 libraries, which PyTorch brings too; \
                         name the Python site-packages that hold them in BASE_MLX_CUDA_LIBS",
                    )?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for Error {}
