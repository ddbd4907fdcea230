//! A listening unix socket of the daemon's, its file, and who may speak there.
//!
//! Used for every socket that the daemon listens at. Knows nothing of what is
//! spoken there. A socket is bound without a runtime, so that it can be made
//! before the daemon gives its rights up, and registered when it is served.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Mode;
use shm_link::linux::address::Address;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};

use crate::error::BridgeError;
use crate::store::Store;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// How long a listener rests when the system has no descriptor or memory for it.
pub(crate) const ACCEPT_REST: Duration = Duration::from_millis(200);

/// A listening socket with its file and its guest list.
pub(crate) struct Listening {
    listener: StdListener,
    visitors: Visitors,
    /// Under which it is kept.
    name: String,
    was_kept: bool,
    _file: SocketFile,
}

impl Listening {
    /// Listens at `address`, over a stale file but never over a live one.
    pub(crate) fn at(address: &Address, visitors: Visitors) -> Result<Self, BridgeError> {
        Self::kept_or_at(address, visitors, &Store::none(), String::new())
    }

    /// The same, or the socket that the process before this one left under `name`, if it
    /// listens there: whoever connected meanwhile is served.
    pub(crate) fn kept_or_at(
        address: &Address,
        visitors: Visitors,
        store: &Store,
        name: String,
    ) -> Result<Self, BridgeError> {
        let kept = store.take(&name).map(StdListener::from);
        let kept = kept.filter(|kept| listens_at(kept, address));
        let was_kept = kept.is_some();
        let (listener, mut file) = match kept {
            Some(listener) => (listener, SocketFile::new(address.path())),
            None => listen(address, visitors.mode())?,
        };
        file.store = store.clone();
        Ok(Self {
            listener,
            visitors,
            name,
            was_kept,
            _file: file,
        })
    }

    /// Keeps it for the next process.
    pub(crate) async fn keep(&self, store: &Store) -> io::Result<()> {
        if self.was_kept {
            return Ok(());
        }
        store.forget([&self.name]).await?;
        store.keep(&self.name, &self.listener).await
    }

    /// Registers it with this runtime's reactor; waits while there is no
    /// descriptor left for that.
    pub(crate) async fn serve(&self) -> UnixListener {
        loop {
            let registered = self.listener.try_clone().and_then(UnixListener::from_std);
            match registered {
                Ok(listener) => return listener,
                Err(error) => log::warn!("cannot serve a socket: {error}; trying again"),
            }
            tokio::time::sleep(ACCEPT_REST).await;
        }
    }

    /// Whether the user at the other end of `socket` may speak here.
    ///
    /// # Errors
    /// Words for the log, and for a client that reads words.
    pub(crate) fn admit(&self, socket: &UnixStream) -> Result<(), String> {
        self.visitors.admit(socket)
    }
}

/// The users that may speak at a socket: the daemon's own, root, and those whom
/// the settings name. The mode of a socket's file keeps others out only where it
/// has a file, and only if nobody else was named; so everybody is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Visitors {
    /// User numbers besides the daemon's own and root's.
    pub also: Vec<u32>,
}

impl Visitors {
    /// The daemon's own user and root.
    pub const OWN: Self = Self { also: Vec::new() };

    /// The mode of the socket's file: who may open it is asked who it is.
    fn mode(&self) -> Mode {
        let own = Mode::RUSR | Mode::WUSR;
        match self.also.is_empty() {
            true => own,
            false => own | Mode::RGRP | Mode::WGRP | Mode::ROTH | Mode::WOTH,
        }
    }

    fn admit(&self, socket: &UnixStream) -> Result<(), String> {
        let peer = socket
            .peer_cred()
            .map_err(|error| format!("its user is unknown: {error}"))?;
        let own = rustix::process::geteuid().as_raw();
        if self.allows(own, peer.uid()) {
            return Ok(());
        }
        let mut numbers = vec![own.to_string()];
        numbers.extend(self.also.iter().map(u32::to_string));
        Err(format!(
            "it belongs to user {}, and only root and the users with these numbers may speak \
             here: {}",
            peer.uid(),
            numbers.join(", ")
        ))
    }

    fn allows(&self, own: u32, peer: u32) -> bool {
        peer == own || peer == 0 || self.also.contains(&peer)
    }
}

/// Whether a socket that was kept listens at `address` still.
fn listens_at(listener: &StdListener, address: &Address) -> bool {
    let Ok(bound) = listener.local_addr() else {
        return false;
    };
    match address.path() {
        // The file may have been removed or replaced, and nobody could connect.
        Some(path) => bound.as_pathname() == Some(path) && inode(path).is_some(),
        None => {
            let name = address.to_string();
            bound.as_abstract_name() == name.strip_prefix('@').map(str::as_bytes)
        }
    }
}

/// Binds a listening socket, over a stale file but never over a live one.
fn listen(address: &Address, mode: Mode) -> Result<(StdListener, SocketFile), BridgeError> {
    let io = |doing: &str, error| BridgeError::io(format!("{doing} {address}"), error);
    if let Some(path) = address.path()
        && fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
        && StdStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    {
        fs::remove_file(path).map_err(|error| io("removing the stale socket", error))?;
    }
    let listener = bind(address, mode).map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another program listens there, or a file of this name exists: choose another \
                 address or stop that program"
            }
            io::ErrorKind::NotFound => "the directory does not exist: make it first",
            io::ErrorKind::PermissionDenied => {
                "no permission: choose a directory that this user may write to, or an abstract \
                 name (@name), or run as root"
            }
            _ => return io("listening at", error),
        };
        io("listening at", io::Error::new(error.kind(), advice))
    })?;
    let file = SocketFile::new(address.path());
    Ok((listener, file))
}

/// A listening socket that does not block, with this mode of its file.
fn bind(address: &Address, mode: Mode) -> io::Result<StdListener> {
    let name = match address.path() {
        Some(path) => SockAddr::unix(path)?,
        // socket2 writes abstract names with a NUL where people write an @.
        None => SockAddr::unix(address.to_string().replacen('@', "\0", 1))?,
    };
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Before the file exists: Linux gives it the socket's own mode, so it is
    // never open to others, not even for a moment.
    rustix::fs::fchmod(&socket, mode)?;
    socket.bind(&name)?;
    if let Some(path) = address.path()
        && mode.contains(Mode::WOTH)
    {
        // The process's umask took some of it away.
        rustix::fs::chmod(path, mode)?;
    }
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(OwnedFd::from(socket).into())
}

/// The file of a listening socket, removed when dropped, unless another program
/// put its own there meanwhile, or another process goes on with the socket.
pub(crate) struct SocketFile {
    file: Option<(PathBuf, Inode)>,
    /// Where the socket is kept.
    store: Store,
}

/// Device and number of a file.
type Inode = (u64, u64);

impl SocketFile {
    fn new(path: Option<&Path>) -> Self {
        Self {
            file: path.and_then(|path| Some((path.to_owned(), inode(path)?))),
            store: Store::none(),
        }
    }
}

fn inode(path: &Path) -> Option<Inode> {
    let file = fs::symlink_metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some((path, ours)) = &self.file
            && !self.store.is_leaving()
            && inode(path) == Some(*ours)
        {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_user_root_and_those_named_may_speak() {
        let named = Visitors {
            also: vec![1001, 1002],
        };
        for (visitors, peer, allowed) in [
            (&Visitors::OWN, 1000, true),
            (&Visitors::OWN, 0, true),
            (&Visitors::OWN, 1001, false),
            (&named, 1000, true),
            (&named, 1001, true),
            (&named, 1002, true),
            (&named, 1003, false),
            // What a namespace shows of a user that it does not know.
            (&named, 65534, false),
        ] {
            assert_eq!(visitors.allows(1000, peer), allowed, "{visitors:?} {peer}");
        }
    }

    #[test]
    fn a_file_is_open_to_others_only_if_others_were_named() {
        assert_eq!(Visitors::OWN.mode().bits(), 0o600);
        assert_eq!(Visitors { also: vec![7] }.mode().bits(), 0o666);
    }
}
