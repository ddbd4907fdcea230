//! One guest behind a byte stream, from its connection to its end.
//!
//! The server has found a slot for it; here it gets its port, and the slot is
//! kept until the port's TAP is gone. Guests that share memory: `memory`.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use rustix::fs::OFlags;
use shm_link::stream::Framing;
use tokio::net::UnixStream;

use crate::allowance::Allowance;
use crate::bridge::Bridge;
use crate::error::BridgeError;
use crate::log_limit::PortLog;
use crate::plan::Slot;
use crate::port::{LOG_LINES_PER_SECOND, PortConfig, PortEnd};

/// How long a serial line rests after its port has ended, or could not be made.
const LINE_REST: Duration = Duration::from_secs(1);
/// Where the lines about a guest of the daemon's go.
pub(super) fn log_of(config: &PortConfig) -> PortLog {
    let log = config.log.clone();
    log.unwrap_or_else(|| PortLog::new(&config.name, LOG_LINES_PER_SECOND))
}

pub(super) fn copying_tap(error: io::Error) -> BridgeError {
    BridgeError::io("copying the TAP's descriptor", error)
}

/// Logs what is not the same as the last time: what stays wrong is not worth a line a
/// second.
pub(super) fn say_once(said: &mut String, text: &str) {
    if text != said {
        log::warn!("{text}; trying again");
        text.clone_into(said);
    }
}

/// A guest that speaks the stream protocol, from its connection to its end.
pub(super) async fn serve_stream(
    socket: UnixStream,
    bridge: Bridge,
    (config, slot): (PortConfig, &Slot),
    stop: impl Future<Output = ()>,
) -> Result<(), BridgeError> {
    let log = log_of(&config);
    let _memory = bridge.memory().soon(Allowance::for_stream).await?;
    let socket = socket
        .into_std()
        .map_err(|error| BridgeError::io("taking the connection over", error))?;
    let mut port = bridge
        .attach_stream(socket.into(), Framing::Prefixed, config)
        .await?;
    log.info("a guest attached");
    tokio::select! {
        end = port.ended() => match end {
            PortEnd::Closed => log.info("the guest detached"),
            end => log.warn(end),
        },
        () = stop => log.info("the guest is detached, the bridge ends"),
    }
    slot.vacate();
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
    let _memory = bridge.memory().soon(Allowance::for_stream).await?;
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
