//! The applications, and what starts them all.

mod bulk;
mod echo;
mod http;
mod iperf3;
mod ping;
pub mod client;

use alloc::string::String;
use alloc::sync::Arc;
use core::future::Future;

use guest_stack::error::BindError;
use guest_stack::face::asynchronous::{Network, TcpListener, TcpStream};
use guest_stack::face::platform::Platform;
use guest_stack::stack::Stack;
use guest_stack::tcp::options::TcpOptions;
use shm_link::link::Link;

use crate::executor::Spawner;

/// Connections to one port that may wait to be accepted, or for the last word of
/// their handshake: all of a crowd that comes at once. An entry takes some 250
/// bytes, and only while it is there.
pub const BACKLOG: usize = 16_384;

/// Starts every application on `network`.
///
/// # Errors
/// [`BindError`] if a port is taken.
pub fn start_all<L, P>(
    network: &Network<L, P>,
    spawner: &Spawner<P::RawMutex>,
    name: &str,
) -> Result<(), BindError>
where
    L: Link + Send + 'static,
    P: Platform,
{
    let usual = network.look(Stack::default_tcp_options);
    serve(network, spawner, 7, usual, echo::serve)?;
    start_all_but_echo(network, spawner, name)
}

/// Starts every application but the echo over TCP, for a guest that has one of
/// its own.
///
/// # Errors
/// [`BindError`] if a port is taken.
pub fn start_all_but_echo<L, P>(
    network: &Network<L, P>,
    spawner: &Spawner<P::RawMutex>,
    name: &str,
) -> Result<(), BindError>
where
    L: Link + Send + 'static,
    P: Platform,
{
    let name: Arc<str> = Arc::from(String::from(name));
    let usual = network.look(Stack::default_tcp_options);
    let bulk = for_bulk(usual);
    serve(network, spawner, 80, usual, move |stream| {
        http::serve(stream, name.clone())
    })?;
    serve(network, spawner, 5001, bulk, bulk::sink)?;
    serve(network, spawner, 5002, bulk, bulk::source)?;
    serve(network, spawner, 5003, bulk, bulk::count)?;
    serve(network, spawner, 5004, bulk, bulk::endless)?;
    iperf3::start(network, spawner, bulk)?;
    echo::datagrams(network, spawner)
}

/// Options of streams that carry much: four times the usual buffers. A quarter
/// of a megabyte is four frames of 64 KB, which the peer has sent before the
/// first of them is acknowledged.
fn for_bulk(usual: TcpOptions) -> TcpOptions {
    TcpOptions {
        rx_buffer_bytes: (usual.rx_buffer_bytes + 1) * 4 - 1,
        tx_buffer_bytes: usual.tx_buffer_bytes * 4,
        ..usual
    }
}

/// Accepts on `port` and runs `service` for each connection.
fn serve<L, P, F>(
    network: &Network<L, P>,
    spawner: &Spawner<P::RawMutex>,
    port: u16,
    options: TcpOptions,
    service: impl Fn(TcpStream<L, P>) -> F + Send + 'static,
) -> Result<(), BindError>
where
    L: Link + Send + 'static,
    P: Platform,
    F: Future<Output = ()> + Send + 'static,
{
    let listener: TcpListener<L, P> = network.listen_with(port, BACKLOG, options)?;
    let tasks = spawner.clone();
    spawner.spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => tasks.spawn(service(stream)),
                Err(error) => {
                    log::error!("port {port}: no more connections: {error}");
                    return;
                }
            }
        }
    });
    Ok(())
}

/// Changes up to six bytes of a text, to some of `into` or any, drops or doubles some; always
/// the same ones for a seed.
#[cfg(test)]
fn damage(seed: u64, text: &mut alloc::vec::Vec<u8>, into: &[u8]) {
    let mut state = seed;
    let mut next = |below: usize| {
        // The constants are Knuth's.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below.max(1)
    };
    for _ in 0..1 + next(6) {
        let at = next(text.len());
        let byte = into[next(into.len())];
        match next(8) {
            0 => drop(text.remove(at)),
            1 => text.insert(at, byte),
            2 => text.truncate(text.len() - next(3)),
            3 => text[at] = next(256) as u8,
            _ => text[at] = byte,
        }
    }
}
