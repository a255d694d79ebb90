//! On a Vulkan device (lavapipe, where there is no other) every case gives the bytes that the CPU gives.

use crate::cases::{manifest, request};
use mergeql_tensors::gpu::gpu;
use mergeql_tensors::method::Tile;
use mergeql_tensors::plan::{Backend, Options, Plan, Request};
use mergeql_tensors::program::{Inputs, Program};
use mergeql_tensors::run;
use mergeql_tensors::sealed::Sealed;
use std::collections::BTreeMap;

fn bytes(request: &Request, backend: Backend) -> mergeql_udfs::Result<BTreeMap<String, Vec<u8>>> {
    let options = Options { backend, ..request.options.clone() };
    run::resolve(&Sealed::new(Plan::new(Request { options, ..request.clone() })?)?)
}

#[test]
fn every_case_has_the_bytes_of_the_cpu() {
    let device = gpu().expect("a Vulkan driver: `apt-get install mesa-vulkan-drivers` brings one that needs no GPU");
    let (mut same, manifest, before) = (0, manifest(), device.tiles());
    for case in manifest["cases"].as_array().expect("cases") {
        let id = case["id"].as_str().expect("an id");
        // Cases of another kind than one merge have tests of their own.
        let Ok(request) = std::panic::catch_unwind(|| request(case)) else { continue };
        match (bytes(&request, Backend::Cpu), bytes(&request, Backend::Gpu)) {
            (Ok(cpu), Ok(gpu)) => {
                assert!(cpu == gpu, "{id} differs on {}", device.name);
                same += 1;
            }
            (cpu, gpu) => assert_eq!(cpu.is_err(), gpu.is_err(), "{id}"),
        }
    }
    assert!(same >= 60, "only {same} cases ran");
    // Nearly half of the cases are of methods that have programs, with four tensors each.
    assert!(device.tiles() - before >= 150, "the device computed {} tiles only", device.tiles() - before);
}

#[test]
fn numbers_that_devices_may_take_for_zero_are_left_to_the_cpu() {
    let device = gpu().expect("a Vulkan driver");
    let run = |factor: f32, value: f32| {
        let (model, mut out) = (vec![value; 300], vec![0.0; 300]);
        let tile = Tile { range: 0..300, models: vec![&model], base: &[] };
        let program = Program::Combine { inputs: Inputs::Models, factors: vec![factor] };
        device.run(&program, &tile, &mut out).then(|| out[0])
    };
    assert_eq!(run(0.5, 3.0), Some(1.5));
    assert_eq!(run(0.0, 3.0), Some(0.0));
    assert_eq!(run(1e-40, 3.0), None);
    for (factor, value) in [(1.0, 1e-40), (1.0, f32::INFINITY), (1.0, f32::NAN), (1e-30, 1e-10), (1e30, 1e10)] {
        assert_eq!(run(factor, value), None, "{factor} times {value}");
    }
}
