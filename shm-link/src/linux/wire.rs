//! One message of the attach handshake on its socket.
//!
//! A message is a signed 64-bit little-endian number, and at most one file
//! descriptor beside it (`SCM_RIGHTS`). What the numbers mean is [`ivshmem`]'s
//! business. Nothing here blocks; a descriptor that arrives is owned from the
//! first moment and closed on every way out.
//!
//! [`ivshmem`]: super::ivshmem

use core::fmt;
use core::mem::MaybeUninit;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

const MESSAGE_LEN: usize = 8;

/// Why the bytes on the socket are no messages.
#[derive(Debug)]
pub enum WireError {
    /// More than one descriptor came with one message.
    TooManyFds,
    /// The connection ended inside a message.
    CutShort,
    /// The socket failed.
    Io(io::Error),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyFds => f.write_str(
                "the server sent several descriptors with one message: it does not speak the ivshmem-server protocol",
            ),
            Self::CutShort => f.write_str(
                "the connection ended in the middle of a message: see the server's log for the reason",
            ),
            Self::Io(source) => write!(f, "cannot receive from the server: {source}"),
        }
    }
}

impl core::error::Error for WireError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Io(source) => Some(source),
            Self::TooManyFds | Self::CutShort => None,
        }
    }
}

/// Sends one message. Never blocks.
///
/// # Errors
/// The kernel's; [`io::ErrorKind::WouldBlock`] if the client has left
/// everything unread that was sent before.
pub fn send_message(socket: impl AsFd, value: i64, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let bytes = value.to_le_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(fd) = &fd {
        let fits = control.push(SendAncillaryMessage::ScmRights(core::slice::from_ref(fd)));
        debug_assert!(fits, "the space is for exactly one descriptor");
    }
    let sent = rustix::io::retry_on_intr(|| {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::net::sendmsg(&socket, &[IoSlice::new(&bytes)], &mut control, flags)
    })?;
    if sent == MESSAGE_LEN {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// What [`MessageReader::read`] found.
#[derive(Debug)]
pub enum Received {
    /// A whole message.
    Message(i64, Option<OwnedFd>),
    /// Nothing, or only a part; more may come.
    Pending,
    /// The server closed the connection, between two messages.
    Closed,
}

/// Puts messages together from what the socket gives, in pieces of any size.
#[derive(Debug, Default)]
pub struct MessageReader {
    bytes: [u8; MESSAGE_LEN],
    filled: usize,
    fd: Option<OwnedFd>,
}

impl MessageReader {
    /// The next message, if it is there. Never blocks.
    ///
    /// # Errors
    /// [`WireError`]; the connection is of no further use then.
    pub fn read(&mut self, socket: impl AsFd) -> Result<Received, WireError> {
        while self.filled < MESSAGE_LEN {
            match self.read_some(&socket) {
                Ok(0) if self.filled == 0 => return Ok(Received::Closed),
                Ok(0) => return Err(WireError::CutShort),
                Ok(n) => self.filled += n,
                Err(WireError::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Received::Pending);
                }
                Err(e) => return Err(e),
            }
        }
        self.filled = 0;
        Ok(Received::Message(
            i64::from_le_bytes(self.bytes),
            self.fd.take(),
        ))
    }

    fn read_some(&mut self, socket: impl AsFd) -> Result<usize, WireError> {
        // The kernel rounds the space up and may put two descriptors into it;
        // it closes those that do not fit and sets CTRUNC. `control` closes
        // whatever is not taken out of it.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        // `filled` stays below MESSAGE_LEN: `read` made sure.
        let mut into = [IoSliceMut::new(&mut self.bytes[self.filled..])];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let message = loop {
            match rustix::net::recvmsg(&socket, &mut into, &mut control, flags) {
                Err(Errno::INTR) => {}
                other => break other.map_err(|e| WireError::Io(e.into()))?,
            }
        };
        for part in control.drain() {
            let RecvAncillaryMessage::ScmRights(fds) = part else {
                continue;
            };
            for fd in fds {
                if self.fd.replace(fd).is_some() {
                    return Err(WireError::TooManyFds);
                }
            }
        }
        if message.flags.contains(ReturnFlags::CTRUNC) {
            return Err(WireError::TooManyFds);
        }
        Ok(message.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::vec::Vec;

    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().unwrap()
    }

    fn send_raw(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        let sent = rustix::net::sendmsg(
            socket,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::empty(),
        );
        assert_eq!(sent, Ok(bytes.len()));
    }

    #[test]
    fn messages_arrive_one_by_one_with_the_descriptor_that_was_sent_beside_them() {
        let (server, client) = pair();
        send_message(&server, 0, None).unwrap();
        send_message(&server, -1, Some(client.as_fd())).unwrap();
        send_message(&server, i64::MAX, None).unwrap();
        let mut reader = MessageReader::default();
        assert!(matches!(
            reader.read(&client),
            Ok(Received::Message(0, None))
        ));
        assert!(matches!(
            reader.read(&client),
            Ok(Received::Message(-1, Some(_)))
        ));
        assert!(matches!(
            reader.read(&client),
            Ok(Received::Message(i64::MAX, None))
        ));
        assert!(matches!(reader.read(&client), Ok(Received::Pending)));
        drop(server);
        assert!(matches!(reader.read(&client), Ok(Received::Closed)));
    }

    #[test]
    fn a_number_is_little_endian_on_the_wire() {
        let (mut server, client) = pair();
        server.write_all(&[2, 1, 0, 0, 0, 0, 0, 0]).unwrap();
        let read = MessageReader::default().read(&client);
        assert!(matches!(read, Ok(Received::Message(0x0102, None))));
    }

    #[test]
    fn a_message_in_single_bytes_is_put_together_with_its_descriptor() {
        let (mut server, client) = pair();
        let mut reader = MessageReader::default();
        for byte in 0..7 {
            server.write_all(&[byte]).unwrap();
            assert!(matches!(reader.read(&client), Ok(Received::Pending)));
        }
        send_raw(&server, &[7], &[client.as_fd()]);
        let expected = i64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7]);
        match reader.read(&client) {
            Ok(Received::Message(value, Some(_))) => assert_eq!(value, expected),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn more_than_one_descriptor_beside_a_message_is_an_error() {
        for count in [2, 3, 64] {
            let (server, client) = pair();
            let fds: Vec<_> = (0..count).map(|_| client.as_fd()).collect();
            send_raw(&server, &[0; 8], &fds);
            let read = MessageReader::default().read(&client);
            assert!(
                matches!(read, Err(WireError::TooManyFds)),
                "{count}: {read:?}"
            );
        }
    }

    #[test]
    fn descriptors_beside_two_parts_of_one_message_are_an_error() {
        let (server, client) = pair();
        send_raw(&server, &[0; 4], &[client.as_fd()]);
        send_raw(&server, &[0; 4], &[client.as_fd()]);
        let read = MessageReader::default().read(&client);
        assert!(matches!(read, Err(WireError::TooManyFds)));
    }

    #[test]
    fn a_connection_that_ends_inside_a_message_is_an_error() {
        let (mut server, client) = pair();
        server.write_all(&[0; 5]).unwrap();
        drop(server);
        let read = MessageReader::default().read(&client);
        assert!(matches!(read, Err(WireError::CutShort)));
    }

    #[test]
    fn sending_to_a_client_that_reads_nothing_ends_with_an_error_instead_of_waiting() {
        let (server, _client) = pair();
        let error = (0..1_000_000).find_map(|_| send_message(&server, 0, None).err());
        assert_eq!(error.unwrap().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn sending_to_a_client_that_is_gone_is_an_error() {
        let (server, client) = pair();
        drop(client);
        let error = send_message(&server, 0, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
