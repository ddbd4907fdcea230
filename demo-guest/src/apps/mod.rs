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
use shm_link::link::Link;

use crate::executor::Spawner;

/// Connections to one port that may wait to be accepted.
const BACKLOG: usize = 1024;

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
    let name: Arc<str> = Arc::from(String::from(name));
    serve(network, spawner, 80, move |stream| {
        http::serve(stream, name.clone())
    })?;
    serve(network, spawner, 7, echo::serve)?;
    serve(network, spawner, 5001, bulk::sink)?;
    serve(network, spawner, 5002, bulk::source)?;
    serve(network, spawner, 5003, bulk::count)?;
    serve(network, spawner, 5004, bulk::endless)?;
    iperf3::start(network, spawner)?;
    echo::datagrams(network, spawner)
}

/// Accepts on `port` and runs `service` for each connection.
fn serve<L, P, F>(
    network: &Network<L, P>,
    spawner: &Spawner<P::RawMutex>,
    port: u16,
    service: impl Fn(TcpStream<L, P>) -> F + Send + 'static,
) -> Result<(), BindError>
where
    L: Link + Send + 'static,
    P: Platform,
    F: Future<Output = ()> + Send + 'static,
{
    let listener: TcpListener<L, P> = network.listen(port, BACKLOG)?;
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
