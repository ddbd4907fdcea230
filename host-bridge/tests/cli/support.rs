//! A daemon as a child process, and a guest that keeps up with it.

use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use host_bridge::child::Helper;
use host_bridge::tap::Tap;
use rustix::process::{Pid, Signal, kill_process};

use crate::common::{PATIENCE, RawGuest};

/// The attach socket of [`crate::common`]'s guests.
pub(crate) const ATTACH: &str = "@attach";
/// Where a TAP is passed on. High, so that it is none of the descriptors that this
/// process has open: not the TAP's own, which would stay closed on exec, and not
/// the pipe by which a child reports that it cannot start.
pub(crate) const PASSED_FD: i32 = 500;
/// What the daemon logs last when it starts.
const READY: &str = "administered at";

/// The program with arguments; nothing of the test's environment changes its log.
pub(crate) fn host_bridge(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_host-bridge"));
    command
        .args(args)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

/// Runs the program to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    host_bridge(args).output().unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs the program, which must succeed, and gives what it printed.
pub(crate) fn succeed(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    stdout(&output)
}

/// A running daemon with an admin socket in a directory of its own.
pub(crate) struct DaemonProcess {
    helper: Helper,
    pid: Pid,
    log: Arc<Mutex<String>>,
    pub(crate) directory: Arc<tempfile::TempDir>,
}

impl DaemonProcess {
    /// Starts a daemon at [`ATTACH`] and waits until it serves.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()), args, None)
    }

    /// The same as another user; else what it said at its end.
    pub(crate) fn start_as(user: u32, args: &[&str]) -> Result<Self, String> {
        let directory = tempfile::tempdir().unwrap();
        let open = |mode| std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(directory.path(), open(0o777)).unwrap();
        // The user may not be able to reach where the program was built.
        let program = directory.path().join("host-bridge");
        std::fs::copy(env!("CARGO_BIN_EXE_host-bridge"), &program).unwrap();
        std::fs::set_permissions(&program, open(0o755)).unwrap();
        let mut command = Command::new(program);
        command
            .arg("run")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .uid(user)
            .gid(user);
        Self::launch(command, Arc::new(directory), args, None)
    }

    /// The same with a TAP passed on as descriptor [`PASSED_FD`].
    pub(crate) fn start_with_tap(args: &[&str], tap: &Tap) -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()), args, Some(tap))
    }

    /// The same in a directory that another daemon used before.
    pub(crate) fn start_in(
        directory: Arc<tempfile::TempDir>,
        args: &[&str],
        tap: Option<&Tap>,
    ) -> Self {
        match Self::launch(host_bridge(&["run"]), directory, args, tap) {
            Ok(daemon) => daemon,
            Err(log) => panic!("the daemon does not start: {log}"),
        }
    }

    /// Starts `command`, which runs the daemon but for its addresses.
    fn launch(
        mut command: Command,
        directory: Arc<tempfile::TempDir>,
        args: &[&str],
        tap: Option<&Tap>,
    ) -> Result<Self, String> {
        let admin = directory.path().join("admin");
        if !args.contains(&"--admin") {
            command.arg("--admin").arg(admin);
        }
        if !args.contains(&"--socket") {
            command.args(["--socket", ATTACH]);
        }
        command.args(args).stderr(Stdio::piped());
        if let Some(tap) = tap {
            let fd = tap.as_raw_fd();
            // SAFETY: dup2 is async-signal-safe; the copy is not closed on exec.
            unsafe {
                command.pre_exec(move || match libc::dup2(fd, PASSED_FD) {
                    -1 => Err(std::io::Error::last_os_error()),
                    _ => Ok(()),
                });
            }
        }
        let mut helper = Helper::spawn(command).unwrap();
        let stderr = helper.child_mut().stderr.take().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (ready, is_ready) = mpsc::channel();
        let kept = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let serves = line.contains(READY);
                let mut log = kept.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
                if serves {
                    let _ = ready.send(());
                }
            }
        });
        let daemon = Self {
            pid: Pid::from_child(helper.child_mut()),
            helper,
            log,
            directory,
        };
        match is_ready.recv_timeout(PATIENCE) {
            Ok(()) => Ok(daemon),
            Err(_) => Err(daemon.log()),
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    pub(crate) fn admin(&self) -> PathBuf {
        self.directory.path().join("admin")
    }

    /// Waits until the log contains these words: it comes through a pipe.
    pub(crate) fn until_logged(&self, words: &str) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while !self.log().contains(words) {
            assert!(
                std::time::Instant::now() < deadline,
                "{words:?} is never logged"
            );
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    fn ask(&self, args: &[&str]) -> Output {
        let admin = self.admin();
        let mut all = args.to_vec();
        all.extend(["--admin", admin.to_str().unwrap()]);
        run(&all)
    }

    /// `host-bridge ARGS --admin ...`, which must succeed.
    pub(crate) fn succeed(&self, args: &[&str]) -> String {
        let output = self.ask(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        stdout(&output)
    }

    /// `host-bridge ARGS --admin ...`, which must fail; gives its words.
    pub(crate) fn fail(&self, args: &[&str]) -> String {
        let output = self.ask(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        stderr(&output)
    }

    /// The ports by `status --json`.
    pub(crate) fn ports(&self) -> Vec<serde_json::Value> {
        let text = self.succeed(&["status", "--json"]);
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document["v"], 1);
        document["ports"].as_array().unwrap().clone()
    }

    /// Waits until the ports' states are these.
    pub(crate) fn until_states(&self, states: &[&str]) {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let ports = self.ports();
            let now: Vec<_> = ports.iter().filter_map(|p| p["state"].as_str()).collect();
            if now == states {
                return;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "{now:?} never become {states:?}"
            );
        }
    }

    /// Sends a signal and waits for the end.
    pub(crate) fn end(mut self, signal: Signal) -> (ExitStatus, String) {
        kill_process(self.pid, signal).unwrap();
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            // One that is traced is given to its tracer first.
            if let Some(status) = self.helper.wait_timeout(PATIENCE).unwrap() {
                return (status, self.log());
            }
            assert!(std::time::Instant::now() < deadline, "the daemon ends");
            std::thread::yield_now();
        }
    }
}

impl Drop for DaemonProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
    }
}

/// A guest on a thread of its own that obeys every change.
pub(crate) struct LivingGuest {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<RawGuest>>,
}

impl LivingGuest {
    /// Attaches a guest, lets it do something, and keeps it alive.
    pub(crate) fn attach(first: impl FnOnce(&mut RawGuest) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut guest = RawGuest::attach();
            first(&mut guest);
            let _ = ready.send(());
            while !stopped.load(Ordering::Relaxed) {
                if guest.control_step().is_err() {
                    break;
                }
                guest.doorbell_nap();
            }
            guest
        });
        is_ready.recv_timeout(PATIENCE).expect("the guest attaches");
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// Gives the guest back.
    pub(crate) fn stop(mut self) -> RawGuest {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for LivingGuest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs `ip` with these words; gives what it printed, if it succeeded.
pub(crate) fn ip(words: &str) -> Option<String> {
    let output = Command::new("ip")
        .args(words.split_whitespace())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    output.status.success().then_some(text)
}
