//! A QEMU with the image in it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use host_bridge::child::Helper;

use crate::common::{Guest, PATIENCE, SOCKET, World, skip, until};

const QEMU: &str = "qemu-system-x86_64";

/// Whether there is a QEMU; says so if there is none.
pub(super) fn qemu_is_there() -> bool {
    let found = Command::new(QEMU)
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok();
    if !found {
        skip("qemu-system-x86_64");
    }
    found
}

/// The image: what VM_GUEST_IMAGE names, or freshly built.
fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        if let Some(image) = std::env::var_os("VM_GUEST_IMAGE") {
            return image.into();
        }
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("vm-guest");
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../vm-guest/Cargo.toml");
        let built = Command::new(env!("CARGO"))
            .args(["build", "--locked", "--release", "--quiet"])
            .args(["--manifest-path", manifest, "--target-dir"])
            .arg(&target)
            .status();
        assert!(built.unwrap().success(), "the image does not build");
        target.join("release/vm-guest")
    })
}

/// What executes the image, and which image.
#[derive(Debug)]
pub(super) struct Processor {
    accelerator: &'static str,
    cpu: &'static str,
    image: PathBuf,
}

impl Processor {
    /// Works everywhere.
    pub(super) fn tcg() -> Self {
        Self {
            accelerator: "tcg",
            cpu: "max",
            image: image().into(),
        }
    }

    /// KVM, if it really executes the image: it must come to the point where it
    /// misses its network device. Where the plain image does not get there, the
    /// one for x86_64-unknown-none that VM_GUEST_FREESTANDING_IMAGE names is
    /// tried: a KVM that emulates every instruction knows no SSE. Says what it
    /// finds.
    pub(super) fn kvm() -> Option<Self> {
        let freestanding = std::env::var_os("VM_GUEST_FREESTANDING_IMAGE").map(PathBuf::from);
        for image in [Some(image().into()), freestanding].into_iter().flatten() {
            // The second for hosts that offer a register that cannot be set.
            for cpu in ["host", "host,-arch-capabilities"] {
                let accelerator = "kvm";
                let image = PathBuf::clone(&image);
                let kvm = Self {
                    accelerator,
                    cpu,
                    image,
                };
                match kvm.try_out() {
                    Ok(()) => {
                        eprintln!("under KVM: {kvm:?}");
                        return Some(kvm);
                    }
                    Err(words) => eprintln!("not under KVM: {kvm:?}: {words}"),
                }
            }
        }
        None
    }

    /// Boots the image without its device; the error is what was said instead
    /// of what it should say.
    fn try_out(&self) -> Result<(), String> {
        let serial = Serial::new();
        let mut command = self.qemu();
        command
            .arg("-serial")
            .arg(format!("file:{}", serial.0.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&serial.1).unwrap());
        let mut helper = Helper::spawn(command).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if serial.text().contains("there is no ivshmem device") {
                return Ok(());
            }
            let ended = helper.wait_timeout(Duration::from_millis(20)).unwrap();
            let errors = fs::read_to_string(&serial.1).unwrap_or_default();
            // QEMU stays after an error of KVM, with the machine stopped.
            let failed = errors.contains("KVM internal error");
            if failed || ended.is_some() || Instant::now() > deadline {
                let words = errors.lines().next().unwrap_or("no word").to_owned();
                return Err(words);
            }
        }
    }

    fn qemu(&self) -> Command {
        let mut command = Command::new(QEMU);
        command
            .args(["-accel", self.accelerator, "-cpu", self.cpu])
            .args(["-nodefaults", "-display", "none", "-m", "128", "-kernel"])
            .arg(&self.image);
        command
    }
}

/// A QEMU that was started, whatever it has come to. It dies with the test.
pub(super) struct Starting {
    helper: Helper,
    monitor: ChildStdin,
    serial: Serial,
}

impl Starting {
    /// Starts one whose machine will call itself `name`.
    pub(super) fn new(processor: &Processor, name: &str, command_line: &str) -> Self {
        let serial = Serial::new();
        let socket = SOCKET.trim_start_matches('@');
        let mut command = processor.qemu();
        command
            .args(["-monitor", "stdio"])
            .args(["-append", &format!("name={name} {command_line}")])
            .arg("-chardev")
            .arg(format!("socket,path={socket},abstract=on,id=net"))
            .args(["-device", "ivshmem-doorbell,chardev=net,vectors=1"])
            .arg("-serial")
            .arg(format!("file:{}", serial.0.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        let mut helper = Helper::spawn(command).unwrap();
        let monitor = helper.child_mut().stdin.take().unwrap();
        Self {
            helper,
            monitor,
            serial,
        }
    }
}

/// A virtual machine. It dies with the test.
pub(super) struct Vm {
    pub(super) guest: Guest,
    monitor: ChildStdin,
    serial: Serial,
}

/// The files that the serial port, and QEMU itself, are written to.
struct Serial(PathBuf, PathBuf);

impl Serial {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let file = |ending| {
            let name = format!("{}-{count}.{ending}", std::process::id());
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
        };
        Self(file("serial"), file("errors"))
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.0).unwrap_or_default()
    }
}

impl Drop for Serial {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        let _ = fs::remove_file(&self.1);
    }
}

impl Vm {
    /// Boots one that calls itself `name` under TCG, and waits until it answers.
    pub(super) fn boot(world: &World, name: &str, command_line: &str) -> Self {
        Self::boot_on(&Processor::tcg(), world, name, command_line)
    }

    /// The same on that processor.
    pub(super) fn boot_on(
        processor: &Processor,
        world: &World,
        name: &str,
        command_line: &str,
    ) -> Self {
        let Starting {
            helper,
            monitor,
            serial,
        } = Starting::new(processor, name, command_line);
        Self {
            guest: world.attached(name, helper),
            monitor,
            serial,
        }
    }

    /// What the machine has said on its serial port.
    pub(super) fn said(&self) -> String {
        self.serial.text()
    }

    /// Waits until it has said `words` that often.
    pub(super) fn until_said(&self, words: &str, times: usize) {
        until(&format!("{words:?} on the serial port"), || {
            self.said().matches(words).count() >= times
        });
    }

    /// Gives a command to QEMU's monitor.
    pub(super) fn monitor(&mut self, command: &str) {
        writeln!(self.monitor, "{command}").unwrap();
    }

    /// How often QEMU's threads, the virtual processor's too, went to sleep.
    pub(super) fn wake_ups(&mut self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.guest.pid())).unwrap();
        let sleeps = |task: std::io::Result<fs::DirEntry>| {
            let status = fs::read_to_string(task.ok()?.path().join("status")).ok()?;
            let mut lines = status.lines();
            let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
            count.trim().parse::<u64>().ok()
        };
        tasks.filter_map(sleeps).sum()
    }

    /// Processor time that QEMU has used, in clock ticks of 10 ms.
    pub(super) fn cpu_ticks(&mut self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.guest.pid())).unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let fields = fields.split(' ').skip(11).take(2);
        fields.map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }
}
