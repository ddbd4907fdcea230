//! A TCP socket together with the memory of its buffers, and a pool that keeps
//! such memory from one connection to the next.
//!
//! smoltcp gives the buffers of a socket back to nobody, and a socket must not be
//! used twice (parts of its state stay). So the socket borrows its buffers here,
//! and when it is gone they are there for another one. New memory is asked for
//! zeroed, which an allocator may have for nothing; used memory keeps its old
//! bytes, which smoltcp shows to nobody: neither to the application nor to the
//! wire. Making and freeing two buffers of 256 KB costs ten times what a short
//! connection costs else.

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use self_cell::{MutBorrow, self_cell};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;

use super::options::TcpOptions;

/// Most pairs of buffers that are kept: what one round of a busy server frees.
const MAX_SPARES: usize = 64;

/// The memory of a connection's two buffers: one piece, the receive buffer first.
///
/// Two buffers of 64 KB come zeroed from glibc's heap, which touches every page of
/// them: an idle connection held 135 KB. Both together are large enough for it to map
/// them, which touches none (97 KB; 9 KB where it is kept from raising its bound for
/// that, as `demo-guest` does).
pub(crate) struct Buffers {
    bytes: Vec<u8>,
    rx_len: usize,
    tx_len: usize,
}

/// The send buffer begins at a multiple of this: lengths are odd at times, and copies
/// from and to odd places cross a cache line with every register.
const ALIGN: usize = 64;

impl Buffers {
    fn new(rx_len: usize, tx_len: usize) -> Self {
        Self {
            bytes: vec![0; rx_len.next_multiple_of(ALIGN) + tx_len],
            rx_len,
            tx_len,
        }
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The length of either.
    fn lens(&self) -> (usize, usize) {
        (self.rx_len, self.tx_len)
    }
}

self_cell!(
    struct Housed {
        owner: MutBorrow<Buffers>,
        #[not_covariant]
        dependent: SocketSet,
    }
);

/// A socket set of one TCP socket, with the socket's memory.
pub(crate) struct TcpCell {
    housed: Housed,
    handle: SocketHandle,
}

impl TcpCell {
    /// A fresh socket with these options in this memory.
    pub(crate) fn new(buffers: Buffers, options: &TcpOptions) -> Self {
        let mut handle = SocketHandle::default();
        let housed = Housed::new(MutBorrow::new(buffers), |buffers| {
            let buffers = buffers.borrow_mut();
            let tx_start = buffers.rx_len.next_multiple_of(ALIGN);
            let (rx, tx) = buffers.bytes.split_at_mut(tx_start);
            let rx = tcp::SocketBuffer::new(&mut rx[..buffers.rx_len]);
            let tx = tcp::SocketBuffer::new(tx);
            let mut socket = tcp::Socket::new(rx, tx);
            options.apply(&mut socket);
            let mut set = SocketSet::new(vec![]);
            handle = set.add(socket);
            set
        });
        Self { housed, handle }
    }

    /// Works on the set.
    pub(crate) fn with_set<R>(&mut self, f: impl FnOnce(&mut SocketSet<'_>) -> R) -> R {
        self.housed.with_dependent_mut(|_, set| f(set))
    }

    /// Works on the socket.
    pub(crate) fn with<R>(&mut self, f: impl FnOnce(&mut tcp::Socket<'_>) -> R) -> R {
        let handle = self.handle;
        self.with_set(|set| f(set.get_mut(handle)))
    }

    /// Ends the socket; its memory remains.
    fn into_buffers(self) -> Buffers {
        self.housed.into_owner().into_inner()
    }
}

/// Memory of ended connections, for new ones.
pub(crate) struct Pool {
    /// The one that was used last, and is warm, at the end.
    spares: VecDeque<Buffers>,
    bytes: usize,
    max_bytes: usize,
}

impl Pool {
    /// A pool that keeps no more than `max_bytes`.
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self {
            spares: VecDeque::new(),
            bytes: 0,
            max_bytes,
        }
    }

    /// A fresh socket with these options.
    pub(crate) fn socket(&mut self, options: &TcpOptions) -> TcpCell {
        let (rx_len, tx_len) = options.buffer_lens();
        let fits = |spare: &Buffers| spare.lens() == (rx_len, tx_len);
        let place = self.spares.iter().rposition(fits);
        let spare = place.and_then(|place| self.spares.remove(place));
        if let Some(spare) = &spare {
            self.bytes -= spare.len();
        }
        TcpCell::new(
            spare.unwrap_or_else(|| Buffers::new(rx_len, tx_len)),
            options,
        )
    }

    /// Takes the memory of a socket that has ended. The oldest gives way.
    pub(crate) fn take_back(&mut self, cell: TcpCell) {
        let buffers = cell.into_buffers();
        self.bytes += buffers.len();
        self.spares.push_back(buffers);
        while self.bytes > self.max_bytes || self.spares.len() > MAX_SPARES {
            let Some(oldest) = self.spares.pop_front() else {
                return;
            };
            self.bytes -= oldest.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(bytes: usize) -> TcpOptions {
        TcpOptions {
            rx_buffer_bytes: bytes,
            tx_buffer_bytes: bytes,
            ..TcpOptions::default()
        }
    }

    fn memory(cell: TcpCell) -> (*const u8, Buffers) {
        let buffers = cell.into_buffers();
        (buffers.bytes.as_ptr(), buffers)
    }

    #[test]
    fn memory_is_used_again_by_a_fresh_socket_of_the_same_sizes() {
        let mut pool = Pool::new(1 << 20);
        let mut first = pool.socket(&options(4096));
        first.with(|socket| socket.listen(80).unwrap());
        let (place, buffers) = memory(first);
        pool.take_back(TcpCell::new(buffers, &options(4096)));
        let (other, _) = memory(pool.socket(&options(2048)));
        assert_ne!(other, place);
        let mut second = pool.socket(&options(4096));
        let state = second.with(|socket| (socket.state(), socket.recv_capacity()));
        assert_eq!(state, (tcp::State::Closed, 4096));
        assert_eq!(memory(second).0, place);
        assert_eq!((pool.bytes, pool.spares.len()), (0, 0));
    }

    #[test]
    fn no_more_is_kept_than_allowed_and_the_oldest_gives_way() {
        let mut pool = Pool::new(3 * 4096);
        for bytes in [2048, 4096, 2048] {
            let cell = TcpCell::new(Buffers::new(bytes, bytes), &options(bytes));
            pool.take_back(cell);
        }
        assert_eq!((pool.bytes, pool.spares.len()), (3 * 4096, 2));
        assert_eq!(pool.spares[0].len(), 2 * 4096);
        let mut pool = Pool::new(usize::MAX);
        for _ in 0..2 * MAX_SPARES {
            let cell = TcpCell::new(Buffers::new(2048, 2048), &options(2048));
            pool.take_back(cell);
        }
        assert_eq!(pool.spares.len(), MAX_SPARES);
        let mut none = Pool::new(0);
        none.take_back(TcpCell::new(Buffers::new(2048, 2048), &options(2048)));
        assert_eq!((none.bytes, none.spares.len()), (0, 0));
    }
}
