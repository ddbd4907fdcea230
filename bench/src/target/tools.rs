//! Small helps for starting targets: `ip`, children that say when they are ready,
//! and waiting with an end.

use std::fmt::Display;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use host_bridge::child::Helper;

use crate::Result;
use crate::measure::NOT_INSTALLED;

/// How long anything may take to start.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs `ip` with these words in this namespace.
///
/// # Errors
/// What it says when it fails.
pub fn ip(words: &str) -> Result<()> {
    run(Command::new("ip").args(words.split_whitespace()))
}

/// Runs `ip` in the namespace of a process.
///
/// # Errors
/// As for [`ip`].
pub fn ip_in(pid: u32, words: &str) -> Result<()> {
    let pid = pid.to_string();
    run(Command::new("nsenter")
        .args(["-t", &pid, "-n", "ip"])
        .args(words.split_whitespace()))
}

/// Runs a command to its end.
///
/// # Errors
/// What it says when it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?} failed: {}", words.trim()).into())
}

/// Runs a command that dies with this process, and gives what it printed.
///
/// # Errors
/// If it does not start, or its own words when it fails.
pub fn output(mut command: Command) -> Result<String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(Stdio::piped());
    let words = format!("{command:?}");
    let mut helper = Helper::spawn(command).map_err(|error| match error.kind() {
        ErrorKind::NotFound => format!("{NOT_INSTALLED}: {words}"),
        _ => format!("{words}: {error}"),
    })?;
    let child = helper.child_mut();
    let (mut out, mut err) = (String::new(), String::new());
    // None of them fills the pipe of its errors.
    child
        .stdout
        .take()
        .ok_or("no output")?
        .read_to_string(&mut out)?;
    child
        .stderr
        .take()
        .ok_or("no errors")?
        .read_to_string(&mut err)?;
    match child.wait()?.success() {
        true => Ok(out),
        false => Err(err.trim().into()),
    }
}

/// Starts a command that says `ready` on its standard output, and waits for that.
///
/// # Errors
/// If it ends before.
pub fn start_ready(mut command: Command) -> Result<Helper> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let words = format!("{command:?}");
    let mut helper = Helper::spawn(command).map_err(|error| format!("{words}: {error}"))?;
    let out = helper.child_mut().stdout.take().ok_or("no output")?;
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    match line.trim() {
        "ready" => Ok(helper),
        _ => Err(format!("{words} ended before it was ready").into()),
    }
}

/// Tries again until it works.
///
/// # Errors
/// The last one, after ten seconds.
pub fn until_ok<T, E: Display>(
    what: &str,
    mut attempt: impl FnMut() -> std::result::Result<T, E>,
) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                return Err(format!("{what} did not come: {error}").into());
            }
            Err(_) => sleep(Duration::from_millis(5)),
        }
    }
}

/// Waits until somebody accepts a connection there.
///
/// # Errors
/// After ten seconds.
pub fn reachable(address: SocketAddr) -> Result<()> {
    let attempt = || std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2));
    until_ok(&format!("a server at {address}"), attempt).map(drop)
}
