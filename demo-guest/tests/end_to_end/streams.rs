//! Guests that share no memory: behind a byte stream.

use host_bridge::child::Helper;
use host_bridge::probe::bulk::{SINK_PORT, SOURCE_PORT, bulk_receive, bulk_send};

use crate::common::{
    BULK, BULK_PATIENCE, Guest, World, guest_command_at, in_private_network, until,
};
use crate::outages::transfers_go_on;
use crate::services::use_everything;

const STREAM: &str = "@end-to-end-stream";
const SETTINGS: &str = "stream = \"@end-to-end-stream\"";

fn guest(world: &World) -> Guest {
    let command = guest_command_at("--stream", STREAM, "server");
    world.attached("server", Helper::spawn(command).unwrap())
}

#[test]
fn every_service_works_behind_a_byte_stream_and_after_the_daemons_end() {
    in_private_network(|| {
        let mut world = World::start(SETTINGS);
        let guest = guest(&world);
        for (seed, &address) in guest.addresses.iter().enumerate() {
            use_everything(address, seed as u64);
        }
        let (to, from) = (guest.v6(SINK_PORT), guest.v4(SOURCE_PORT));
        let sent = std::thread::spawn(move || bulk_send(to, BULK, 1, BULK_PATIENCE).unwrap());
        let received = bulk_receive(from, BULK, 2, BULK_PATIENCE).unwrap();
        assert!(received.checksum_ok && sent.join().unwrap().checksum_ok);
        world.kill_daemon();
        world.start_daemon();
        until("the guest's return", || world.running("server").is_some());
        use_everything(guest.addresses[0], 3);
    });
}

#[test]
fn transfers_of_a_guest_behind_a_byte_stream_go_on_when_the_daemon_is_back() {
    in_private_network(|| {
        let mut world = World::start(SETTINGS);
        let mut guest = guest(&world);
        transfers_go_on(&mut world, &mut guest, "server");
    });
}
