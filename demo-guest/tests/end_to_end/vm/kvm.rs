//! The machine under KVM: its interrupt controller, timers and doorbells are the
//! host kernel's, not QEMU's.
//!
//! It needs a KVM that executes the image, and says so where there is none. A KVM
//! that emulates every instruction will do, so little is carried.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use host_bridge::probe::bulk::{SINK_PORT, SOURCE_PORT, bulk_receive, bulk_send};
use host_bridge::probe::http::http_get;

use super::machine::{Processor, Vm, qemu_is_there};
use crate::common::{BULK_PATIENCE, PATIENCE, World, answers, in_private_network, until};

const BYTES: u64 = 50_000;

#[test]
fn a_machine_under_kvm_serves_connects_sleeps_and_comes_back_where_kvm_executes_it() {
    if !qemu_is_there() {
        return;
    }
    let Some(kvm) = Processor::kvm() else {
        // Not `skip`: no privilege makes a processor virtual.
        eprintln!("skipped: needs a KVM that executes the image; TCG was tested");
        return;
    };
    in_private_network(move || {
        let world = World::start("max_guests = 1");
        let listener = TcpListener::bind("0.0.0.0:8080").unwrap();
        let mut vm = Vm::boot_on(&kvm, &world, "virtual", "connect=10.77.0.1:8080");
        let (mut asking, _) = listener.accept().unwrap();
        asking.write_all(b"HTTP/1.0 204 Welcome\r\n\r\n").unwrap();
        asking.shutdown(Shutdown::Write).unwrap();
        let mut request = String::new();
        let _ = asking.read_to_string(&mut request);
        assert!(request.starts_with("GET / HTTP/1.0\r\n"), "{request}");
        vm.until_said("answered", 1);

        let page = http_get(vm.guest.v6(80), "/", PATIENCE).unwrap();
        assert_eq!(page.status, 200);
        for address in [vm.guest.v4(SINK_PORT), vm.guest.v6(SINK_PORT)] {
            let sent = bulk_send(address, BYTES, 5, BULK_PATIENCE).unwrap();
            assert!(sent.checksum_ok, "{sent:?}");
        }
        let received = bulk_receive(vm.guest.v4(SOURCE_PORT), BYTES, 6, BULK_PATIENCE).unwrap();
        assert!(received.checksum_ok, "{received:?}");

        // Where each instruction is emulated, two frames of the kernel's own
        // cost some milliseconds.
        std::thread::sleep(Duration::from_millis(500));
        let before = vm.cpu_ticks();
        std::thread::sleep(Duration::from_secs(3));
        let used = vm.cpu_ticks() - before;
        assert!(used <= 6, "{used} ticks of 10 ms in 3 s");

        let mut old = TcpStream::connect_timeout(&vm.guest.v4(7), PATIENCE).unwrap();
        old.set_read_timeout(Some(PATIENCE)).unwrap();
        let sink = vm.guest.v4(SINK_PORT);
        let transfer = std::thread::spawn(move || bulk_send(sink, 1 << 40, 1, BULK_PATIENCE));
        std::thread::sleep(Duration::from_millis(300));
        vm.monitor("system_reset");
        vm.until_said("configured: MTU", 2);
        until("an answer", || answers(vm.guest.addresses[0]));
        assert!(transfer.join().unwrap().is_err());
        old.write_all(b"after").unwrap();
        assert!(old.read_exact(&mut [0; 5]).is_err());
        let sent = bulk_send(vm.guest.v4(SINK_PORT), BYTES, 7, BULK_PATIENCE).unwrap();
        assert!(sent.checksum_ok, "{sent:?}");

        drop((vm, listener));
        until("an empty daemon", || world.ports().is_empty());
        let next = Vm::boot_on(&kvm, &world, "next", "");
        let sent = bulk_send(next.guest.v6(SINK_PORT), BYTES, 8, BULK_PATIENCE).unwrap();
        assert!(sent.checksum_ok, "{sent:?}");
    });
}
