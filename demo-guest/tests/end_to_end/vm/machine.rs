//! A QEMU with the image in it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use host_bridge::child::Helper;

use crate::common::{Guest, SOCKET, World, skip, until};

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

/// A virtual machine. It dies with the test.
pub(super) struct Vm {
    pub(super) guest: Guest,
    monitor: ChildStdin,
    serial: Serial,
}

/// The file that the serial port is written to.
struct Serial(PathBuf);

impl Drop for Serial {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Vm {
    /// Boots one that calls itself `name`, and waits until it answers.
    pub(super) fn boot(world: &World, name: &str, command_line: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let file = format!("{}-{count}.serial", std::process::id());
        let serial = Serial(Path::new(env!("CARGO_TARGET_TMPDIR")).join(file));
        let socket = SOCKET.trim_start_matches('@');
        let mut command = Command::new(QEMU);
        command
            .args(["-accel", "tcg", "-cpu", "max", "-nodefaults", "-m", "128"])
            .args(["-display", "none", "-monitor", "stdio", "-kernel"])
            .arg(image())
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
            guest: world.attached(name, helper),
            monitor,
            serial,
        }
    }

    /// What the machine has said on its serial port.
    pub(super) fn said(&self) -> String {
        fs::read_to_string(&self.serial.0).unwrap_or_default()
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

    /// Processor time that QEMU has used, in clock ticks of 10 ms.
    pub(super) fn cpu_ticks(&mut self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.guest.pid())).unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let fields = fields.split(' ').skip(11).take(2);
        fields.map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }
}
