//! The machine: Xen in QEMU, with dom0 up.
//!
//! **Takes** options. **Gives** a running dom0 that runs scripts. **Never** leaves anything behind: QEMU dies with the
//! value, and with the process that holds it.

use crate::dom0::Dom0;
use crate::error::{Doing, Error, Result};
use crate::image;
use crate::packages::Packages;
use crate::place::Place;
use crate::tool;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Longest time from power on to dom0's agent; an ordinary boot takes 10 to 15 s, with `icount` three times that.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// Of `utime` and `stime` in `proc_pid_stat(5)`: Linux's `USER_HZ` is 100.
const MS_PER_TICK: u64 = 10;

/// How the machine is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// QEMU's memory in MiB.
    pub mem_mib: u32,
    /// Dom0's memory in MiB; most of it can hold save files.
    pub dom0_mib: u32,
    /// Count instructions instead of running as fast as possible: guest time repeats from run to run.
    pub icount: bool,
    /// More options for Xen's command line.
    pub xen_args: String,
    /// Processors; two if nothing is said, or one where QEMU translates: see [`Accelerator::plug`].
    pub nr_cpus: Option<u32>,
    /// Whether it has a network, and which end of it.
    pub seat: Seat,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mem_mib: 8192,
            dom0_mib: 3072,
            icount: false,
            xen_args: String::new(),
            nr_cpus: None,
            seat: Seat::Alone,
        }
    }
}

/// A machine's place at the network, which joins two at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    /// No network.
    Alone,
    /// The machine that [`Machine::boot_second`] joins another one to.
    First,
    /// The other one.
    Second,
}

impl Seat {
    /// Tells the two machines' files apart.
    fn file(self, place: &Place, name: &str) -> PathBuf {
        match self {
            Self::Alone | Self::First => place.machine().join(name),
            Self::Second => place.machine().join(format!("second-{name}")),
        }
    }

    /// The network's end: an Ethernet card, and a stream of frames over a Unix socket.
    fn plug(self, place: &Place, qemu: &mut Command) {
        let (server, number) = match self {
            Self::Alone => return,
            Self::First => ("on", 1),
            Self::Second => ("off", 2),
        };
        let cable = place.machine().join("cable.sock");
        if self == Self::First {
            let _ = fs::remove_file(&cable); // the last boot's
        }
        let netdev = format!("stream,id=cable,server={server},addr.type=unix,addr.path={}", cable.display());
        qemu.args(["-netdev", &netdev, "-device"]);
        qemu.arg(format!("virtio-net-pci,netdev=cable,romfile=,mac=52:54:00:80:00:0{number}"));
    }
}

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    qemu: Child,
    /// Runs scripts in dom0.
    pub dom0: Dom0,
    console: PathBuf,
    /// The second machine of two has its turn by the first.
    _turn: Option<Arc<File>>,
}

impl Machine {
    /// Boots and waits for dom0. One machine runs at a time on a host: waits for its turn.
    ///
    /// # Errors
    /// Something is missing, or dom0 did not come up: then the error shows the console's last lines.
    pub fn boot(place: &Place, options: &Options) -> Result<Self> {
        let turn = take_turn()?;
        Self::start(place, options, Some(turn))
    }

    /// Boots a second machine like the one that runs, which is [`Seat::First`]: a network joins them, `eth0` in each.
    ///
    /// # Errors
    /// As [`Machine::boot`].
    pub fn boot_second(&self, place: &Place, first: &Options) -> Result<Self> {
        Self::start(place, &Options { seat: Seat::Second, ..first.clone() }, None)
    }

    fn start(place: &Place, options: &Options, turn: Option<Arc<File>>) -> Result<Self> {
        // The image is assembled in one place, and QEMU reads it once.
        let _booting = BOOTING.lock().unwrap_or_else(PoisonError::into_inner);
        match Accelerator::choose(options) {
            Accelerator::Kvm => {
                Self::start_on(Accelerator::Kvm, place, options, turn.clone()).or_else(|error| {
                    eprintln!("nest: dom0 did not come up on KVM, trying without it: {error}");
                    Self::start_on(Accelerator::Translator, place, options, turn)
                })
            }
            other => Self::start_on(other, place, options, turn),
        }
    }

    fn start_on(
        accelerator: Accelerator,
        place: &Place,
        options: &Options,
        turn: Option<Arc<File>>,
    ) -> Result<Self> {
        let mut qemu = prepare(place, options, accelerator)?;
        let console = options.seat.file(place, "console.log");
        qemu.args(["-serial", &format!("file:{}", console.display()), "-display", "none"]);
        qemu.stdin(Stdio::null());
        let listener = listen(&agent_socket(place, options))?;
        let began = Instant::now();
        let mut child = qemu.spawn().doing("starting QEMU")?;
        match connect(&listener, &mut child) {
            Ok(dom0) => {
                eprintln!("nest: dom0 is up after {:.1} s", began.elapsed().as_secs_f32());
                Ok(Self { qemu: child, dom0, console, _turn: turn })
            }
            Err(error) => {
                end(&mut child);
                let tail = console_tail(&console, 15);
                Err(Error::new(error, format!("the console's last lines:\n{tail}")))
            }
        }
    }

    /// The last `nr_lines` lines of the machine's console: Xen's and dom0's kernel's.
    pub fn console_tail(&self, nr_lines: usize) -> String {
        console_tail(&self.console, nr_lines)
    }

    /// What the machine has taken of the host's processors so far, if the host tells.
    pub fn cpu_time(&self) -> Option<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.qemu.id())).ok()?;
        let (_, fields) = stat.rsplit_once(')')?; // the name before it may hold anything
        let ticks: Vec<u64> = fields.split_whitespace().skip(11).take(2).flat_map(str::parse).collect();
        Some(Duration::from_millis(ticks.iter().sum::<u64>() * MS_PER_TICK))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        end(&mut self.qemu);
    }
}

/// Boots with dom0's console on this terminal and waits until the machine is switched off.
///
/// # Errors
/// Something is missing, or QEMU could not start.
pub fn interactive(place: &Place, options: &Options) -> Result<ExitStatus> {
    let _turn = take_turn()?;
    let mut qemu = prepare(place, options, Accelerator::choose(options))?;
    let log = options.seat.file(place, "console.log");
    qemu.args(["-chardev", &format!("stdio,id=console,mux=on,signal=off,logfile={}", log.display())]);
    qemu.args(["-serial", "chardev:console", "-mon", "chardev=console", "-display", "none"]);
    let _listener = listen(&agent_socket(place, options))?; // QEMU wants its other end, nobody speaks here
    eprintln!("nest: dom0's shell in about 12 s; `poweroff` or Ctrl-a x ends it");
    qemu.status().doing("starting QEMU")
}

fn agent_socket(place: &Place, options: &Options) -> PathBuf {
    options.seat.file(place, "agent.sock")
}

fn console_tail(console: &Path, nr_lines: usize) -> String {
    let log = fs::read(console).unwrap_or_default();
    tool::last_lines(&String::from_utf8_lossy(&log), nr_lines)
}

fn end(qemu: &mut Child) {
    let _ = qemu.kill(); // it may have ended by itself
    let _ = qemu.wait();
}

/// One machine of this process boots at a time.
static BOOTING: Mutex<()> = Mutex::new(());

/// This process's turn, as long as one of its machines runs.
static TURN: Mutex<Weak<File>> = Mutex::new(Weak::new());

/// Waits until no other process's machine runs on this host; the lock ends with the last holder of the returned file, which
/// names this process.
fn take_turn() -> Result<Arc<File>> {
    let mut held = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(turn) = held.upgrade() {
        return Ok(turn);
    }
    let turn = Arc::new(await_turn()?);
    *held = Arc::downgrade(&turn);
    Ok(turn)
}

fn await_turn() -> Result<File> {
    let path = std::env::temp_dir().join("xen-nest.lock");
    let open = File::options().create(true).append(true).open(&path);
    let mut turn = open.doing(format!("opening {}", path.display()))?;
    if turn.try_lock().is_err() {
        let holder = fs::read_to_string(&path).unwrap_or_default();
        eprintln!("nest: another nest runs on this host ({}); waiting for it to end", holder.trim());
        turn.lock().doing(format!("locking {}", path.display()))?;
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    turn.set_len(0).doing(format!("emptying {}", path.display()))?;
    let line = format!("process {}: nest {}", std::process::id(), words.join(" "));
    turn.write_all(line.as_bytes()).doing(format!("writing {}", path.display()))?;
    Ok(turn)
}

fn listen(socket: &Path) -> Result<UnixListener> {
    let _ = fs::remove_file(socket); // the last boot's
    let listener = UnixListener::bind(socket).doing(format!("listening on {}", socket.display()))?;
    listener.set_nonblocking(true).doing("preparing the agent's socket")?;
    Ok(listener)
}

/// QEMU's command line up to its consoles.
fn prepare(place: &Place, options: &Options, accelerator: Accelerator) -> Result<Command> {
    let packages = Packages::ready(place)?;
    let initramfs = image::assemble(place, &packages)?;
    let mut qemu = Command::new("setpriv"); // so that QEMU dies with us even when we are killed
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot"]);
    accelerator.plug(&mut qemu, options.nr_cpus);
    qemu.args(["-m", &format!("{}M", options.mem_mib)]);
    qemu.arg("-kernel").arg(packages.hypervisor()).arg("-append").arg(xen_command_line(options));
    // The kernel hands a word that it does not know to its first process, as an environment variable.
    let xenstored = place.xenstored().program();
    let kernel = packages.kernel()?;
    let kernel =
        format!("{} console=hvc0 quiet cryptomgr.notests NEST_XENSTORED={xenstored}", kernel.display());
    qemu.arg("-initrd").arg(format!("{kernel},{}", initramfs.display()));
    qemu.args(["-chardev", &format!("socket,id=agent,path={}", agent_socket(place, options).display())]);
    options.seat.plug(place, &mut qemu);
    qemu.args(["-device", "virtio-serial-pci", "-device"]);
    qemu.arg(format!("virtserialport,chardev=agent,name={}", crate::wire::PORT_NAME));
    let share = format!("local,path={},mount_tag=nest,security_model=none", place.out().display());
    qemu.args(["-virtfs", &share]);
    Ok(qemu)
}

/// Xen's options. A fixed `dom0_mem` also switches xl's autoballooning off; without it xl would hold its lock while it
/// restores.
fn xen_command_line(options: &Options) -> String {
    let mem = options.dom0_mib;
    // `xl dmesg` has to reach back to the boot, whatever guests have come and gone.
    // Memory is fresh from the host, all zeroes: to scrub it would only make the host find all of it.
    let fixed = "com1=115200,8n1 console=com1 conring_size=1M dom0_max_vcpus=1 loglvl=all guest_loglvl=all bootscrub=0";
    format!("{fixed} dom0_mem={mem}M,max:{mem}M {}", options.xen_args)
}

/// What runs the machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accelerator {
    /// The host's processor.
    Kvm,
    /// QEMU's own translator.
    Translator,
    /// The translator with one CPU, whose time is the number of its instructions.
    Counter,
}

impl Accelerator {
    fn choose(options: &Options) -> Self {
        match options.icount {
            true => Self::Counter,
            false if kvm_nests() => Self::Kvm,
            false => Self::Translator,
        }
    }

    /// The translator knows AMD's SVM with nested paging. `-cpu max` crashes dom0 there, so the features are added one by
    /// one. With two processors, a thread each, QEMU 7.2 now and then lets a guest go on with Xen's registers behind VMRUN,
    /// which ends in a triple fault; with one that was not seen, and a story takes no longer.
    fn plug(self, qemu: &mut Command, nr_cpus: Option<u32>) {
        let translated = "qemu64,+svm,+npt,+nx,+lm,+pdpe1gb,+rdrand";
        let (accel, cpu, nr_cpus) = match self {
            Self::Kvm => ("kvm", "host", nr_cpus.unwrap_or(2)),
            Self::Translator => ("tcg,thread=multi", translated, nr_cpus.unwrap_or(1)),
            // Time counts the instructions of all CPUs, and a domain would be charged for what others do beside it.
            Self::Counter => ("tcg,thread=single", translated, 1),
        };
        qemu.args(["-machine", "q35", "-accel", accel, "-cpu", cpu, "-smp", &nr_cpus.to_string()]);
        if self == Self::Counter {
            qemu.args(["-icount", "shift=1,sleep=off"]);
        }
    }
}

/// Tells whether KVM is here, usable, and hands hardware virtualisation on to its guests.
fn kvm_nests() -> bool {
    let usable = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    let nests = |module: &str| {
        let switch = fs::read_to_string(format!("/sys/module/{module}/parameters/nested"));
        switch.is_ok_and(|value| matches!(value.trim(), "1" | "Y"))
    };
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let hardware = cpu.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm"));
    usable && hardware && (nests("kvm_intel") || nests("kvm_amd"))
}

/// Waits for QEMU's end of the agent's line, then for the agent.
fn connect(listener: &UnixListener, qemu: &mut Child) -> Result<Dom0> {
    let deadline = Instant::now() + BOOT_LIMIT;
    let mut stream: Option<UnixStream> = None;
    loop {
        if let Some(status) = qemu.try_wait().doing("watching QEMU")? {
            return Err(Error::new("booting the nest", format!("QEMU ended with {status}")));
        }
        if let Some(stream) = stream.take() {
            let left = deadline.saturating_duration_since(Instant::now());
            return Dom0::greet(stream, left);
        }
        if Instant::now() > deadline {
            return Err(Error::new("booting the nest", "QEMU did not connect"));
        }
        stream = listener.accept().ok().map(|(stream, _)| stream);
        std::thread::sleep(Duration::from_millis(50));
    }
}
