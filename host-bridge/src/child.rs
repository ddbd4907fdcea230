//! Child processes that cannot outlive their parent.
//!
//! The `demo` subcommand runs a daemon and a guest as processes of their own.
//! However the parent ends, they end too: [`Helper`] kills its process when it
//! is dropped, and the kernel does when the parent is killed.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{
    Pid, PidfdFlags, Signal, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal,
};

/// A running child process. Dropping it kills it and waits for its end.
#[derive(Debug)]
pub struct Helper {
    child: Child,
    pidfd: OwnedFd,
}

impl Helper {
    /// Starts `command`.
    ///
    /// The kernel ties the child to the *thread* that starts it: call this on
    /// one that lives as long as the program, such as the main thread. A
    /// program with file capabilities or a set-uid bit gets rid of the tie.
    ///
    /// # Errors
    /// The kernel's: no such program, no permission, no memory.
    pub fn spawn(mut command: Command) -> io::Result<Self> {
        let parent = Pid::from_raw(std::process::id().cast_signed());
        let tie = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above.
            if getppid() == parent {
                Ok(())
            } else {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        };
        // SAFETY: between fork and exec, `tie` makes two system calls and
        // neither allocates, locks nor panics.
        let mut child = unsafe { command.pre_exec(tie) }.spawn()?;
        let pid = Pid::from_raw(child.id().cast_signed());
        // Nobody else waits for the child, so its id is still its own.
        match pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            Some(Ok(pidfd)) => Ok(Self { child, pidfd }),
            other => {
                child.kill()?;
                child.wait()?;
                Err(other
                    .and_then(Result::err)
                    .map_or(io::ErrorKind::NotFound.into(), Into::into))
            }
        }
    }

    /// The process, for its id and its pipes.
    pub fn child_mut(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Another descriptor of the process, readable once it has ended.
    ///
    /// # Errors
    /// The kernel's, when there is none left.
    pub fn pidfd(&self) -> io::Result<OwnedFd> {
        self.pidfd.try_clone()
    }

    /// Sends the process a signal, if it is still there.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Waits for the process to end by itself; `None` if it still runs after
    /// `timeout`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait_timeout(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let timeout = Timespec::try_from(timeout).ok();
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, timeout.as_ref()))?;
        self.child.try_wait()
    }

    /// Asks the process to end (SIGTERM), kills it after `grace`, and says how
    /// it ended.
    ///
    /// # Errors
    /// The kernel's.
    pub fn stop(mut self, grace: Duration) -> io::Result<ExitStatus> {
        // An error says that it has ended already.
        let _ = pidfd_send_signal(&self.pidfd, Signal::TERM);
        match self.wait_timeout(grace)? {
            Some(status) => Ok(status),
            None => {
                self.child.kill()?;
                self.child.wait()
            }
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // `kill` leaves a process alone that was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;

    const LONG: Duration = Duration::from_secs(20);

    /// A shell that runs `script`, with a pipe as its standard input.
    fn shell(script: &str) -> Helper {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        Helper::spawn(command).unwrap()
    }

    fn wait_for_output(helper: &mut Helper) {
        let stdout = helper.child_mut().stdout.as_mut().unwrap();
        io::Read::read_exact(stdout, &mut [0; 1]).unwrap();
    }

    #[test]
    fn a_process_that_ends_by_itself_gives_its_status() {
        let status = shell("exit 7").wait_timeout(LONG).unwrap();
        assert_eq!(status.and_then(|s| s.code()), Some(7));
    }

    #[test]
    fn waiting_for_a_process_that_runs_on_ends_at_the_timeout() {
        let mut helper = shell("read line");
        assert_eq!(
            helper.wait_timeout(Duration::from_millis(20)).unwrap(),
            None
        );
    }

    #[test]
    fn a_process_that_ignores_the_request_to_end_is_killed() {
        let mut helper = shell("trap '' TERM; echo; while :; do read line; done");
        wait_for_output(&mut helper);
        let status = helper.stop(Duration::from_millis(20)).unwrap();
        assert_eq!(status.signal(), Some(9));
    }

    #[test]
    fn a_process_that_obeys_the_request_to_end_is_not_killed() {
        let mut helper = shell("trap 'exit 3' TERM; echo; while :; do read line; done");
        wait_for_output(&mut helper);
        // The shell runs its trap when `read` is interrupted.
        assert_eq!(helper.stop(LONG).unwrap().code(), Some(3));
    }

    #[test]
    fn stopping_a_process_that_has_ended_gives_its_status() {
        let mut helper = shell("exit 5");
        helper.wait_timeout(LONG).unwrap();
        assert_eq!(helper.stop(LONG).unwrap().code(), Some(5));
    }

    #[test]
    fn dropping_a_helper_ends_and_reaps_its_process() {
        let mut helper = shell("read line");
        let status = format!("/proc/{}/status", helper.child_mut().id());
        assert!(std::fs::exists(&status).unwrap());
        drop(helper);
        assert!(!std::fs::exists(&status).unwrap());
    }

    #[test]
    fn a_program_that_does_not_exist_is_an_error() {
        let error = Helper::spawn(Command::new("/no/such/program")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
