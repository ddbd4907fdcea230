//! The log on the first serial port, where there is one.

use core::fmt::{self, Write};

use log::{LevelFilter, Log, Metadata, Record};
use uart_16550::backend::PioBackend;
use uart_16550::{Config, Uart16550};

use crate::lock::Mutex;

const COM1: u16 = 0x3f8;

struct Serial(Mutex<Option<Uart16550<PioBackend>>>);

static SERIAL: Serial = Serial(Mutex::new(None));

/// Writes to the port, byte by byte; each takes an exit of the machine.
struct Out<'a>(&'a mut Uart16550<PioBackend>);

impl Write for Out<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for line in text.split_inclusive('\n') {
            match line.strip_suffix('\n') {
                Some(line) => {
                    self.0.send_bytes_exact(line.as_bytes());
                    self.0.send_bytes_exact(b"\r\n");
                }
                None => self.0.send_bytes_exact(line.as_bytes()),
            }
        }
        Ok(())
    }
}

impl Log for Serial {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        say(format_args!(
            "[{:5} {}] {}\n",
            record.level(),
            record.target(),
            record.args()
        ));
    }

    fn flush(&self) {}
}

/// Opens the port and makes it the log's. Without a port nothing is said.
pub fn init(level: LevelFilter) {
    // SAFETY: nobody else in this program uses the port.
    if let Ok(mut uart) = unsafe { Uart16550::new_port(COM1) }
        && uart.init(Config::default()).is_ok()
    {
        *SERIAL.0.lock() = Some(uart);
    }
    log::set_max_level(level);
    // It was not set before.
    let _ = log::set_logger(&SERIAL);
}

/// Says something, whatever the log's level. If a panic comes in the middle of
/// another line, it is said in a line of its own.
pub fn say(words: fmt::Arguments<'_>) {
    if let Some(mut serial) = SERIAL.0.try_lock() {
        if let Some(uart) = serial.as_mut() {
            let _ = Out(uart).write_fmt(words);
        }
        return;
    }
    // SAFETY: one processor, and whoever holds the port panics right now.
    unsafe { SERIAL.0.force_unlock(()) };
    say(format_args!("\n{words}"));
}
