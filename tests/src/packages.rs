//! The distribution's packages that dom0 is made of.
//!
//! **Takes** a list of package names. **Gives** one folder of unpacked files and one with the kernel. **Never**
//! installs anything on the host, needs no root, pins no version: apt is asked what it would install on an empty
//! machine, and that is fetched and unpacked.

use crate::debian::{Apt, Debian};
use crate::error::{Doing, Error, Result};
use crate::kernel;
use crate::place::Place;
use crate::tool;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What dom0 needs by name beside Xen; apt adds what these depend on.
const WANTED: &str = "xenstore-utils qemu-system-xen seabios linux-image-amd64 busybox-static bash coreutils \
     util-linux iproute2 kmod sed grep gawk netcat-openbsd";

/// Dependencies that only an installed, booting Debian needs: package managers, interpreters, login, initramfs.
const UNWANTED: &[&str] = &[
    "python",
    "libpython",
    "perl",
    "dpkg",
    "debconf",
    "libpam",
    "libaudit",
    "initramfs-tools",
    "iso-codes",
    "adduser",
    "passwd",
    "libsemanage",
    "libsepol",
    "media-types",
    "klibc",
    "libklibc",
    "linux-base",
    "linux-image-amd64",
    "ucf",
    "base-files",
    "gcc-",
    "login",
    "sysvinit-utils",
    "udev",
    "dracut",
    "systemd",
    "libsystemd-shared",
];

/// Folders of no use at run time.
const PRUNED: &[&str] = &[
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "usr/share/qemu/skiboot.lid",
    "usr/share/qemu/slof.bin",
    "usr/share/qemu/openbios-sparc64",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/debug",
];

/// The unpacked packages.
#[derive(Debug)]
pub struct Packages {
    folder: PathBuf,
    release: Debian,
}

impl Packages {
    /// Fetches and unpacks everything, or finds it done.
    ///
    /// # Errors
    /// apt or dpkg failed.
    pub fn ready(place: &Place) -> Result<Self> {
        let (folder, release) = (place.release(), place.debian());
        let packages = Self { folder: folder.join("packages"), release };
        let stamp = packages.folder.join("complete");
        if fs::read_to_string(&stamp).is_ok_and(|made_of| made_of == recipe(release)) {
            return Ok(packages);
        }
        eprintln!("nest: fetching dom0's packages of Debian {release} (about 120 MB, once)");
        let debs = folder.join("debs");
        for folder in [&packages.folder, &debs] {
            let _ = fs::remove_dir_all(folder); // leftovers of an interrupted run
            fs::create_dir_all(folder).doing(format!("making {}", folder.display()))?;
        }
        fetch(&Apt::ready(&folder.join("apt"), release)?, release, &debs)?;
        packages.unpack(&debs)?;
        fs::write(&stamp, recipe(release)).doing("noting that the packages are complete")?;
        Ok(packages)
    }

    /// Everything but the kernel, as it lies in dom0's root.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// The kernel package's files.
    fn kernel_root(&self) -> PathBuf {
        self.folder.join("kernel")
    }

    /// The hypervisor, uncompressed: QEMU's multiboot loader takes nothing else.
    pub fn hypervisor(&self) -> PathBuf {
        self.folder.join("xen")
    }

    /// The Linux kernel as it is packed: HVM guests unpack it themselves.
    ///
    /// # Errors
    /// The kernel package holds none.
    pub fn packed_kernel(&self) -> Result<PathBuf> {
        only_child(&self.kernel_root().join("boot"), "vmlinuz-")
    }

    /// The same kernel, unpacked when it is first asked for: dom0 and the PV and PVH guests start sooner so.
    ///
    /// # Errors
    /// The kernel package holds none, or it cannot be unpacked.
    pub fn kernel(&self) -> Result<PathBuf> {
        let elf = self.folder.join("vmlinux");
        if !elf.exists() {
            kernel::unpack(&self.packed_kernel()?, &elf)?;
        }
        Ok(elf)
    }

    /// The folder of kernel modules, with `modules.dep`.
    ///
    /// # Errors
    /// The kernel package holds none.
    pub fn modules(&self) -> Result<PathBuf> {
        only_child(&self.kernel_root().join("lib/modules"), "")
    }

    fn unpack(&self, debs: &Path) -> Result<()> {
        for deb in children(debs)?.iter().filter(|path| path.extension().is_some_and(|end| end == "deb")) {
            let kernel = file_name(deb).starts_with("linux-image-");
            let root = if kernel { self.kernel_root() } else { self.root() };
            tool::output(Command::new("dpkg").arg("-x").arg(deb).arg(root))?;
        }
        merge_usr(&self.root())?;
        merge_usr(&self.kernel_root())?;
        self.unpack_modules()?;
        let version = file_name(&self.modules()?);
        tool::output(Command::new("/sbin/depmod").arg("-b").arg(self.kernel_root()).arg(version))?;
        self.unzip_hypervisor()?;
        let shim = format!("usr/lib/xen-{}/boot/xen-shim", self.release.xen());
        for path in PRUNED.iter().copied().chain([shim.as_str()]).map(|path| self.root().join(path)) {
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }; // absent is fine
        }
        fs::remove_dir_all(self.root().join("boot")).doing("pruning boot")
    }

    /// Unpacks the kernel's modules where the release packs them one by one.
    fn unpack_modules(&self) -> Result<()> {
        let mut find = Command::new("find");
        find.arg(self.modules()?).args(["-name", "*.ko.xz", "-exec", "xz", "-d", "{}", "+"]);
        tool::output(&mut find).map(drop)
    }

    fn unzip_hypervisor(&self) -> Result<()> {
        let packed = only_child(&self.root().join("boot"), &format!("xen-{}-amd64.gz", self.release.xen()))?;
        let unpacked = fs::File::create(self.hypervisor()).doing("making the hypervisor image")?;
        tool::status(Command::new("gunzip").arg("-c").arg(packed).stdout(unpacked))
    }
}

/// Links `/bin` and its like to `/usr`, where the release's packages have all files there: the package that brings these
/// links is not unpacked.
fn merge_usr(root: &Path) -> Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        let link = root.join(name);
        if !link.exists() && root.join("usr").join(name).exists() {
            symlink(format!("usr/{name}"), &link).doing(format!("linking {}", link.display()))?;
        }
    }
    Ok(())
}

/// The names that apt is asked for.
fn wanted(release: Debian) -> String {
    format!("xen-hypervisor-{0}-amd64 xen-utils-{0} {WANTED}", release.xen())
}

/// What the stamp holds: another recipe means another download.
fn recipe(release: Debian) -> String {
    format!("{}\nwithout {UNWANTED:?}\npruned {PRUNED:?}\n", wanted(release))
}

/// Asks apt what it would install on an empty machine and downloads that.
fn fetch(apt: &Apt, release: Debian, debs: &Path) -> Result<()> {
    let wanted = wanted(release);
    let mut solve = apt.get();
    solve.args(["--no-install-recommends", "--simulate", "install"]).args(wanted.split_whitespace());
    let plan = tool::output(&mut solve)?;
    let names = plan.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
    let kept: Vec<&str> =
        names.filter(|name| !UNWANTED.iter().any(|start| name.starts_with(start))).collect();
    tool::output(apt.get().arg("download").args(kept).current_dir(debs)).map(drop)
}

/// The files of a folder in order.
fn children(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).doing(format!("reading {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    Ok(paths)
}

/// The one file of a folder whose name starts so.
fn only_child(folder: &Path, start: &str) -> Result<PathBuf> {
    let mut found = children(folder)?.into_iter().filter(|path| file_name(path).starts_with(start));
    found
        .next()
        .ok_or_else(|| Error::new(format!("looking for {start}* in {}", folder.display()), "nothing there"))
}

/// The last part of a path, as text.
fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
