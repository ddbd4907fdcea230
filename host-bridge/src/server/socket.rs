//! A listening unix socket of the daemon's, and its file.
//!
//! Used for every socket that the daemon listens at. Knows nothing of what is
//! spoken there.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use shm_link::linux::address::Address;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;

use crate::error::BridgeError;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Binds a listening socket, over a stale file but never over a live one.
pub(crate) fn listen(address: &Address) -> Result<(UnixListener, SocketFile), BridgeError> {
    let io = |doing: &str, error| BridgeError::io(format!("{doing} {address}"), error);
    if let Some(path) = address.path()
        && fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
        && StdStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    {
        fs::remove_file(path).map_err(|error| io("removing the stale socket", error))?;
    }
    let listener = bind(address).map_err(|error| {
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
    let listener = UnixListener::from_std(listener).map_err(|error| io("registering", error))?;
    Ok((listener, file))
}

/// A listening socket that does not block and that only its user may open: who
/// may open it may have a guest on this network, or administer it.
fn bind(address: &Address) -> io::Result<StdListener> {
    let name = match address.path() {
        Some(path) => SockAddr::unix(path)?,
        // socket2 writes abstract names with a NUL where people write an @.
        None => SockAddr::unix(address.to_string().replacen('@', "\0", 1))?,
    };
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Before the file exists: Linux gives it the socket's own mode, so it is
    // never open to others, not even for a moment.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    socket.bind(&name)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(OwnedFd::from(socket).into())
}

/// The file of a listening socket, removed when dropped, unless another program
/// put its own there meanwhile.
pub(crate) struct SocketFile(Option<(PathBuf, Inode)>);

/// Device and number of a file.
type Inode = (u64, u64);

impl SocketFile {
    fn new(path: Option<&Path>) -> Self {
        Self(path.and_then(|path| Some((path.to_owned(), inode(path)?))))
    }
}

fn inode(path: &Path) -> Option<Inode> {
    let file = fs::symlink_metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some((path, ours)) = &self.0
            && inode(path) == Some(*ours)
        {
            let _ = fs::remove_file(path);
        }
    }
}
