//! The impairment stage on virtual time with fixed seeds.

use std::time::{Duration, Instant};

use host_bridge::counters::{DirectionCounters, DropReason};
use host_bridge::impair::{Enqueued, Impair, ImpairConfig, ImpairParseError, ImpairedFrame};
use proptest::prelude::*;
use shm_link::offload::{FLAG_DATA_VALID, FLAG_NEEDS_CSUM, OffloadHeader};

const MS: Duration = Duration::from_millis(1);

fn config(text: &str) -> ImpairConfig {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A stage on virtual time, with the counters as a pump would keep them and a
/// list of what came out when.
struct Bench {
    start: Instant,
    now: Instant,
    impair: Impair,
    counters: DirectionCounters,
    out: Vec<(Duration, Vec<u8>)>,
}

impl Bench {
    fn new(text: &str) -> Self {
        let start = Instant::now();
        Self {
            start,
            now: start,
            impair: Impair::new(config(text)),
            counters: DirectionCounters::default(),
            out: Vec::new(),
        }
    }

    /// Puts in a frame that carries `number`, `len` bytes long.
    fn send(&mut self, number: u32, len: usize) -> Enqueued {
        let mut bytes = vec![0; len];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        self.counters.frame_in(len);
        let frame = ImpairedFrame {
            offload: OffloadHeader::NONE,
            bytes,
        };
        let outcome = self.impair.enqueue(self.now, frame);
        match outcome {
            Enqueued::Once => {}
            Enqueued::Twice => self.counters.duplicated(),
            Enqueued::Dropped(reason) => self.counters.dropped(reason),
        }
        self.counters.set_held(self.impair.held());
        self.assert_ledger();
        outcome
    }

    fn receive(&mut self) {
        while let Some(frame) = self.impair.poll(self.now) {
            self.counters.set_held(self.impair.held());
            self.counters.frame_out(frame.bytes.len());
            self.out.push((self.now - self.start, frame.bytes));
        }
        self.assert_ledger();
    }

    fn assert_ledger(&self) {
        assert_eq!(self.counters.snapshot().check_ledger(), Ok(()));
    }

    /// Lets `time` pass, waking exactly when the stage asks for it.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.receive();
        while let Some(at) = self.impair.poll_at().filter(|&at| at <= end) {
            let left = (self.impair.held(), self.impair.poll_at());
            self.now = self.now.max(at);
            self.receive();
            assert_ne!(
                left,
                (self.impair.held(), self.impair.poll_at()),
                "a wake-up that changes nothing"
            );
        }
        self.now = end;
    }

    /// Sends `count` frames of 100 bytes, `spacing` apart, and waits for all.
    fn run(&mut self, count: u32, spacing: Duration) {
        for number in 0..count {
            let _ = self.send(number, 100);
            self.pass(spacing);
        }
        self.pass(Duration::from_secs(100));
        assert_eq!(self.impair.held(), 0);
        assert_eq!(self.impair.poll_at(), None);
    }

    fn numbers(&self) -> Vec<u32> {
        self.out
            .iter()
            .map(|(_, bytes)| u32::from_be_bytes(bytes[..4].try_into().unwrap()))
            .collect()
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.counters.snapshot().dropped_for(reason)
    }
}

fn in_order(numbers: &[u32]) -> bool {
    numbers.windows(2).all(|pair| pair[0] <= pair[1])
}

#[test]
fn without_configuration_the_stage_is_transparent() {
    let mut bench = Bench::new("off");
    assert!(bench.impair.is_transparent());
    // Used all the same, it gives back what it got.
    bench.run(100, Duration::ZERO);
    assert_eq!(bench.numbers(), (0..100).collect::<Vec<_>>());
    assert!(bench.impair.is_transparent());
}

#[test]
fn loss_takes_its_share_and_names_it() {
    let mut bench = Bench::new("loss=5%,seed=7");
    bench.run(100_000, Duration::ZERO);
    let lost = bench.dropped(DropReason::ImpairLoss);
    assert!((4_700..5_300).contains(&lost), "{lost}");
    assert_eq!(bench.out.len() as u64, 100_000 - lost);
    assert!(in_order(&bench.numbers()));
}

#[test]
fn certain_loss_loses_everything() {
    let mut bench = Bench::new("loss=100%");
    bench.run(1_000, Duration::ZERO);
    assert_eq!(bench.dropped(DropReason::ImpairLoss), 1_000);
}

#[test]
fn duplication_sends_its_share_twice_in_a_row() {
    let mut bench = Bench::new("dup=2%,seed=7");
    bench.run(100_000, Duration::ZERO);
    let twice = bench.counters.snapshot().duplicated;
    assert!((1_800..2_200).contains(&twice), "{twice}");
    let numbers = bench.numbers();
    assert!(in_order(&numbers));
    let pairs = numbers.windows(2).filter(|pair| pair[0] == pair[1]).count();
    assert_eq!(pairs as u64, twice);
}

/// A frame of zeros, but for its EtherType.
fn frame_of(ethertype: [u8; 2], flags: u8) -> ImpairedFrame {
    let mut bytes = vec![0; 100];
    bytes[12..14].copy_from_slice(&ethertype);
    ImpairedFrame {
        offload: OffloadHeader {
            flags,
            ..OffloadHeader::NONE
        },
        bytes,
    }
}

/// What corruption of this share makes of many such frames.
fn corrupted(config_text: &str, frame: &ImpairedFrame) -> Vec<ImpairedFrame> {
    let mut impair = Impair::new(config(config_text));
    let now = Instant::now();
    let pass = |_| {
        assert_eq!(impair.enqueue(now, frame.clone()), Enqueued::Once);
        impair.poll(now).unwrap()
    };
    (0..100_000).map(pass).collect()
}

#[test]
fn corruption_flips_one_bit_of_an_ip_packet_in_its_share() {
    for ethertype in [[0x08, 0x00], [0x86, 0xdd]] {
        let sent = frame_of(ethertype, 0);
        let flips = corrupted("corrupt=1%,seed=7", &sent)
            .into_iter()
            .map(|got| {
                assert_eq!(got.bytes[..14], sent.bytes[..14]);
                let ones = |bytes: &[u8]| bytes.iter().map(|byte| byte.count_ones()).sum::<u32>();
                [&got.bytes[14..], &got.bytes[14..24], &got.bytes[90..]].map(ones)
            });
        let flips: Vec<[u32; 3]> = flips.collect();
        assert!(flips.iter().all(|[all, ..]| *all <= 1));
        let sum = |which: usize| flips.iter().map(|flips| flips[which]).sum::<u32>();
        assert!((900..1_100).contains(&sum(0)), "{}", sum(0));
        // Both ends of the packet are hit now and then.
        assert!(sum(1) > 0 && sum(2) > 0);
    }
}

#[test]
fn corruption_spares_what_no_checksum_would_reveal() {
    let arp = frame_of([0x08, 0x06], 0);
    let unfinished = frame_of([0x08, 0x00], FLAG_NEEDS_CSUM);
    for sent in [arp, unfinished] {
        assert!(
            corrupted("corrupt=100%", &sent)
                .iter()
                .all(|got| *got == sent)
        );
    }
}

#[test]
fn nobody_vouches_for_a_packet_that_was_corrupted() {
    let verified = frame_of([0x86, 0xdd], FLAG_DATA_VALID);
    for got in corrupted("corrupt=50%,seed=3", &verified) {
        assert_eq!(got.offload.flags != 0, got == verified);
    }
}

#[test]
fn delay_is_exact_without_jitter() {
    let mut bench = Bench::new("delay=20ms");
    bench.run(50, MS);
    let times: Vec<Duration> = bench.out.iter().map(|(at, _)| *at).collect();
    assert_eq!(times, (0..50).map(|i| (20 + i) * MS).collect::<Vec<_>>());
}

#[test]
fn jitter_spreads_the_delay_and_keeps_the_order() {
    let mut bench = Bench::new("delay=20ms,jitter=5ms,seed=7");
    // Far enough apart that no frame has to wait for the one before it.
    bench.run(2_000, 20 * MS);
    let delays: Vec<Duration> = (0u32..)
        .zip(&bench.out)
        .map(|(i, (at, _))| *at - i * 20 * MS)
        .collect();
    assert!(delays.iter().all(|d| (15 * MS..=25 * MS).contains(d)));
    let mean = delays.iter().sum::<Duration>() / 2_000;
    assert!(mean.abs_diff(20 * MS) < MS / 5, "{mean:?}");
    assert!(delays.iter().any(|d| *d < 16 * MS) && delays.iter().any(|d| *d > 24 * MS));

    let mut dense = Bench::new("delay=20ms,jitter=20ms,seed=7");
    dense.run(2_000, MS / 10);
    assert_eq!(dense.numbers(), (0..2_000).collect::<Vec<_>>());
}

#[test]
fn reordering_lets_exactly_gap_frames_pass() {
    let mut bench = Bench::new("reorder=1%,gap=3,seed=7");
    bench.run(100_000, MS / 10);
    let numbers = bench.numbers();
    // A frame set aside lands three places late, a little more when another
    // one was set aside close by.
    let late: Vec<usize> = (0usize..)
        .zip(&numbers)
        .filter_map(|(place, &number)| place.checked_sub(number as usize).filter(|&d| d > 0))
        .collect();
    assert!((900..1_100).contains(&late.len()), "{}", late.len());
    let exact = late.iter().filter(|&&places| places == 3).count();
    assert!(exact * 10 > late.len() * 9, "{exact} of {}", late.len());
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..100_000).collect::<Vec<_>>(), "nothing is lost");
}

#[test]
fn a_frame_nobody_overtakes_does_not_wait_for_ever() {
    let mut bench = Bench::new("reorder=100%,delay=5ms");
    let _ = bench.send(1, 100);
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.out.len(), 1);
    assert_eq!(bench.out[0].0, 15 * MS);
}

#[test]
fn the_rate_is_kept_and_the_burst_goes_first() {
    // 10 Mbit/s, 1,250-byte frames: one per millisecond after a burst of ten.
    let mut bench = Bench::new("rate=10mbit,burst=12500b");
    for number in 0..200 {
        assert_eq!(bench.send(number, 1_250), Enqueued::Once);
    }
    bench.pass(Duration::ZERO);
    // One more than the burst: a frame may start as soon as there is room for
    // its first byte.
    assert_eq!(bench.out.len(), 11);
    bench.pass(100 * MS);
    assert_eq!(bench.out.len(), 111);
    assert!(in_order(&bench.numbers()));
    bench.pass(100 * MS);
    assert_eq!(bench.out.len(), 200);
}

#[test]
fn waking_late_costs_no_throughput_within_the_burst() {
    let mut bench = Bench::new("rate=100mbit");
    for number in 0..1_000 {
        let _ = bench.send(number, 1_250);
    }
    // Only every second millisecond, whatever poll_at says.
    for _ in 0..20 {
        bench.receive();
        bench.now += 2 * MS;
    }
    // 40 ms at 10 frames per millisecond, give or take the burst of 5 ms.
    assert!(
        (380..=450).contains(&bench.out.len()),
        "{}",
        bench.out.len()
    );
}

#[test]
fn a_full_queue_drops_and_says_why() {
    let mut delayed = Bench::new("delay=1s,limit=10");
    let mut limited = Bench::new("rate=1mbit,limit=10");
    for bench in [&mut delayed, &mut limited] {
        for number in 0..30 {
            let _ = bench.send(number, 1_000);
        }
        assert_eq!(bench.impair.held(), 10);
        bench.pass(Duration::from_secs(10));
        assert_eq!(bench.out.len(), 10);
    }
    assert_eq!(delayed.dropped(DropReason::ImpairQueue), 20);
    assert_eq!(limited.dropped(DropReason::RateLimit), 20);
}

#[test]
fn memory_is_bounded_whatever_the_limit() {
    let mut bench = Bench::new("delay=60s,limit=100000");
    for number in 0..2_000 {
        let _ = bench.send(number, 65_550);
    }
    let held = bench.impair.held();
    assert_eq!(held, (64 << 20) / 65_550);
    assert_eq!(bench.dropped(DropReason::ImpairQueue), 2_000 - held as u64);
}

#[test]
fn no_duplicate_is_made_when_there_is_room_for_one_only() {
    let mut bench = Bench::new("dup=100%,delay=1ms,limit=3");
    assert_eq!(bench.send(0, 100), Enqueued::Twice);
    assert_eq!(bench.send(1, 100), Enqueued::Once);
    assert_eq!(
        bench.send(2, 100),
        Enqueued::Dropped(DropReason::ImpairQueue)
    );
}

#[test]
fn the_same_seed_gives_the_same_frames_at_the_same_times() {
    let text = "loss=5%,delay=2ms,jitter=1ms,reorder=3%,gap=2,dup=1%,corrupt=1%,rate=5mbit";
    let run = |seed: u64| {
        let mut bench = Bench::new(&format!("{text},seed={seed}"));
        bench.run(3_000, MS / 5);
        bench.out
    };
    let first = run(42);
    assert_eq!(first, run(42));
    assert_ne!(first, run(43));
}

#[test]
fn a_seed_means_the_same_losses_in_every_release() {
    let mut bench = Bench::new("loss=10%,seed=1");
    let lost: Vec<u32> = (0..60)
        .filter(|&number| bench.send(number, 100) != Enqueued::Once)
        .collect();
    assert_eq!(lost, PINNED_LOSSES);
}

/// What seed 1 loses of the first 60 frames at 10 %.
const PINNED_LOSSES: &[u32] = &[3, 8, 21, 31, 37, 45, 47, 48, 52, 57];

#[test]
fn another_effect_does_not_change_which_frames_are_lost() {
    let losses = |text: &str| {
        let mut bench = Bench::new(text);
        (0..2_000)
            .filter(|&number| bench.send(number, 100) == Enqueued::Dropped(DropReason::ImpairLoss))
            .collect::<Vec<u32>>()
    };
    let alone = losses("loss=5%,seed=3,limit=100000");
    assert!(!alone.is_empty());
    assert_eq!(
        alone,
        losses("loss=5%,seed=3,limit=100000,dup=10%,corrupt=10%,reorder=10%,delay=3ms,jitter=1ms")
    );
}

#[test]
fn a_live_change_keeps_what_is_held_and_drains_before_it_is_transparent() {
    let mut bench = Bench::new("delay=50ms");
    let _ = bench.send(0, 100);
    bench.pass(10 * MS);
    bench.impair.set_config(ImpairConfig::default());
    assert!(!bench.impair.is_transparent(), "a frame is still held");
    // What comes later must not overtake it.
    let _ = bench.send(1, 100);
    bench.pass(MS);
    assert!(bench.out.is_empty());
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.numbers(), [0, 1]);
    assert!(bench.impair.is_transparent());
}

#[test]
fn a_live_change_of_rate_applies_to_what_is_held() {
    let mut bench = Bench::new("rate=1kbit,burst=64b");
    for number in 0..10 {
        let _ = bench.send(number, 1_250);
    }
    bench.pass(MS);
    assert_eq!(bench.out.len(), 1);
    bench.impair.set_config(config("rate=10mbit,burst=64b"));
    bench.pass(20 * MS);
    assert_eq!(bench.out.len(), 10);
}

#[test]
fn clearing_gives_the_number_of_frames_to_account_for() {
    let mut bench = Bench::new("delay=50ms,reorder=50%,gap=9,seed=5");
    for number in 0..20 {
        let _ = bench.send(number, 100);
    }
    bench.pass(51 * MS);
    let held = bench.impair.held();
    assert!(held > 0);
    assert_eq!(bench.impair.clear(), held);
    bench.counters.set_held(0);
    bench.counters.dropped_many(DropReason::Closed, held as u64);
    bench.assert_ledger();
    assert_eq!(bench.impair.poll_at(), None);
}

#[test]
fn an_empty_frame_survives_corruption() {
    let now = Instant::now();
    let mut impair = Impair::new(config("corrupt=100%"));
    let empty = ImpairedFrame {
        offload: OffloadHeader::NONE,
        bytes: Vec::new(),
    };
    assert_eq!(impair.enqueue(now, empty.clone()), Enqueued::Once);
    assert_eq!(impair.poll(now), Some(empty));
}

#[test]
fn the_text_form_reads_back_as_it_was_written() {
    for text in [
        "off",
        "loss=5%",
        "loss=0.0001%,delay=20ms,jitter=5ms,reorder=1%,gap=3,dup=0.5%,corrupt=0.1%,rate=10mbit,burst=32kib,limit=50,seed=7",
        "delay=1500us,rate=9600bit",
        "delay=1s,jitter=7ns",
        "loss=100%,seed=18446744073709551615",
        "rate=1000gbit,burst=1024mib",
    ] {
        let parsed = config(text);
        assert_eq!(config(&parsed.to_string()), parsed, "{text}");
    }
    assert_eq!(
        config("loss = 5.50 % , delay=1000us").to_string(),
        "loss=5.5%,delay=1ms"
    );
    assert_eq!(config("").to_string(), "off");
    assert_eq!(config("gap=3,reorder=1%").to_string(), "reorder=1%,gap=3");
}

#[test]
fn a_bad_text_says_what_is_wrong_with_it() {
    for (text, expected) in [
        ("lots=5%", "\"lots\" is no impairment"),
        ("loss", "\"loss\" has no value"),
        ("loss=5%,", "\"\" has no value"),
        ("loss=5%,loss=6%", "loss is given twice"),
        ("loss=5", "loss=5: a percentage"),
        ("loss=101%", "a percentage"),
        ("loss=-1%", "a percentage"),
        ("loss=+1%", "a percentage"),
        ("loss=0.00001%", "a percentage"),
        ("loss=%", "a percentage"),
        ("loss=1.%", "a percentage"),
        ("delay=20", "a whole time"),
        ("delay=61s", "a whole time"),
        ("delay=99999999999999999999s", "a whole time"),
        ("jitter=ms", "a whole time"),
        ("rate=0mbit", "a rate"),
        ("rate=2000gbit", "a rate"),
        ("rate=10mbps", "a rate"),
        ("rate=1mbit,burst=1b", "a size"),
        ("burst=32kib", "burst does nothing without rate"),
        ("gap=3", "gap does nothing without reorder"),
        ("reorder=1%,gap=0", "a number of frames"),
        ("limit=100001", "a number of frames"),
        ("seed=-1", "a whole number"),
    ] {
        let error: ImpairParseError = text.parse::<ImpairConfig>().expect_err(text);
        assert!(error.to_string().contains(expected), "{text}: {error}");
    }
}

#[test]
fn the_configuration_travels_as_text_in_json() {
    let original = config("loss=5%,rate=10mbit");
    let json = serde_json::to_string(&original).unwrap();
    assert_eq!(json, "\"loss=5%,rate=10mbit\"");
    assert_eq!(
        serde_json::from_str::<ImpairConfig>(&json).unwrap(),
        original
    );
    assert!(serde_json::from_str::<ImpairConfig>("\"loss=5\"").is_err());
}

/// A configuration's text, as an administrator could write it.
fn any_text() -> impl Strategy<Value = String> {
    let chance =
        || (0u32..=1_000_000).prop_map(|ppm| format!("{}.{:04}%", ppm / 10_000, ppm % 10_000));
    let optional = |key: &'static str, value: BoxedStrategy<String>| {
        proptest::option::of(value)
            .prop_map(move |value| value.map(|value| format!("{key}={value}")))
    };
    (
        optional("loss", chance().boxed()),
        optional("dup", chance().boxed()),
        optional("reorder", chance().boxed()),
        optional("corrupt", chance().boxed()),
        optional(
            "delay",
            (0u64..50_000_000).prop_map(|ns| format!("{ns}ns")).boxed(),
        ),
        optional(
            "jitter",
            (0u64..50_000_000).prop_map(|ns| format!("{ns}ns")).boxed(),
        ),
        optional(
            "rate",
            (1_000u64..1_000_000_000)
                .prop_map(|b| format!("{b}bit"))
                .boxed(),
        ),
        optional("limit", (1u32..200).prop_map(|n| n.to_string()).boxed()),
        optional("seed", any::<u64>().prop_map(|n| n.to_string()).boxed()),
    )
        .prop_map(|(a, b, c, d, e, f, g, h, i)| {
            [a, b, c, d, e, f, g, h, i]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(",")
        })
}

proptest! {
    #[test]
    fn any_configuration_reads_back(text in any_text()) {
        let parsed = config(&text);
        prop_assert_eq!(config(&parsed.to_string()), parsed);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "[a-z=%,.0-9 -]{0,40}|\\PC{0,40}") {
        let _ = text.parse::<ImpairConfig>();
    }

    #[test]
    fn every_frame_is_accounted_for_under_any_configuration(
        texts in proptest::collection::vec(any_text(), 1..4),
        steps in proptest::collection::vec((60usize..1_600, 0u64..3_000_000), 1..200),
    ) {
        let mut bench = Bench::new(&texts[0]);
        for (i, &(len, wait_ns)) in steps.iter().enumerate() {
            if i % 50 == 49 {
                bench.impair.set_config(config(&texts[i / 50 % texts.len()]));
            }
            // Bench checks the ledger at each step.
            let _ = bench.send(i as u32, len);
            bench.pass(Duration::from_nanos(wait_ns));
        }
        // 200 frames of 1,600 bytes twice at 1 kbit/s take 5,120 s.
        bench.pass(Duration::from_secs(10_000));
        prop_assert_eq!(bench.impair.held(), 0);
        prop_assert_eq!(bench.impair.poll_at(), None);
    }
}

#[test]
fn a_gap_without_reordering_is_written_so_that_it_is_understood() {
    let config: ImpairConfig = "reorder=0%,gap=4,loss=5%".parse().unwrap();
    assert_eq!(config.to_string(), "loss=5%,reorder=0%,gap=4");
    assert_eq!(config.to_string().parse(), Ok(config));
}
