//! The Debian release that dom0 is made of, and the way to its packages.
//!
//! **Takes** the host's own sources of packages. **Gives** apt commands that know one release. **Never** touches the
//! host's configuration, its lists of packages or what is installed: apt works in a folder of the nest's.

use crate::error::{Doing, Error, Result};
use crate::tool;
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

/// A release that the nest can boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Debian {
    /// Debian 12: Xen 4.17, Linux 6.1, QEMU 7.2 as device model.
    #[default]
    Bookworm,
    /// Debian 13: Xen 4.20, Linux 6.12, QEMU 10.0 as device model.
    Trixie,
}

impl Debian {
    /// The release's number.
    pub const fn number(self) -> u32 {
        match self {
            Self::Bookworm => 12,
            Self::Trixie => 13,
        }
    }

    /// The Xen version in the names of the release's packages and folders.
    pub const fn xen(self) -> &'static str {
        match self {
            Self::Bookworm => "4.17",
            Self::Trixie => "4.20",
        }
    }

    const fn codename(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }
}

impl fmt::Display for Debian {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

impl FromStr for Debian {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "12" => Ok(Self::Bookworm),
            "13" => Ok(Self::Trixie),
            _ => Err("expected 12 or 13".into()),
        }
    }
}

/// The daemon that keeps xenstore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Xenstored {
    /// The one in OCaml, which Debian starts unless it is configured otherwise.
    #[default]
    Oxenstored,
    /// The one in C.
    Xenstored,
}

impl Xenstored {
    /// Its program's name.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Oxenstored => "oxenstored",
            Self::Xenstored => "xenstored",
        }
    }
}

/// What signs both releases, on a Debian host with its point releases.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What a Debian source calls its release: a codename or a class.
const RELEASES: &[&str] = &["bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing"];

/// apt with one release's packages and none installed.
#[derive(Debug)]
pub struct Apt {
    config: PathBuf,
}

impl Apt {
    /// Prepares apt in `folder`, which is made, and fetches the release's lists of packages.
    ///
    /// # Errors
    /// The host has no Debian source, or apt fails.
    pub fn ready(folder: &Path, release: Debian) -> Result<Self> {
        for part in ["parts", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part)).doing(format!("making {}", folder.join(part).display()))?;
        }
        let apt = Self { config: folder.join("apt.conf") };
        let write = |name: &str, text: &str| {
            fs::write(folder.join(name), text).doing(format!("writing {}", folder.join(name).display()))
        };
        write("sources.list", &sources(&host_targets()?, release)?)?;
        write("status", "")?;
        write("apt.conf", &config(folder))?;
        tool::output(apt.get().args(["-q", "update"]))?;
        Ok(apt)
    }

    /// An `apt-get` command.
    pub fn get(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.env("APT_CONFIG", &self.config);
        command
    }
}

/// apt's configuration (`apt.conf(5)`) with all that it reads and writes in `folder`.
fn config(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "Dir::Etc::sourcelist \"{folder}/sources.list\";\n\
         Dir::Etc::sourceparts \"{folder}/parts\";\n\
         Dir::State::lists \"{folder}/lists\";\n\
         Dir::State::status \"{folder}/status\";\n\
         Dir::Cache \"{folder}/cache\";\n\
         APT::Sandbox::User \"root\";\n\
         APT::Get::List-Cleanup \"false\";\n"
    )
}

/// The host's sources: `URI RELEASE COMPONENT`, a line each (`apt-get(8)`, indextargets).
fn host_targets() -> Result<String> {
    let format = "$(REPO_URI) $(RELEASE) $(COMPONENT)";
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--no-release-info", "--format", format, "Created-By: Packages"]);
    tool::output(&mut command)
}

/// The lines of `sources.list` that name another release of the same archives.
fn sources(targets: &str, release: Debian) -> Result<String> {
    let line = |target: &str| {
        let [uri, name, component] = target.split(' ').collect::<Vec<_>>()[..] else { return None };
        let (base, pocket) =
            name.split_once('-').map_or((name, String::new()), |(base, p)| (base, format!("-{p}")));
        let wanted = component == "main" && RELEASES.contains(&base) && !pocket.contains("backports");
        wanted.then(|| format!("deb [signed-by={KEYRING}] {uri} {}{pocket} main\n", release.codename()))
    };
    let lines: BTreeSet<String> = targets.lines().filter_map(line).collect();
    if lines.is_empty() {
        let expected = "expected a Debian archive with component main among apt's sources, got none";
        return Err(Error::new("looking for Debian's packages", expected));
    }
    Ok(lines.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_release_comes_from_the_same_archives() {
        let targets = "ftp://a/debian/ bookworm main\nftp://a/debian/ bookworm-updates main\n\
                       ftp://b/sec/ bookworm-security main\nftp://c/ nodistro main\nftp://a/debian/ bookworm contrib";
        let lines = sources(targets, Debian::Trixie).unwrap();
        let expected = [
            "ftp://a/debian/ trixie main",
            "ftp://a/debian/ trixie-updates main",
            "ftp://b/sec/ trixie-security main",
        ];
        let expected: String = expected.map(|line| format!("deb [signed-by={KEYRING}] {line}\n")).concat();
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_host_without_debian_sources_is_refused() {
        assert!(sources("ftp://c/ nodistro main", Debian::Bookworm).is_err());
    }

    #[test]
    fn a_release_is_named_by_its_number() {
        for release in [Debian::Bookworm, Debian::Trixie] {
            assert_eq!(release.to_string().parse(), Ok(release));
        }
        assert!("4.17".parse::<Debian>().is_err());
    }
}
