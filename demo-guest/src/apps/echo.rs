//! Echo: over TCP as a task, over UDP as a callback of the stack.

use alloc::vec;

use guest_stack::error::BindError;
use guest_stack::face::asynchronous::{Network, TcpStream};
use guest_stack::face::platform::Platform;
use guest_stack::registry::Verdict;
use guest_stack::tcp::stream::Shutdown;
use shm_link::link::Link;

/// Sends back what comes (RFC 862); closes when the peer does.
pub(super) async fn serve<L: Link, P: Platform>(stream: TcpStream<L, P>) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        match stream.recv(&mut buffer).await {
            Ok(0) => break,
            Ok(n) if stream.send_all(&buffer[..n]).await.is_ok() => {}
            Ok(_) | Err(_) => return,
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// Answers datagrams on port 7 where they arrive: no socket, no task.
pub(super) fn datagrams<L: Link, P: Platform>(network: &Network<L, P>) -> Result<(), BindError> {
    let registered = network.with(|stack, _| {
        stack.sockets().on_udp(7, |context, datagram, payload| {
            match context.reply_datagram(datagram, payload) {
                Ok(()) => Verdict::Handled,
                // Longer than one packet: the socket can fragment it.
                Err(_) => Verdict::Pass,
            }
        })
    });
    registered.map_err(|_| BindError::AddrInUse)
}
