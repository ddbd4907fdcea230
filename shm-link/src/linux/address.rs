//! Where a daemon listens for guests: a unix socket's address as people write it.
//!
//! `/run/x.sock` is a path; `@x` is a name in Linux's abstract namespace, which
//! needs no file and vanishes with its owner. The daemon binds it, a guest
//! connects to it, the command line parses it.

use core::fmt;
use core::str::FromStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::path::Path;
use std::string::String;

use rustix::net::SocketAddrUnix;

/// Longest path or name, in bytes: `sun_path` has 108, one is the NUL.
const MAX_LEN: usize = 107;

/// A unix socket's address: `/path` or `@name`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address(String);

/// Why a text is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressError {
    /// It begins with neither `/` nor `@`.
    Form,
    /// The path or name is empty, too long, or holds a NUL.
    Name,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Form => f.write_str(
                "a socket address is an absolute path (/run/name.sock) or an abstract name (@name)",
            ),
            Self::Name => {
                write!(
                    f,
                    "a socket's path or name has 1 to {MAX_LEN} bytes, none of them NUL"
                )
            }
        }
    }
}

impl core::error::Error for AddressError {}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let name = match text.strip_prefix('@') {
            Some(name) => name,
            None if text.starts_with('/') => text,
            None => return Err(AddressError::Form),
        };
        if name.is_empty() || name.len() > MAX_LEN || name.contains('\0') {
            return Err(AddressError::Name);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Address {
    /// The path, unless the address is an abstract name.
    pub fn path(&self) -> Option<&Path> {
        self.abstract_name().is_none().then(|| Path::new(&self.0))
    }

    /// The address in the form that the standard library's listeners bind.
    ///
    /// # Errors
    /// None for an address that was parsed; the standard library checks again.
    pub fn socket_addr(&self) -> io::Result<SocketAddr> {
        match self.abstract_name() {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&self.0),
        }
    }

    /// The same for rustix, which can connect with a timeout.
    pub(super) fn to_rustix(&self) -> rustix::io::Result<SocketAddrUnix> {
        match self.abstract_name() {
            Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes()),
            None => SocketAddrUnix::new(self.0.as_str()),
        }
    }

    fn abstract_name(&self) -> Option<&str> {
        self.0.strip_prefix('@')
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn paths_and_abstract_names_are_kept_as_written() {
        for text in ["/run/vm.sock", "@vm", "@/odd", "@@"] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            assert_eq!(address.path().is_some(), text.starts_with('/'));
            address.to_rustix().unwrap();
        }
        let name: Address = "@vm".parse().unwrap();
        assert_eq!(
            name.socket_addr().unwrap().as_abstract_name(),
            Some(&b"vm"[..])
        );
    }

    #[test]
    fn anything_else_is_refused() {
        assert_eq!("vm.sock".parse::<Address>(), Err(AddressError::Form));
        assert_eq!("".parse::<Address>(), Err(AddressError::Form));
        assert_eq!("@".parse::<Address>(), Err(AddressError::Name));
        assert_eq!("/a\0b".parse::<Address>(), Err(AddressError::Name));
    }

    #[test]
    fn the_longest_address_that_parses_can_be_bound_and_connected() {
        let path = std::format!("/{}", "x".repeat(MAX_LEN - 1));
        for text in [path, std::format!("@{}", "x".repeat(MAX_LEN))] {
            let address: Address = text.parse().unwrap();
            address.socket_addr().unwrap();
            address.to_rustix().unwrap();
            assert_eq!(
                std::format!("{text}x").parse::<Address>(),
                Err(AddressError::Name)
            );
        }
    }
}
