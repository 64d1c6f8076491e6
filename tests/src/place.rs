//! Where things stand: the repository, its build products, the nest's own folder.

use crate::debian::{Debian, Xenstored};
use crate::error::{Doing, Result};
use std::path::{Path, PathBuf};

/// The folders the harness works in, and what dom0 is made of there.
#[derive(Clone, Debug)]
pub struct Place {
    root: PathBuf,
    /// Which of several machines that run side by side this is for; none for the first.
    lane: Option<usize>,
    debian: Debian,
    xenstored: Xenstored,
}

impl Place {
    /// Finds the repository: cargo names the package's folder to what it runs; otherwise it is the current folder.
    ///
    /// # Errors
    /// There is no current folder, or `target/nest` cannot be made.
    pub fn find() -> Result<Self> {
        let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let root = match package.as_deref().and_then(Path::parent) {
            Some(root) => root.to_path_buf(),
            None => std::env::current_dir().doing("looking for the repository")?,
        };
        let place = Self { root, lane: None, debian: Debian::default(), xenstored: Xenstored::default() };
        for folder in [place.nest(), place.out()] {
            std::fs::create_dir_all(&folder).doing(format!("making {}", folder.display()))?;
        }
        Ok(place)
    }

    /// A path below the repository.
    pub fn repo(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// A built program of ours.
    pub fn program(&self, name: &str) -> PathBuf {
        self.root.join("target/release").join(name)
    }

    /// The harness's folder, `target/nest`.
    pub fn nest(&self) -> PathBuf {
        self.root.join("target/nest")
    }

    /// The same for another dom0.
    pub fn with(&self, debian: Debian, xenstored: Xenstored) -> Self {
        Self { debian, xenstored, ..self.clone() }
    }

    /// Which daemon keeps dom0's xenstore.
    pub const fn xenstored(&self) -> Xenstored {
        self.xenstored
    }

    /// Which release dom0 is made of.
    pub const fn debian(&self) -> Debian {
        self.debian
    }

    /// The folder of what is made of one release: `target/nest/debian-N`.
    pub fn release(&self) -> PathBuf {
        self.nest().join(format!("debian-{}", self.debian))
    }

    /// The same for machine `lane` of several that run side by side, counted from 0.
    ///
    /// # Errors
    /// Its folders cannot be made.
    pub fn in_lane(&self, lane: usize) -> Result<Self> {
        let place = Self { lane: Some(lane).filter(|lane| *lane > 0), ..self.clone() };
        std::fs::create_dir_all(place.out()).doing(format!("making {}", place.out().display()))?;
        Ok(place)
    }

    /// The folder of what is one machine's own: `target/nest`, or `target/nest/lane-N`.
    pub fn machine(&self) -> PathBuf {
        self.lane.map_or_else(|| self.nest(), |lane| self.nest().join(format!("lane-{lane}")))
    }

    /// Where files that dom0 hands out arrive, `out` in the machine's folder; dom0 sees it as `/host`.
    pub fn out(&self) -> PathBuf {
        self.machine().join("out")
    }
}
