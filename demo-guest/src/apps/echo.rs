//! Echo: over TCP as a task, over UDP as a callback of the stack.

use alloc::vec;

use guest_stack::error::BindError;
use guest_stack::face::asynchronous::{Network, TcpStream};
use guest_stack::face::platform::Platform;
use guest_stack::registry::Verdict;
use guest_stack::tcp::stream::Shutdown;
use shm_link::link::Link;

use crate::executor::Spawner;

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

/// Answers datagrams on port 7 where they arrive, by a callback: no socket, no
/// task. What is longer than one packet the callback passes on to a socket,
/// which can fragment its answer.
pub(super) fn datagrams<L, P>(
    network: &Network<L, P>,
    spawner: &Spawner<P::RawMutex>,
) -> Result<(), BindError>
where
    L: Link + Send + 'static,
    P: Platform,
{
    let registered = network.with(|stack, _| {
        stack.sockets().on_udp(7, |context, datagram, payload| {
            match context.reply_datagram(datagram, payload) {
                Ok(()) => Verdict::Handled,
                Err(_) => Verdict::Pass,
            }
        })
    });
    registered.map_err(|_| BindError::AddrInUse)?;
    let socket = network.bind_udp(7)?;
    spawner.spawn(async move {
        let mut buffer = vec![0; 65_535];
        while let Ok((len, peer)) = socket.recv_from(&mut buffer).await {
            // One that cannot be sent is lost, as datagrams may be.
            let _ = socket.send_to(&buffer[..len], peer).await;
        }
    });
    Ok(())
}
