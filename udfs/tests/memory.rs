//! How much memory bytes from elsewhere can make us take: a bound on what is read for each byte, whatever the bytes are.
#![allow(clippy::unwrap_used, missing_docs, unsafe_code)]

use mergeql_udfs::codec::{self, Writer};
use mergeql_udfs::{Type, Value, catalog, frames};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(now, Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    // What is large is moved by the tables of its pages: it is never there twice.
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let now = NOW.fetch_add(size.wrapping_sub(layout.size()), Relaxed).wrapping_add(size.wrapping_sub(layout.size()));
        MOST.fetch_max(now, Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most memory that is held while something runs, beyond what was held before.
fn held<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.load(Relaxed);
    MOST.store(before, Relaxed);
    let result = run();
    (result, MOST.load(Relaxed).saturating_sub(before))
}

/// A value takes 32 bytes, and NULL, the shortest in bytes, one; a vector that grows has up to twice the room that it needs.
const EACH: usize = 64;
/// For errors, and tables that are made once.
const ANYWAY: usize = 256 << 10;
/// What a value may need besides: the table of the largest sketch.
const TABLE: usize = 48 << 20;

fn check(what: &str, bytes: &[u8]) {
    let most = EACH * bytes.len() + ANYWAY;
    let (opened, read) = held(|| catalog::open(bytes));
    assert!(read <= most, "{what}: reading {} bytes took {read}", bytes.len());
    let Ok(state) = opened else { return };
    let (_, resolved) = held(|| state.value().map(|value| value.to_json()));
    assert!(resolved <= most + TABLE, "{what}: the value of {} bytes took {resolved}", bytes.len());
    let (_, shown) = held(|| state.info().to_json());
    assert!(shown <= most + TABLE, "{what}: what is in {} bytes took {shown}", bytes.len());
}

fn golden() -> impl Iterator<Item = (String, Vec<u8>)> {
    include_str!("golden/v0.1.0.tsv").lines().map(|line| {
        let (name, rest) = line.split_once('\t').unwrap();
        let hex = rest.split('\t').next().unwrap();
        (name.to_owned(), (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect())
    })
}

/// One test, for the counts are of the whole process.
#[test]
fn memory_is_bounded_by_the_bytes() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |n: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % n.max(1) as u64) as usize
    };
    for (name, bytes) in golden() {
        check(&name, &bytes);
        let Ok((id, body)) = codec::open(&bytes) else { continue };
        let body = body.into_owned();
        for _ in 0..if body.len() > 10_000 { 20 } else { 200 } {
            let mut broken = body.clone();
            for _ in 0..=random(3) {
                let at = random(broken.len());
                match random(4) {
                    0 => broken.truncate(at),
                    1 if at < broken.len() => broken[at] = random(256) as u8,
                    // A length beyond all bounds.
                    2 => drop(broken.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0x7f])),
                    _ => drop(broken.splice(at..at, [random(256) as u8])),
                }
            }
            check(&name, &codec::seal(id, 0, &broken));
        }
    }
    // Many small things.
    let list = |value: &Value, n: usize| {
        let mut w = Writer::default();
        w.value(&Value::List(vec![value.clone(); n]));
        w.as_bytes().to_vec()
    };
    let register = |value: Vec<u8>| {
        let bound = catalog::find("lww").unwrap().bind(&mergeql_udfs::Call::new(vec![Type::Null])).unwrap();
        let mut partial = bound.partial();
        partial.update(&[Value::Int(0)]).unwrap();
        let state = partial.encode().unwrap();
        let (id, body) = codec::open(&state).unwrap();
        let mut w = Writer::default();
        w.value(&Value::Int(0));
        let at = body.windows(w.as_bytes().len()).rposition(|window| window == w.as_bytes()).unwrap();
        let mut made = body.to_vec();
        made.splice(at..at + w.as_bytes().len(), value);
        codec::seal(id, 0, &made)
    };
    check("a list of NULLs", &register(list(&Value::Null, 300_000)));
    check("a list of lists", &register(list(&Value::List(vec![Value::Int(1)]), 100_000)));
    // Many entries, as states of rows have them: what is read takes little more than it is in bytes, with the copy that the bytes are held
    // against.
    let (int, text) = (Type::INT64, Type::Text);
    for (name, inputs) in [
        ("gset", vec![int.clone()]),
        ("twopset", vec![int.clone(), Type::Boolean]),
        ("counter", vec![int.clone(), text.clone()]),
        ("pncounter", vec![int.clone(), int.clone(), text.clone()]),
        ("bounded", vec![int.clone(), int.clone(), text.clone()]),
        ("vclock", vec![int.clone(), text.clone()]),
        ("dvv", vec![int.clone(), text.clone()]),
        ("orset", vec![text.clone(), text.clone(), int.clone()]),
        ("mvr", vec![int.clone(), text.clone(), int.clone()]),
    ] {
        let mut partial = catalog::find(name).unwrap().bind(&mergeql_udfs::Call::new(inputs.clone())).unwrap().partial();
        for i in 0..20_000 {
            let value = |ty: &Type| match ty {
                Type::Text => Value::text(i.to_string()),
                Type::Boolean => Value::Bool(i % 2 == 0),
                _ => Value::Int(i + 1),
            };
            partial.update(&inputs.iter().map(value).collect::<Vec<_>>()).unwrap();
        }
        let state = partial.encode().unwrap();
        let (_, read) = held(|| catalog::open(&state).unwrap());
        assert!(read <= 8 * state.len() + ANYWAY, "{name}: reading {} bytes took {read}", state.len());
    }
    // The same in a frame of the earlier library: a list of NULLs.
    let mut frame = b"CRDT\x00\x01\x20\x00".to_vec();
    let mut payload = vec![7];
    payload.extend(300_000u32.to_be_bytes());
    payload.extend(vec![0; 300_000]);
    frame.extend((payload.len() as u32).to_be_bytes());
    frame.extend(payload);
    let (_, read) = held(|| frames::from_frame(&frame, None));
    assert!(read <= 2 * EACH * frame.len() + ANYWAY, "a frame of {} bytes took {read}", frame.len());
    // Sketches that claim tables which they do not fill: forty origins, a small one each.
    let mut image = vec![4, 1, 10, 20, 20, 0, 0, 0];
    image.extend(1u32.to_le_bytes());
    image.extend([0; 4]);
    image.extend(1u64.to_le_bytes());
    image.extend(0u64.to_le_bytes());
    image.extend(1u64.to_le_bytes());
    image.extend(1u32.to_le_bytes());
    image.push(b'x');
    let mut empty = vec![2, 1, 18, 1, 0, 0, 0, 0];
    empty.extend(65_536u32.to_le_bytes());
    empty.extend([16, 0xcc, 0x93, 0]);
    for (strategy, image) in [("topk", image), ("countmin", empty)] {
        let types = vec![Type::Bytes, Type::Text];
        let mut partial = catalog::find(strategy).unwrap().bind(&mergeql_udfs::Call::new(types)).unwrap().partial();
        let (_, taken) = held(|| {
            for i in 0..40 {
                partial.update(&[Value::Bytes(image.clone().into()), Value::text(format!("origin {i}"))]).unwrap();
            }
        });
        assert!(taken <= 4 << 20, "{strategy} took {taken}");
        let state = partial.encode().unwrap();
        let (_, read) = held(|| catalog::open(&state).unwrap().value().unwrap());
        assert!(read <= 4 << 20, "{strategy}: {} bytes took {read}", state.len());
    }
}
