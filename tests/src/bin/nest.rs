//! Boots the nest: a shell in dom0 for a person, or one script.

use clap::{Args, Parser, Subcommand};
use e2e::bench;
use e2e::debian::{Debian, Xenstored};
use e2e::demo;
use e2e::error::{Doing, Error, Result};
use e2e::machine::{self, Machine, Options};
use e2e::place::Place;
use e2e::soak;
use e2e::stories;
use e2e::story::{self, Story, Verdict};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Boots Xen with a complete dom0 in QEMU. Without a command: a shell in dom0 on this terminal.
#[derive(Parser)]
#[command(name = "nest")]
struct Arguments {
    /// The Debian release that dom0 is made of: 12 (Xen 4.17) or 13 (Xen 4.20).
    #[arg(long, global = true, default_value_t = Debian::default())]
    debian: Debian,
    /// The daemon that keeps dom0's xenstore.
    #[arg(long, global = true, value_enum, default_value_t)]
    xenstored: Xenstored,
    #[command(flatten)]
    machine: MachineArguments,
    #[command(subcommand)]
    command: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// Runs a bash script in dom0; its output and its exit status become this program's.
    Run {
        /// Longest time the script may take, in seconds.
        #[arg(long, default_value_t = 900)]
        timeout: u64,
        /// The script.
        file: PathBuf,
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Tells stories: those named, or all.
    Story {
        /// Prints the stories' names and what they prove.
        #[arg(long)]
        list: bool,
        /// Skips the longest stories where the host is too slow to tell all in so many minutes.
        #[arg(long)]
        budget_minutes: Option<u64>,
        /// The stories to tell.
        names: Vec<String>,
    },
    /// Goes on with a long story for many rounds, with choices drawn from a seed.
    Soak {
        /// Prints the soaks' names and what they prove.
        #[arg(long)]
        list: bool,
        /// The soak.
        #[arg(required_unless_present = "list")]
        name: Option<String>,
        /// The seed of its choices; without it a new one, which is printed.
        #[arg(long)]
        seed: Option<u64>,
        /// How many rounds; each soak has its own number.
        #[arg(long)]
        rounds: Option<u32>,
    },
    /// Shows the same guests fresh, restored by stock xl and restored through the stub.
    Demo,
    /// Measures restores of the same file by the stock helper and through the stub.
    Bench {
        /// How often each restore is measured.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Sends each file to a Linux guest by netcat too.
        #[arg(long)]
        netcat: bool,
        /// Also switches off in turn what was changed for speed: GSO, and a stub that stays awake.
        #[arg(long)]
        changes: bool,
        /// The guests, by the name of their configuration.
        #[arg(default_values_t = ["pvh-256".to_owned(), "pvh-1024".to_owned()])]
        guests: Vec<String>,
    },
}

impl Action {
    const fn name(&self) -> &'static str {
        match self {
            Self::Run { .. } => "run",
            Self::Story { .. } => "story",
            Self::Soak { .. } => "soak",
            Self::Demo => "demo",
            Self::Bench { .. } => "bench",
        }
    }
}

#[derive(Args)]
struct MachineArguments {
    /// The machine's memory in MiB.
    #[arg(long, global = true, default_value_t = Options::default().mem_mib)]
    mem: u32,
    /// Dom0's memory in MiB; most of it can hold save files.
    #[arg(long, global = true, default_value_t = Options::default().dom0_mib)]
    dom0_mem: u32,
    /// Counts instructions, so that guest time repeats from run to run; slower.
    #[arg(long, global = true)]
    icount: bool,
    /// The machine's processors, of the shell's, a script's and a benchmark's; always one with --icount.
    #[arg(long, global = true)]
    cpus: Option<u32>,
    /// More options for Xen's command line.
    #[arg(long, global = true, default_value = "", allow_hyphen_values = true)]
    xen_args: String,
}

impl From<MachineArguments> for Options {
    fn from(from: MachineArguments) -> Self {
        Self {
            mem_mib: from.mem,
            dom0_mib: from.dom0_mem,
            icount: from.icount,
            xen_args: from.xen_args,
            nr_cpus: from.cpus,
            ..Self::default()
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match act(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("nest: {error}");
            ExitCode::from(125) // no verdict: told apart from most scripts' own exit codes
        }
    }
}

fn act(arguments: Arguments) -> Result<ExitCode> {
    let place = Place::find()?.with(arguments.debian, arguments.xenstored);
    let options = Options::from(arguments.machine);
    if let Some(told @ (Action::Story { .. } | Action::Soak { .. } | Action::Demo)) = &arguments.command
        && options != Options::default()
    {
        let expected =
            "no --mem, --dom0-mem, --icount, --cpus, --xen-args: each story names the machine it wants";
        return Err(Error::new(format!("`{}`", told.name()), expected));
    }
    match arguments.command {
        None => machine::interactive(&place, &options).map(|_| ExitCode::SUCCESS),
        Some(Action::Run { timeout, file, args }) => {
            let script = std::fs::read_to_string(&file).doing(format!("reading {}", file.display()))?;
            let machine = Machine::boot(&place, &options)?;
            let mut screen = std::io::stdout();
            let show = |piece: &[u8]| drop(screen.write_all(piece).and_then(|()| screen.flush()));
            let code = machine.dom0.start(&script, &args)?.finish(Duration::from_secs(timeout), show)?;
            Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
        }
        Some(Action::Story { list: true, .. }) => {
            stories::ALL.iter().for_each(|story| println!("{:24} {}", story.name, story.proves));
            Ok(ExitCode::SUCCESS)
        }
        Some(Action::Soak { list: true, .. }) => {
            stories::SOAKS.iter().for_each(|soak| println!("{:24} {}", soak.name, soak.proves));
            Ok(ExitCode::SUCCESS)
        }
        Some(Action::Soak { name, seed, rounds, .. }) => {
            soak(&place, name.as_deref().unwrap_or_default(), seed, rounds)
        }
        Some(Action::Demo) => demo::run(&place).map(|()| ExitCode::SUCCESS),
        Some(Action::Bench { rounds, netcat, changes, guests }) => {
            let plan = bench::Plan { guests, nr_rounds: rounds, netcat, changes };
            bench::run(&place, &options, &plan).map(|()| ExitCode::SUCCESS)
        }
        Some(Action::Story { names, budget_minutes, .. }) => {
            tell(&place, &names, budget_minutes.map(|minutes| Duration::from_secs(60 * minutes)))
        }
    }
}

/// Soaks, and tells how it ended.
fn soak(place: &Place, name: &str, seed: Option<u64>, rounds: Option<u32>) -> Result<ExitCode> {
    let unknown = || Error::new(format!("looking for soak {name}"), "none of that name; see `soak --list`");
    let soak = stories::SOAKS.iter().find(|soak| soak.name == name).ok_or_else(unknown)?;
    let seed = seed.unwrap_or_else(soak::fresh_seed);
    let verdict = soak::run(place, soak, seed, rounds.unwrap_or(soak.rounds));
    println!("\n{name:24} {verdict}");
    Ok(if verdict == Verdict::Success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Tells the named stories, or all of them, and counts how they ended.
fn tell(place: &Place, names: &[String], limit: Option<Duration>) -> Result<ExitCode> {
    if let Some(unknown) = names.iter().find(|name| !stories::ALL.iter().any(|story| story.name == **name)) {
        return Err(Error::new(
            format!("looking for story {unknown}"),
            "none of that name; see `story --list`",
        ));
    }
    let chosen = |story: &&Story| names.iter().any(|name| name == story.name);
    let told: Vec<Story> = match names {
        [] => stories::ALL.to_vec(),
        _ => stories::ALL.iter().filter(chosen).copied().collect(),
    };
    let nr_lanes = if names.is_empty() { story::nr_lanes() } else { 1 };
    let verdicts = story::tell_all(place, &told, nr_lanes, limit)?;
    println!();
    verdicts.iter().for_each(|(name, verdict)| println!("{name:24} {verdict}"));
    let count = |wanted: fn(&Verdict) -> bool| verdicts.iter().filter(|(_, verdict)| wanted(verdict)).count();
    let nr_failed = count(|verdict| matches!(verdict, Verdict::Failure(_) | Verdict::Error(_)));
    let nr_skipped = count(|verdict| matches!(verdict, Verdict::Skip(_)));
    println!(
        "{} passed, {nr_failed} failed, {nr_skipped} skipped",
        count(|verdict| *verdict == Verdict::Success)
    );
    Ok(if nr_failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
