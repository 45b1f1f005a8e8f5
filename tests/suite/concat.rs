//! Concatenation in place, in random networks: a program on kernels, whose values may share memory, agrees with the
//! reference executor, which copies them.

use residuum::device::{sim::SimOptions, Device};
use residuum::graph::{Builder, ConvOptions, Graph, Interpreter, LossOptions, Mode, Program, ValueId};
use residuum::ops::pool::{Kind, Window};
use residuum::tensor::{DType, HostTensor, StateDict};

use crate::machine;
use crate::random::Random;

const BATCH: usize = 2;
const SIZE: usize = 3;
const LABELS: [i32; BATCH] = [1, 0];

/// A network of convolutions, ReLUs, sums and concatenations of earlier values, which may have several readers or be
/// outputs; unread values are concatenated at the end.
fn network(random: &mut Random) -> residuum::Result<Graph> {
    let mut b = Builder::new(Mode::Train);
    let mut values = vec![b.input("input", [BATCH, SIZE, SIZE, 3])];
    let mut unused: Vec<ValueId> = Vec::new();
    for i in 0..12 {
        let mut pick = |random: &mut Random| {
            // Late values are more likely: chains, as in a dense block.
            let reach = values.len().min(1 + random.below(6));
            let back = random.below(reach);
            let value = values[values.len() - 1 - back];
            unused.retain(|&v| v != value);
            value
        };
        let x = pick(random);
        let y = match random.below(8) {
            0..2 => {
                let kernel = 1 + 2 * random.below(2);
                let k = 1 + random.below(4);
                let options = ConvOptions { k, kernel: [kernel; 2], padding: [kernel / 2; 2], ..Default::default() };
                b.conv2d(&format!("conv{i}"), x, options)?
            }
            2 => b.relu(x)?,
            3..5 => {
                let matching: Vec<_> = values.iter().copied().filter(|&v| b.shape(v) == b.shape(x)).collect();
                let other = matching[random.below(matching.len())];
                unused.retain(|&v| v != other);
                b.add(x, other)?
            }
            5 => {
                let (y, z) = (pick(random), pick(random));
                b.concat(&[x, y, z])?
            }
            _ => {
                let y = pick(random);
                b.concat(&[x, y])?
            }
        };
        values.push(y);
        unused.push(y);
        if random.below(8) == 0 {
            b.output(&format!("value{i}"), y);
        }
    }
    let x = b.concat(&unused)?;
    let x = b.conv2d("last", x, ConvOptions { k: 4, ..Default::default() })?;
    let x = b.pool(x, Window::Adaptive([1; 2]), Kind::Average { count_padding: false })?;
    let logits = b.linear("fc", x, 2)?;
    b.output("logits", logits);
    b.loss(logits, LossOptions::default())?;
    let mut graph = b.finish();
    graph.differentiate()?;
    Ok(graph)
}

fn state(graph: &Graph, random: &mut Random) -> StateDict {
    let fill = |p: &residuum::graph::Parameter| {
        let fan_in = p.shape.dims()[1..].iter().product::<usize>().max(1) as f64;
        let v = random.normals(p.shape.len(), 0.0, 1.0 / fan_in.sqrt()).into_iter().map(|v| v as f32).collect();
        (p.name.clone(), HostTensor::f32(p.shape.clone(), v))
    };
    graph.parameters().iter().map(fill).collect()
}

/// Panics if a number differs by more than the rounding of a few hundred sums in f32.
fn assert_close(what: &str, found: &HostTensor, expected: &HostTensor) {
    let (found, expected) = (found.to_real::<f64>(), expected.to_real::<f64>());
    let largest = expected.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
    for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
        assert!((a - b).abs() <= 1e-4 * largest + 1e-6, "{what}: element {i} is {a:e}, expected {b:e}");
    }
}

#[test]
fn any_network_of_concatenations_equals_the_reference() {
    let Ok(device) = Device::sim(SimOptions::default()) else { return };
    if !machine::wanted("sim") {
        return;
    }
    let (mut copied, mut in_place) = (0, 0);
    for seed in 0..if machine::asked("RESIDUUM_LONG") { 4000 } else { 400 } {
        let mut random = Random::new(&format!("concatenations {seed}"));
        // A network with a convolution that the loss does not depend on has no gradient and is skipped.
        let Ok(graph) = network(&mut random) else { continue };
        let state = state(&graph, &mut random);
        let pixels = random.normals(BATCH * 3 * SIZE * SIZE, 0.0, 1.0).into_iter().map(|v| v as f32).collect();
        let x = HostTensor::f32([BATCH, 3, SIZE, SIZE], pixels);
        let mut it = Interpreter::<f64>::new(&graph, DType::F64);
        it.load(&state).unwrap();
        it.set_input("input", &x).unwrap();
        it.set_labels(&LABELS).unwrap();
        it.run();
        let mut program = Program::compile(&graph, &device, DType::F32, None).unwrap();
        program.load(&state).unwrap();
        program.set_input("input", &x).unwrap();
        program.set_labels(&LABELS).unwrap();
        program.run().unwrap();
        program.synchronize().unwrap();
        let names = (0..12).map(|i| format!("value{i}")).chain(["logits".into(), "loss".into()]);
        for name in names {
            if let Ok(expected) = it.output(&name) {
                assert_close(&format!("network {seed}, {name}"), &program.output(&name).unwrap(), &expected);
            }
        }
        let (found, expected) = (program.gradients().unwrap(), it.gradients());
        for (name, expected) in &expected {
            assert_close(&format!("network {seed}, gradient of {name}"), &found[name], expected);
        }
        let count = |ops: &[&str]| ops.iter().filter(|op| op.starts_with("concat")).count();
        let host = Program::compile(&graph, &Device::cpu(), DType::F32, None).unwrap();
        copied += count(&program.ops());
        in_place += count(&host.ops()) - count(&program.ops());
    }
    assert!(copied > 100 && in_place > 100, "both ways are taken: {copied} ops copy, {in_place} need not");
}
