//! The link as smoltcp sees it: a device that holds at most one frame.
//!
//! A received frame is borrowed from where the link has it; a frame to send is
//! written where the link will have it. [`Wire`] is the sending side, lent for
//! one call at a time; what outlives the call is in [`TxState`]. A link that is
//! gone, or a carrier that is off, is an unplugged cable: frames vanish,
//! counted, and the timers of the sockets go on.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::num::NonZeroUsize;

use shm_link::fault::LinkError;
use shm_link::link::{FrameTx, MAX_FRAME_LEN};
use shm_link::offload::{FLAG_NEEDS_CSUM, GSO_NONE, GSO_TCPV4, GSO_TCPV6, OffloadHeader, Offloads};
use smoltcp::phy::{self, Checksum, Device, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::time::Instant;
use smoltcp::wire::{IpAddress, IpProtocol, checksum};

use crate::classify::{self, Class, ETHERNET_LEN, Kind, TcpHeader};
use crate::error::SendError;
use crate::neighbours::Asked;
use crate::parts::Parts;
use crate::path::{Paths, may_be_cut};
use crate::run::{MAX_SUPER_FRAME, Run};
use crate::tally::{Tally, after};
use crate::tcp::recovery::Scoreboard;

/// Bytes of headers that are cleared before smoltcp writes a frame: the room in
/// the link holds old bytes, and not every writer sets every reserved field.
const CLEARED: usize = 128;

/// What the sending side remembers from frame to frame.
#[derive(Debug)]
pub(crate) struct TxState {
    /// Longest IP packet.
    pub(crate) mtu: usize,
    /// Longest frame that the link carries.
    pub(crate) link_frame_len: usize,
    /// Offloads that frames may ask of the other side.
    pub(crate) offloads: Offloads,
    /// Whether received TCP and UDP checksums are not smoltcp's to verify.
    pub(crate) rx_checksum: bool,
    /// Whether the cable is plugged in.
    pub(crate) carrier: bool,
    /// Why the link cannot go on.
    pub(crate) link_error: Option<LinkError>,
    /// Frames given to the link.
    pub(crate) frames: u64,
    /// Frames dropped on an unplugged cable.
    pub(crate) dropped: u64,
    /// Frames dropped for want of room.
    pub(crate) no_room: u64,
    /// Somebody wanted to send and there was no room.
    pub(crate) blocked: bool,
    /// smoltcp was asked for a token since this was cleared.
    pub(crate) wanted: bool,
    /// The neighbours that smoltcp asked for.
    pub(crate) asked: Asked,
    /// Where packets must be shorter.
    pub(crate) paths: Paths,
    /// Where datagrams must be, by what was said of datagrams.
    pub(crate) datagram_paths: Paths,
    /// What the last packet was called that routers may cut.
    pub(crate) ident: u16,
    /// The last frame was a fragment with more to come.
    pub(crate) fragmenting: bool,
    /// Sequence numbers of the last TCP segment, when somebody watches.
    pub(crate) watched: Option<Option<SentTcp>>,
    /// All TCP segments, when somebody counts them.
    pub(crate) tally: Option<Tally>,
    /// What is lost of what the socket sent, while it has its turn.
    pub(crate) board: Option<Box<Scoreboard>>,
    /// The frame given to the link last, if it may grow.
    pub(crate) run: Option<Run>,
    /// Room for a frame that does not go as it is.
    pub(crate) scratch: Vec<u8>,
}

/// Where a connection stands after a segment was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SentTcp {
    /// The next sequence number that this end would send.
    pub(crate) snd_nxt: u32,
    /// The next sequence number that this end expects.
    pub(crate) rcv_nxt: u32,
}

impl TxState {
    pub(crate) fn new() -> Self {
        Self {
            mtu: 1500,
            link_frame_len: MAX_FRAME_LEN,
            offloads: Offloads::NONE,
            rx_checksum: false,
            carrier: true,
            link_error: None,
            frames: 0,
            dropped: 0,
            no_room: 0,
            blocked: false,
            wanted: false,
            asked: Asked::default(),
            paths: Paths::default(),
            datagram_paths: Paths::default(),
            ident: 0,
            fragmenting: false,
            watched: None,
            tally: None,
            board: None,
            run: None,
            scratch: Vec::new(),
        }
    }

    /// What smoltcp is told of the device. It copies this once, when an
    /// `Interface` is made.
    pub(crate) fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = ETHERNET_LEN + self.mtu;
        let tx_checksum = self.offloads.contains(Offloads::CHECKSUM);
        caps.checksum.tcp = match (self.rx_checksum, tx_checksum) {
            (false, false) => Checksum::Both,
            (false, true) => Checksum::Rx,
            (true, false) => Checksum::Tx,
            (true, true) => Checksum::None,
        };
        // A UDP datagram may be cut into fragments, whose checksum nobody could
        // finish: it is always written.
        caps.checksum.udp = if self.rx_checksum {
            Checksum::Tx
        } else {
            Checksum::Both
        };
        if self.segments() {
            caps.segmentation.tcpv4 = NonZeroUsize::new(self.max_frame_len());
        }
        caps
    }

    fn segments(&self) -> bool {
        self.offloads
            .contains(Offloads::CHECKSUM.union(Offloads::TSO4))
    }

    /// Longest frame that smoltcp may build.
    pub(crate) fn max_frame_len(&self) -> usize {
        match self.segments() {
            // A super-frame may be longer than a packet, not than the link carries.
            true => MAX_SUPER_FRAME.min(self.link_frame_len.max(ETHERNET_LEN + self.mtu)),
            false => ETHERNET_LEN + self.mtu,
        }
    }

    /// A part of a segment's data was sent, of what may have been sent before.
    pub(crate) fn sent_part(&mut self, tcp: &TcpHeader, from: usize, to: usize) {
        // Offsets in a frame, which is shorter than 2³².
        let (from, to) = (
            tcp.seq.wrapping_add(from as u32),
            tcp.seq.wrapping_add(to as u32),
        );
        let board = self.board.as_deref_mut();
        if let Some(board) = board.filter(|board| after(board.fresh(), from)) {
            board.resent(from, to);
            if let Some(tally) = &mut self.tally {
                tally.chosen(to);
            }
        }
    }

    /// What a packet is called that routers may cut; no two of 65,536 the same.
    pub(crate) fn next_ident(&mut self) -> u16 {
        self.ident = self.ident.wrapping_add(1);
        self.ident
    }

    /// The longest IP packet that a datagram to `to` may be without being cut.
    pub(crate) fn datagram_mtu(&self, to: &IpAddress) -> usize {
        let narrow = [&self.paths, &self.datagram_paths];
        let narrow = narrow.into_iter().filter_map(|paths| paths.mtu(to)).min();
        narrow.map_or(self.mtu, |mtu| mtu.min(self.mtu))
    }

    fn unplugged(&self) -> bool {
        !self.carrier || self.link_error.is_some()
    }
}

/// The sending side, for as long as one call lasts.
pub(crate) struct Wire<'a> {
    pub(crate) tx: &'a mut dyn FrameTx,
    pub(crate) state: &'a mut TxState,
}

impl Wire<'_> {
    /// Whether a frame of `len` bytes finds room (or vanishes on an unplugged
    /// cable). If not, remembers that somebody waits.
    pub(crate) fn room(&mut self, len: usize) -> bool {
        if self.state.unplugged() {
            return true;
        }
        match self.tx.reserve(len.min(self.tx.max_frame_len())) {
            Ok(Some(_)) => true,
            Ok(None) => {
                self.state.blocked = true;
                false
            }
            Err(error) => {
                self.state.link_error = Some(error);
                true
            }
        }
    }

    /// Sends a frame that needs nothing done to it.
    pub(crate) fn send(
        &mut self,
        len: usize,
        write: impl FnOnce(&mut [u8]),
    ) -> Result<(), SendError> {
        if len < ETHERNET_LEN || len > self.tx.max_frame_len() {
            return Err(SendError::Length);
        }
        if self.state.unplugged() {
            self.state.dropped += 1;
            return Ok(());
        }
        match self.tx.reserve(len) {
            Ok(Some(room)) if room.len() >= len => {
                write(&mut room[..len]);
                self.state.run = None;
                self.tx.commit(len, OffloadHeader::NONE);
                self.state.frames += 1;
                Ok(())
            }
            Ok(_) => {
                self.state.no_room += 1;
                Err(SendError::NoRoom)
            }
            Err(error) => {
                self.state.link_error = Some(error);
                self.state.dropped += 1;
                Ok(())
            }
        }
    }
}

/// No frame in, none out: what a socket wants to do, it has done but for sending.
pub(crate) struct NoDevice<'a>(pub(crate) &'a TxState);

impl Device for NoDevice<'_> {
    type RxToken<'t>
        = RxToken<'t>
    where
        Self: 't;
    type TxToken<'t>
        = TxToken<'t>
    where
        Self: 't;

    fn receive(&mut self, _now: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        None
    }

    fn transmit(&mut self, _now: Instant) -> Option<TxToken<'_>> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.0.capabilities()
    }
}

/// One frame in, any number out: the device for one call of smoltcp.
pub(crate) struct FrameDevice<'a> {
    /// The received frame, if the call is about one.
    pub(crate) frame: Option<&'a [u8]>,
    pub(crate) wire: Wire<'a>,
}

impl Device for FrameDevice<'_> {
    type RxToken<'t>
        = RxToken<'t>
    where
        Self: 't;
    type TxToken<'t>
        = TxToken<'t>
    where
        Self: 't;

    fn receive(&mut self, _now: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        // Whoever feeds a frame has made sure that an answer finds room.
        let frame = self.frame.take()?;
        Some((RxToken { frame }, TxToken::new(&mut self.wire)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<TxToken<'_>> {
        self.wire.state.wanted = true;
        let len = self.wire.state.max_frame_len();
        self.wire.room(len).then(|| TxToken::new(&mut self.wire))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.wire.state.capabilities()
    }
}

/// The received frame.
pub(crate) struct RxToken<'t> {
    frame: &'t [u8],
}

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.frame)
    }
}

/// Room for one frame.
pub(crate) struct TxToken<'t> {
    tx: &'t mut dyn FrameTx,
    state: &'t mut TxState,
    meta: PacketMeta,
}

impl<'t> TxToken<'t> {
    fn new(wire: &'t mut Wire<'_>) -> Self {
        Self {
            tx: &mut *wire.tx,
            state: &mut *wire.state,
            meta: PacketMeta::default(),
        }
    }
}

impl phy::TxToken for TxToken<'_> {
    fn set_meta(&mut self, meta: PacketMeta) {
        self.meta = meta;
    }

    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let Self { tx, state, meta } = self;
        let counter = if state.unplugged() {
            &mut state.dropped
        } else if len > tx.max_frame_len() {
            &mut state.no_room
        } else {
            match tx.reserve(len) {
                Ok(Some(room)) if room.len() >= len => {
                    let frame = &mut room[..len];
                    frame[..len.min(CLEARED)].fill(0);
                    let result = write(frame);
                    let (offload, narrow) = finish(frame, meta, state);
                    if let Some(parts) = narrow {
                        if parts.next(state, 0, len - parts.data_at).is_some() {
                            state.scratch.clear();
                            state.scratch.extend_from_slice(frame);
                            parts.send(tx, state);
                        }
                        return result;
                    }
                    let run = Run::begin(frame, state.offloads);
                    let run = match offload.gso_size {
                        0 => run,
                        size => run.map(|run| run.cut_into(size.into())),
                    };
                    let longer = state.run.and_then(|last| last.with(frame, state.offloads));
                    if let Some(longer) = longer
                        && let Some(whole) = tx.join(longer.head_len(), len, longer.offload())
                    {
                        longer.write_headers(whole);
                        state.run = Some(longer);
                        return result;
                    }
                    state.run = run;
                    tx.commit(len, offload);
                    state.frames += 1;
                    return result;
                }
                Ok(_) => &mut state.no_room,
                Err(error) => {
                    state.link_error = Some(error);
                    &mut state.dropped
                }
            }
        };
        // smoltcp must write somewhere; the frame is lost, as frames may be. The socket
        // believes it sent, so it is remembered as the others are.
        *counter += 1;
        let mut frame = core::mem::take(&mut state.scratch);
        frame.clear();
        frame.resize(len, 0);
        let result = write(&mut frame);
        if let (_, Some(parts)) = finish(&mut frame, meta, state) {
            parts.lose(state, len - parts.data_at);
        }
        state.scratch = frame;
        result
    }
}

/// Looks at a frame that smoltcp wrote: remembers what others need to know and
/// says what is left to the receiver of the frame, and how to cut it if that is left to
/// nobody.
fn finish(
    frame: &mut [u8],
    meta: PacketMeta,
    state: &mut TxState,
) -> (OffloadHeader, Option<Parts>) {
    let offloaded = state.offloads.contains(Offloads::CHECKSUM);
    state.asked.sent(frame);
    // `More fragments` and the offset of IPv4, which smoltcp sends without options.
    let fragment = frame.get(12..14) == Some(&[0x08, 0x00])
        && matches!(frame.get(20..22), Some(&[a, b]) if a & 0x3f != 0 || b != 0);
    if fragment {
        state.fragmenting = true;
    }
    let nothing = (OffloadHeader::NONE, None);
    let narrow = !state.paths.is_empty() || !state.datagram_paths.is_empty();
    if !offloaded && state.watched.is_none() && state.tally.is_none() && !narrow {
        return nothing;
    }
    let Some(Class::Ip(packet)) = classify::classify(frame) else {
        return nothing;
    };
    if narrow
        && let (Kind::Udp { .. }, true) = (packet.kind, packet.is_ipv4())
        && state.datagram_mtu(&packet.dst) < frame.len().saturating_sub(ETHERNET_LEN)
    {
        may_be_cut(frame, state.next_ident());
        return nothing;
    }
    let Kind::Tcp(tcp) = packet.kind else {
        return nothing;
    };
    let old = |board: &Scoreboard| tcp.data_len > 0 && after(board.fresh(), tcp.seq);
    let chosen = state.board.as_deref().is_some_and(old);
    match &mut state.tally {
        Some(tally) if chosen => tally.fresh(&tcp),
        Some(tally) => tally.segment(&tcp),
        None => {}
    }
    if let Some(watched) = &mut state.watched {
        *watched = Some(SentTcp {
            snd_nxt: tcp.seq_end(),
            rcv_nxt: tcp.ack,
        });
    }
    let start = packet.payload.start;
    let len = packet.payload.len();
    let data_at = start + len - tcp.data_len;
    // Headers are shorter than any path's MTU.
    let most = state.paths.mtu(&packet.dst);
    let most = most.map(|mtu| mtu.saturating_sub(data_at - ETHERNET_LEN));
    let most = most.filter(|most| tcp.data_len > *most);
    let (cut_by_host, gso_type) = match packet.is_ipv4() {
        true => (Offloads::TSO4, GSO_TCPV4),
        false => (Offloads::TSO6, GSO_TCPV6),
    };
    let cut_by_host = offloaded && state.offloads.contains(cut_by_host);
    let gso_size = meta.segmentation_offload_size.map(|size| size.get());
    // Shorter than the data of a frame.
    let gso_size = match most {
        Some(most) => Some(gso_size.map_or(most as u16, |size| size.min(most as u16))),
        None => gso_size,
    };
    if chosen || most.is_some() && !cut_by_host {
        let size = gso_size.map_or(tcp.data_len, usize::from);
        let parts = Parts {
            tcp_at: start,
            data_at,
            most: if cut_by_host { tcp.data_len } else { size },
            cut_by_host: gso_size
                .filter(|_| cut_by_host)
                .map(|size| (gso_type, size)),
            chosen: chosen.then_some(tcp),
        };
        return (OffloadHeader::NONE, Some(parts));
    }
    if !offloaded {
        return nothing;
    }
    // The receiver sums from `csum_start` on over this start value.
    let sum = pseudo_header(&packet.src, &packet.dst, len);
    if let Some(field) = frame.get_mut(start + 16..start + 18) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    // No header ends behind the 134th byte of a frame.
    let offload = OffloadHeader {
        flags: FLAG_NEEDS_CSUM,
        gso_type: gso_size.map_or(GSO_NONE, |_| gso_type),
        hdr_len: gso_size.map_or(0, |_| data_at as u16),
        gso_size: gso_size.unwrap_or(0),
        csum_start: start as u16,
        csum_offset: 16,
        num_buffers: 0,
    };
    (offload, None)
}

fn pseudo_header(src: &IpAddress, dst: &IpAddress, len: usize) -> u16 {
    // Both addresses come from one packet, so their versions agree; an IP
    // payload is shorter than 2³².
    checksum::pseudo_header(src, dst, IpProtocol::Tcp, len as u32)
}
