//! Dom0's initramfs: the packages' files, and on top of them what is ours.
//!
//! The kernel unpacks archives laid end to end one after the other, so the big part (packages) is packed once and the
//! small part (our programs, configurations, guests' ramdisks) at each boot.

use crate::error::{Doing, Result};
use crate::packages::Packages;
use crate::place::Place;
use crate::tool;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The modules that dom0 loads, by file name; what they need is loaded before them.
const DOM0_MODULES: &[&str] = &[
    "xen-privcmd",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xenfs",
    "bridge",
    "tun",
    "xen-netback",
    "xen-blkback",
    "tcp_diag",
    "loop",
    "virtio_pci",
    "virtio_console",
    "virtio_net",
    "9pnet_virtio",
    "9p",
];

/// The modules that the example guests load.
const GUEST_MODULES: &[&str] = &["xen-netfront", "xen-blkfront"];

/// Our built programs: where they stand here, where they go in dom0.
const PROGRAMS: &[(&str, &str)] = &[
    ("target/release/nest-agent", "usr/sbin/nest-agent"),
    ("target/release/ask-witness", "usr/bin/ask-witness"),
    ("target/release/nest-stream", "usr/bin/nest-stream"),
    ("target/release/nest-oracle", "usr/bin/nest-oracle"),
    ("target/release/nest-fragment", "usr/bin/nest-fragment"),
    ("target/release/nest-break", "usr/bin/nest-break"),
    ("target/release/nest-domain", "usr/bin/nest-domain"),
    ("target/release/nest-host", "usr/bin/nest-host"),
    ("target/release/nest-hold", "usr/bin/nest-hold"),
    ("target/release/nest-monitor", "usr/bin/nest-monitor"),
    ("target/release/nest-mce", "usr/bin/nest-mce"),
    ("target/release/nest-scan", "usr/bin/nest-scan"),
    ("target/release/nest-gate", "usr/bin/nest-gate"),
    ("target/release/nest-tight", "usr/bin/nest-tight"),
    ("target/release/nest-twice", "usr/bin/nest-twice"),
    ("target/release/nest-same", "usr/bin/nest-same"),
    ("target/release/nest-log", "usr/bin/nest-log"),
    ("target/release/nest-hypercalls", "usr/bin/nest-hypercalls"),
    ("target/release/nest-cpu", "usr/bin/nest-cpu"),
    ("target/release/nest-timer", "usr/bin/nest-timer"),
    ("target/release/stubctl", "usr/sbin/stubctl"),
    ("target/stub/stubdom", "usr/lib/xen-stubdom/stubdom"),
    ("target/release/examples/bring_up", "usr/lib/xen-stubdom/bring_up"),
];

/// Packs dom0's initramfs and gives its path.
///
/// # Errors
/// A file could not be copied, or cpio failed.
pub fn assemble(place: &Place, packages: &Packages) -> Result<PathBuf> {
    let overlay = place.release().join("overlay");
    let _ = fs::remove_dir_all(&overlay); // the last boot's
    fill_overlay(place, packages, &overlay)?;
    let image = place.release().join("dom0.cpio");
    fs::copy(base(place, packages)?, &image).doing("copying dom0's root")?;
    pack(&overlay, &image)?;
    Ok(image)
}

/// The packages' part, packed once: it is made anew when the packages are newer.
fn base(place: &Place, packages: &Packages) -> Result<PathBuf> {
    let archive = place.release().join("base.cpio");
    let changed = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    if archive.exists() && changed(&archive) > changed(&packages.root()) {
        return Ok(archive);
    }
    let fresh = archive.with_extension("new");
    let _ = fs::remove_file(&fresh); // of an interrupted run
    pack(&packages.root(), &fresh)?;
    fs::rename(&fresh, &archive).doing("keeping dom0's root")?;
    Ok(archive)
}

/// Appends the tree to an archive, as files of root.
fn pack(tree: &Path, archive: &Path) -> Result<()> {
    let mut shell = Command::new("sh");
    shell.args(["-c", "find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 >> \"$0\""]);
    tool::output(shell.arg(archive).current_dir(tree)).map(drop)
}

fn fill_overlay(place: &Place, packages: &Packages, overlay: &Path) -> Result<()> {
    for folder in ["dev", "proc", "sys", "run", "tmp", "host", "root", "boot", "etc/nest", "var/log/xen"] {
        fs::create_dir_all(overlay.join(folder)).doing(format!("making {folder}"))?;
    }
    copy_tree(&place.repo("tests/dom0"), overlay)?;
    copy_modules(packages, DOM0_MODULES, overlay)?;
    install_programs(place, overlay)?;
    copy_tree(&place.repo("xen-config"), &overlay.join("etc/xen/stubdom"))?;
    for (kernel, name) in [(packages.packed_kernel()?, "vmlinuz"), (packages.kernel()?, "vmlinux")] {
        fs::copy(&kernel, overlay.join("boot").join(name)).doing("copying the guests' kernel")?;
    }
    symlink("/run", overlay.join("var/run")).doing("linking /var/run")?;
    guest_ramdisk(place, packages, &overlay.join("boot/witness.cpio"))
}

fn install_programs(place: &Place, overlay: &Path) -> Result<()> {
    for (from, to) in PROGRAMS {
        let from = place.repo(from);
        if from.exists() {
            copy_program(&from, &overlay.join(to))?;
        } else {
            eprintln!("nest: {} is not built: booting without it", from.display());
        }
    }
    Ok(())
}

/// The example guests' ramdisk: busybox, the witness and its init.
fn guest_ramdisk(place: &Place, packages: &Packages, archive: &Path) -> Result<()> {
    let tree = place.release().join("guest");
    let _ = fs::remove_dir_all(&tree); // the last boot's
    for folder in ["dev", "proc", "sys", "bin", "sbin", "usr/bin", "usr/sbin", "etc/nest"] {
        fs::create_dir_all(tree.join(folder)).doing(format!("making {folder}"))?;
    }
    copy_tree(&place.repo("tests/guest"), &tree)?;
    copy_modules(packages, GUEST_MODULES, &tree)?;
    copy_file(&packages.root().join("bin/busybox"), &tree.join("bin/busybox"))?;
    let witness = place.program("witness");
    if witness.exists() {
        copy_program(&witness, &tree.join("bin/witness"))?;
    } else {
        eprintln!("nest: {} is not built: guests come without it", witness.display());
    }
    let plain = place.release().join("guest.cpio");
    let _ = fs::remove_file(&plain); // the last boot's
    pack(&tree, &plain)?;
    // SeaBIOS reads an HVM guest's kernel and ramdisk byte by byte from the device model: most of its start is this.
    let packed = fs::File::create(archive).doing(format!("making {}", archive.display()))?;
    tool::status(Command::new("gzip").arg("-9nc").arg(plain).stdout(packed))
}

/// Copies the modules and what they need, and writes the order to load them in to `etc/nest/modules`.
fn copy_modules(packages: &Packages, wanted: &[&str], root: &Path) -> Result<()> {
    let folder = packages.modules()?;
    let dependencies = fs::read_to_string(folder.join("modules.dep")).doing("reading modules.dep")?;
    let mut order = String::new();
    for path in load_order(&dependencies, wanted) {
        // Not in /lib, which may be a link.
        copy_file(&folder.join(path), &root.join("usr/lib/modules").join(path))?;
        order.push_str(&format!("/usr/lib/modules/{path}\n"));
    }
    fs::write(root.join("etc/nest/modules"), order).doing("writing the order of modules")
}

/// The modules' paths, each after all that it needs. A line of `modules.dep` names a module and, nearest first, all
/// that it needs, direct or not.
fn load_order<'a>(dependencies: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let mut order = Vec::new();
    for name in wanted {
        let file = format!("/{name}.ko");
        let lines = dependencies.lines().filter_map(|line| line.split_once(':'));
        for (module, needs) in lines.filter(|(module, _)| module.ends_with(&file)) {
            let chain = needs.split_whitespace().rev().chain([module]);
            chain.for_each(|path| {
                if !order.contains(&path) {
                    order.push(path)
                }
            });
        }
    }
    order
}

/// Copies a program without its symbols: dom0's memory holds it twice while it boots.
fn copy_program(from: &Path, to: &Path) -> Result<()> {
    copy_file(from, to)?;
    tool::output(Command::new("strip").arg(to)).map(drop)
}

fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().unwrap_or(to);
    fs::create_dir_all(folder).doing(format!("making {}", folder.display()))?;
    fs::copy(from, to).map(drop).doing(format!("copying {} to {}", from.display(), to.display()))
}

/// Copies a folder's files; a missing folder is an empty one.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).doing(format!("making {}", to.display()))?;
    if from.exists() {
        tool::output(Command::new("cp").arg("-a").arg(from.join(".")).arg(to))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_after_all_it_needs() {
        let dependencies =
            "net/bridge.ko: net/stp.ko net/llc.ko\nnet/stp.ko: net/llc.ko\nnet/llc.ko:\nfs/9p.ko: fs/n.ko\n";
        let order = load_order(dependencies, &["stp", "bridge", "9p"]);
        assert_eq!(order, ["net/llc.ko", "net/stp.ko", "net/bridge.ko", "fs/n.ko", "fs/9p.ko"]);
    }
}
