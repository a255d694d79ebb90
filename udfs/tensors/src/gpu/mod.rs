//! Tiles on a GPU: the [`Program`] of a kernel as a compute shader (`kernels.wgsl`), bit for bit what the CPU gives.
//!
//! A device is believed only after a probe of many odd and ordinary numbers came out as the CPU's, and a tile only if no number in it left
//! the range where devices agree (they may take subnormal numbers for zero): all others are the CPU's to compute. So the backend never
//! changes a byte.

use crate::method::Tile;
use crate::program::{Inputs, Program, Rule, Thinned, in_range};
use mergeql_udfs::{Code, Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

mod probe;

/// A device that passed the probe.
pub struct Gpu {
    /// What it calls itself.
    pub name: String,
    /// Whether it is a program on the CPU: right, and slower than the CPU itself.
    pub software: bool,
    device: wgpu::Device,
    queue: wgpu::Queue,
    combine: wgpu::ComputePipeline,
    vectors: wgpu::ComputePipeline,
    entries: wgpu::ComputePipeline,
    /// The most bytes that the inputs of a tile take.
    most: u64,
    /// Memory that no tile is in: as many as tiles were ever computed at once.
    idle: Mutex<Vec<Buffers>>,
    computed: AtomicU64,
}

/// Memory for one tile, kept from tile to tile: while one is computed another travels.
struct Buffers {
    /// For this many bytes of inputs and of results.
    sizes: (u64, u64),
    /// The machine's, mapped while no tile is in it: the settings, then the inputs.
    write: wgpu::Buffer,
    settings: wgpu::Buffer,
    inputs: wgpu::Buffer,
    merged: wgpu::Buffer,
    odd: wgpu::Buffer,
    /// The machine's: the results, then what was odd.
    read: wgpu::Buffer,
}

/// Models that the settings have room for.
const MOST_MODELS: usize = 250;
const SETTINGS: u64 = 4 * (HEAD + 16 * MOST_MODELS) as u64;
/// Words before those of the models.
const HEAD: usize = 12;

static GPU: LazyLock<std::result::Result<Gpu, String>> = LazyLock::new(|| pollster::block_on(open()));

/// The device of this machine.
///
/// # Errors
/// `unsupported`, with what is missing.
pub fn gpu() -> Result<&'static Gpu> {
    let none = |why| Error::new(Code::Unsupported, format!("there is no GPU here that merges as the CPU does: {why}"));
    GPU.as_ref().map_err(none)
}

async fn open() -> std::result::Result<Gpu, String> {
    let mut about = wgpu::InstanceDescriptor::new_without_display_handle();
    about.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    let instance = wgpu::Instance::new(about);
    let wanted = wgpu::RequestAdapterOptions { power_preference: wgpu::PowerPreference::HighPerformance, ..Default::default() };
    let adapter = instance.request_adapter(&wanted).await.map_err(|e| e.to_string())?;
    let (info, limits) = (adapter.get_info(), adapter.limits());
    let largest = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(1 << 30);
    let required_limits =
        wgpu::Limits { max_storage_buffer_binding_size: largest, max_buffer_size: largest, ..wgpu::Limits::downlevel_defaults() };
    let device = wgpu::DeviceDescriptor { label: Some("mergeql"), required_limits, ..Default::default() };
    let (device, queue) = adapter.request_device(&device).await.map_err(|e| e.to_string())?;
    // What fails on the device gives no result, and is computed on the CPU: not a panic.
    device.on_uncaptured_error(std::sync::Arc::new(|_| {}));
    let source = wgpu::ShaderSource::Wgsl(include_str!("kernels.wgsl").into());
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: Some("kernels"), source });
    let pipeline = |entry: &str| {
        device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(entry),
            layout: None,
            module: &module,
            entry_point: Some(entry),
            compilation_options: Default::default(),
            cache: None,
        })
    };
    let software = info.device_type == wgpu::DeviceType::Cpu;
    let (combine, vectors, entries) = (pipeline("combine"), pipeline("vectors"), pipeline("entries"));
    let gpu = Gpu {
        name: info.name,
        software,
        device,
        queue,
        combine,
        vectors,
        entries,
        // One buffer holds the settings and the inputs.
        most: largest.saturating_sub(SETTINGS),
        idle: Mutex::default(),
        computed: AtomicU64::new(0),
    };
    probe::check(&gpu)?;
    Ok(gpu)
}

/// The words of a program for a tile of so many inputs that begins at an element.
fn settings(program: &Program, start: usize, n: usize, inputs: usize) -> Vec<u32> {
    let halves = |v: usize| [v as u32, (v as u64 >> 32) as u32];
    let [low, high] = halves(start);
    let mut words = vec![0; HEAD];
    (words[0], words[4], words[5]) = (n as u32, low, high);
    match program {
        Program::Combine { inputs, factors } => {
            words[1] = factors.len() as u32;
            words[2] = u32::from(*inputs == Inputs::Tasks);
            for factor in factors {
                words.extend([factor.to_bits(), 0, 0, 0, 0, 0, 0, 0]);
            }
        }
        Program::Vectors { weights, scales, thin, sum } => {
            words[1] = weights.len() as u32;
            words[2] = 1 | u32::from(sum.consensus) << 1 | u32::from(sum.normalize) << 2;
            words[6] = sum.factor(weights).to_bits();
            for ((weight, scale), thin) in weights.iter().zip(scales).zip(thin) {
                let mut own = [0u32; 16];
                own[1] = (weight * scale).to_bits();
                own[9] = weight.to_bits();
                let mut cut = |at: usize, cut: (u32, usize)| {
                    let [low, high] = halves(cut.1);
                    own[at..at + 3].copy_from_slice(&[cut.0, low, high]);
                };
                match thin {
                    Thinned::All => {}
                    Thinned::Greatest(at, offset) => {
                        if let Some(at) = at.place() {
                            cut(3, at);
                            own[6..8].copy_from_slice(&halves(*offset));
                            own[0] = 1;
                        }
                    }
                    Thinned::Between(from, to) => {
                        // Before everything lies nothing, and a key that no magnitude has lies behind everything.
                        cut(3, from.place().unwrap_or((u32::MAX, 0)));
                        cut(6, to.place().unwrap_or((u32::MAX, 0)));
                        own[0] = 2;
                    }
                    Thinned::Random { stream, limit, factor } => {
                        own[0] = 3;
                        own[2] = factor.to_bits();
                        own[3..7].copy_from_slice(&stream.words());
                        (own[7], own[8]) = (*limit as u32, u32::from(*limit > u64::from(u32::MAX)));
                    }
                }
                words.extend(own);
            }
        }
        Program::Entries { rule, models } => {
            words[1] = (inputs - usize::from(rule.based())) as u32;
            let mut own = |number: u32, a: f32, b: u32| (words[2], words[6], words[7]) = (number, a.to_bits(), b);
            match *rule {
                Rule::Greatest(scale) => own(0, scale, 0),
                Rule::Agreeing(scale) => own(1, scale, 0),
                Rule::Near(distance) => own(2, distance, 0),
                Rule::Needed(count, scale) => own(3, scale, count),
                Rule::Elected(None) => own(4, 1.0, u32::MAX),
                Rule::Elected(Some((model, scale))) => own(4, scale, model as u32),
                Rule::Shared(least) => own(5, least, 0),
                Rule::Middle => own(6, 0.0, 0),
                Rule::Moved => own(7, 0.0, 0),
                Rule::Varying(cut, least) => {
                    // A key that no magnitude has lies behind everything.
                    let (key, index) = cut.place().unwrap_or((u32::MAX, 0));
                    own(8, least, key);
                    words[8..10].copy_from_slice(&halves(index));
                }
            }
            models.iter().for_each(|[a, b]| words.extend([a.to_bits(), b.to_bits(), 0, 0, 0, 0, 0, 0]));
        }
    }
    words
}

impl Gpu {
    /// Elements of a tile with so many inputs.
    pub fn tile_size(&self, inputs: usize) -> usize {
        ((self.most / 4 / inputs.max(1) as u64) as usize).clamp(1, 1 << 20)
    }

    /// Computes a tile; false where it is the CPU's to compute, because of its numbers, its size, or the device.
    pub fn run(&self, program: &Program, tile: &Tile<'_>, out: &mut [f32]) -> bool {
        let (inputs, n) = (program.inputs(tile), out.len());
        let own = settings(program, tile.range.start, n, inputs.len());
        let size = 4 * (n * inputs.len()) as u64;
        let fits = size <= self.most && own.len() as u64 * 4 <= SETTINGS && n > 0;
        if !fits || !in_range(&program.numbers()) || !inputs.iter().all(|input| in_range(input)) {
            return false;
        }
        let done = self.compute(program, &own, &inputs, n, out).is_some();
        self.computed.fetch_add(u64::from(done), Ordering::Relaxed);
        done
    }

    /// How many tiles the device has computed.
    pub fn tiles(&self) -> u64 {
        self.computed.load(Ordering::Relaxed)
    }

    /// Memory for so many bytes of inputs and of results; what is too small is given up.
    fn buffers(&self, inputs: u64, merged: u64) -> Buffers {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(buffers) = idle.filter(|idle| idle.sizes.0 >= inputs && idle.sizes.1 >= merged) {
            return buffers;
        }
        let buffer = |size: u64, usage: wgpu::BufferUsages, mapped_at_creation: bool| {
            self.device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation })
        };
        let (storage, to, from) = (wgpu::BufferUsages::STORAGE, wgpu::BufferUsages::COPY_DST, wgpu::BufferUsages::COPY_SRC);
        Buffers {
            sizes: (inputs, merged),
            write: buffer(SETTINGS + inputs, wgpu::BufferUsages::MAP_WRITE | from, true),
            settings: buffer(SETTINGS, storage | to, false),
            inputs: buffer(inputs, storage | to, false),
            merged: buffer(merged, storage | from, false),
            odd: buffer(4, storage | to | from, false),
            read: buffer(merged + 4, to | wgpu::BufferUsages::MAP_READ, false),
        }
    }

    fn compute(&self, program: &Program, own: &[u32], inputs: &[&[f32]], n: usize, out: &mut [f32]) -> Option<()> {
        let (size, bytes) = (4 * (n * inputs.len()) as u64, 4 * n as u64);
        let buffers = self.buffers(size, bytes);
        let own: &[u8] = bytemuck::cast_slice(own);
        {
            let mut view = buffers.write.get_mapped_range_mut(0..SETTINGS + size).ok()?;
            view.slice(..own.len()).copy_from_slice(own);
            for (input, at) in inputs.iter().zip((SETTINGS as usize..).step_by(4 * n)) {
                view.slice(at..at + 4 * n).copy_from_slice(bytemuck::cast_slice(input));
            }
        }
        buffers.write.unmap();
        let pipeline = match program {
            Program::Combine { .. } => &self.combine,
            Program::Vectors { .. } => &self.vectors,
            Program::Entries { .. } => &self.entries,
        };
        let bound = [&buffers.settings, &buffers.inputs, &buffers.merged, &buffers.odd];
        let entries: Vec<wgpu::BindGroupEntry<'_>> = (0..)
            .zip(bound)
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let layout = pipeline.get_bind_group_layout(0);
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&buffers.write, 0, &buffers.settings, 0, own.len() as u64);
        encoder.copy_buffer_to_buffer(&buffers.write, SETTINGS, &buffers.inputs, 0, size);
        encoder.clear_buffer(&buffers.odd, 0, None);
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, &group, &[]);
            pass.dispatch_workgroups(n.div_ceil(256) as u32, 1, 1);
        }
        encoder.copy_buffer_to_buffer(&buffers.merged, 0, &buffers.read, 0, bytes);
        encoder.copy_buffer_to_buffer(&buffers.odd, 0, &buffers.read, bytes, 4);
        let submission = self.queue.submit([encoder.finish()]);
        let (send, receive) = std::sync::mpsc::channel();
        let read = send.clone();
        buffers.read.map_async(wgpu::MapMode::Read, 0..bytes + 4, move |mapped| drop(read.send(mapped)));
        buffers.write.map_async(wgpu::MapMode::Write, .., move |mapped| drop(send.send(mapped)));
        // This tile alone is waited for.
        self.device.poll(wgpu::PollType::Wait { submission_index: Some(submission), timeout: None }).ok()?;
        for _ in 0..2 {
            receive.recv().ok()?.ok()?;
        }
        let in_range = {
            let view = buffers.read.get_mapped_range(0..bytes + 4).ok()?;
            bytemuck::cast_slice_mut::<f32, u8>(out).copy_from_slice(&view[..bytes as usize]);
            view[bytes as usize..].iter().all(|byte| *byte == 0)
        };
        buffers.read.unmap();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(buffers);
        in_range.then_some(())
    }
}
