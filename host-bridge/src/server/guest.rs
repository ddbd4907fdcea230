//! One guest of a server, from its connection to its end.
//!
//! The server has found a slot for it; here it gets its port, and the slot is
//! kept until the port's TAP is gone.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use rustix::fs::OFlags;
use shm_link::linux::event::EventFd;
use shm_link::linux::ivshmem::{ServerSetup, send_setup};
use shm_link::linux::memory::SharedMemory;
use shm_link::stream::Framing;
use shm_link::superblock::{Layout, LayoutOptions};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use crate::bell::Doorbells;
use crate::bridge::Bridge;
use crate::error::BridgeError;
use crate::plan::Slot;
use crate::port::{PortConfig, PortEnd};

/// The id under which guests ring the host; guests have ids from 1.
const HOST_ID: u16 = 0;
/// How long a serial line rests after its port has ended, or could not be made.
const LINE_REST: Duration = Duration::from_secs(1);
/// How long after a vain attempt to make a guest's TAP anew the next is made.
const TAP_REST: Duration = Duration::from_millis(500);

/// A guest that shares memory, from its connection to its end.
pub(super) async fn serve_memory(
    mut socket: UnixStream,
    slot: &Slot,
    bridge: Bridge,
    layout: LayoutOptions,
    mut config: impl FnMut() -> io::Result<PortConfig>,
    stop: impl Future<Output = ()>,
) -> Result<(), BridgeError> {
    let config_now = config().map_err(copying_tap)?;
    let name = config_now.name.clone();
    let io = |doing: &str| {
        let doing = doing.to_owned();
        move |error| BridgeError::io(doing, error)
    };
    let layout = Layout::new(layout)
        .map_err(|error| BridgeError::io("laying out the memory", io::Error::other(error)))?;
    let memory = SharedMemory::create(&name, layout.region_len)
        .map_err(|error| BridgeError::io("making the guest's memory", io::Error::other(error)))?;
    let event = || {
        EventFd::new()
            .map(OwnedFd::from)
            .map_err(io("making an eventfd"))
    };
    let (ring_guest, rung_by_guest) = (event()?, event()?);
    let doorbells = || -> Result<Doorbells, BridgeError> {
        Ok(Doorbells {
            ring_guest: ring_guest.try_clone().map_err(io("copying an eventfd"))?,
            rung_by_guest: rung_by_guest
                .try_clone()
                .map_err(io("copying an eventfd"))?,
        })
    };
    let region = memory.region();
    let mut port = bridge
        .attach_as(region.clone(), layout, doorbells()?, config_now)
        .await?;
    let setup = ServerSetup {
        client_id: slot.number + 1,
        host_id: HOST_ID,
        memory: memory.fd(),
        ring_host: &[rung_by_guest.as_fd()],
        ring_client: &[ring_guest.as_fd()],
    };
    let sent = send_setup(&socket, setup).map_err(io("sending the guest its memory"));
    // The guest holds its own copy now.
    drop(memory);
    if sent.is_err() {
        port.close().await;
        return sent;
    }
    log::info!("port {name}: a guest attached");
    let mut gone = std::pin::pin!(async {
        tokio::select! {
            () = end_of_file(&mut socket) => log::info!("port {name}: the guest detached"),
            () = stop => log::info!("port {name}: the guest is detached, the bridge ends"),
        }
    });
    loop {
        let end = tokio::select! {
            () = gone.as_mut() => None,
            end = port.ended() => Some(end),
        };
        match end {
            // Not the guest's doing: it keeps its memory, and gets another TAP.
            Some(end @ PortEnd::Tap(_)) => {
                log::warn!("port {name}: {end}; making it anew");
                port.close().await;
            }
            Some(end) => {
                log::warn!("port {name}: {end}");
                port.close().await;
                return Ok(());
            }
            None => {
                port.close().await;
                return Ok(());
            }
        }
        let mut said = String::new();
        port = loop {
            let made = async {
                let config = config().map_err(copying_tap)?;
                let (region, layout) = (region.clone(), layout);
                bridge.attach_as(region, layout, doorbells()?, config).await
            };
            match made.await {
                Ok(port) => break port,
                Err(error) => say_once(&mut said, &format!("port {name}: {error}")),
            }
            tokio::select! {
                () = tokio::time::sleep(TAP_REST) => {}
                () = gone.as_mut() => return Ok(()),
            }
        };
        log::info!("port {name}: its TAP is there again");
    }
}

fn copying_tap(error: io::Error) -> BridgeError {
    BridgeError::io("copying the TAP's descriptor", error)
}

/// Logs what is not the same as the last time: what stays wrong is not worth a line a
/// second.
fn say_once(said: &mut String, text: &str) {
    if text != said {
        log::warn!("{text}; trying again");
        text.clone_into(said);
    }
}

/// Waits until the client is gone. Clients have nothing to say here; what one
/// says all the same is thrown away.
async fn end_of_file(socket: &mut UnixStream) {
    let mut stray = [0; 64];
    while matches!(socket.read(&mut stray).await, Ok(n) if n > 0) {}
}

/// A guest that speaks the stream protocol, from its connection to its end.
pub(super) async fn serve_stream(
    socket: UnixStream,
    bridge: Bridge,
    config: PortConfig,
    stop: impl Future<Output = ()>,
) -> Result<(), BridgeError> {
    let name = config.name.clone();
    let socket = socket
        .into_std()
        .map_err(|error| BridgeError::io("taking the connection over", error))?;
    let mut port = bridge
        .attach_stream(socket.into(), Framing::Prefixed, config)
        .await?;
    log::info!("port {name}: a guest attached");
    tokio::select! {
        end = port.ended() => match end {
            PortEnd::Closed => log::info!("port {name}: the guest detached"),
            end => log::warn!("port {name}: {end}"),
        },
        () = stop => log::info!("port {name}: the guest is detached, the bridge ends"),
    }
    port.close().await;
    Ok(())
}

/// The guests at a serial line, one after the other. Nobody can see whether one
/// is there, so the line always has a port, and keeps its slot.
pub(super) async fn serve_line(
    device: &Path,
    bridge: Bridge,
    mut config: impl FnMut() -> io::Result<PortConfig>,
    stop: impl Future<Output = ()>,
) {
    let mut stop = std::pin::pin!(stop);
    let mut said = String::new();
    loop {
        let served = serve_line_once(device, &bridge, &mut config, stop.as_mut()).await;
        match served {
            Ok(LineEnd::Stopped) => return,
            Ok(LineEnd::Port) => said.clear(),
            Err(error) => {
                say_once(&mut said, &error.to_string());
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LINE_REST) => {}
            () = stop.as_mut() => return,
        }
    }
}

/// What a line stopped for.
enum LineEnd {
    /// Its port ended.
    Port,
    /// The server ends.
    Stopped,
}

async fn serve_line_once(
    device: &Path,
    bridge: &Bridge,
    config: &mut impl FnMut() -> io::Result<PortConfig>,
    stop: Pin<&mut impl Future<Output = ()>>,
) -> Result<LineEnd, BridgeError> {
    let line = open_line(device)?;
    let config = config().map_err(copying_tap)?;
    let name = config.name.clone();
    let mut port = bridge.attach_stream(line, Framing::Serial, config).await?;
    log::info!("port {name}: waiting for a guest at {}", device.display());
    let line_end = tokio::select! {
        end = port.ended() => {
            log::warn!("port {name}: {end}");
            LineEnd::Port
        }
        () = stop => LineEnd::Stopped,
    };
    port.close().await;
    Ok(line_end)
}

/// Opens a terminal as a line to a guest. It does not become the terminal that
/// controls this process, and opening it waits for no modem.
pub(super) fn open_line(device: &Path) -> Result<OwnedFd, BridgeError> {
    let io = |error| {
        BridgeError::io(
            format!("opening the serial line {}", device.display()),
            error,
        )
    };
    let flags = OFlags::NOCTTY | OFlags::NONBLOCK;
    let line = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags.bits() as i32)
        .open(device)
        .map_err(io)?;
    if !line.is_terminal() {
        let why = "it is no terminal: give a serial port or a pty, such as /dev/ttyS0";
        return Err(io(io::Error::new(io::ErrorKind::InvalidInput, why)));
    }
    Ok(line.into())
}
