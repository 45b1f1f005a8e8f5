//! The pieces of a batch norm: merges, moments, and the numbers of each channel.

use residuum::device::{Launch, View};
use residuum::ops::norm::merge::{self, BandRows, Bands};
use residuum::ops::norm::{Coefficients, Measure, Node, Pass, Scale};
use residuum::ops::store::Moments;
use residuum::ops::{Call, Op};

use super::batch_norm::{channels_of, exact_input, last_pixel_lost, powers};
use crate::bounds;
use crate::cases::batch_norm::{EXACT_SHAPES, SHAPES};
use crate::cases::norm::BANDS;
use crate::harness::{check, check_refused_with, Case, Compare, Data, Judged, Random, Sweep};
use crate::named::{inputs, rules};
use crate::sweep::{machines, Machine};

fn op(x: [usize; 4], pass: Pass) -> Op {
    Op::Norm(Node { x, pass })
}

/// Device memory with `numbers` in f32.
fn upload(machine: &Machine, numbers: &[f64]) -> View {
    let bytes: Vec<u8> = numbers.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect();
    let memory = machine.backend.allocate(bytes.len().max(4)).unwrap();
    memory.write(0, &bytes).unwrap();
    View::whole(memory)
}

fn poison(machine: &Machine, len: usize) -> View {
    upload(machine, &vec![f64::NAN; len])
}

fn download(view: &View) -> Vec<f64> {
    view.read().unwrap().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()).collect()
}

fn run(machine: &Machine, launches: &[Launch]) {
    launches.iter().for_each(|launch| machine.backend.launch(launch).unwrap());
    machine.backend.synchronize().unwrap();
}

/// The merged sums of `tensors`, which are whole numbers and exact.
fn sums_on(machine: &Machine, bands: Bands, tensors: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let from: Vec<View> = tensors.iter().map(|t| upload(machine, t)).collect();
    let to: Vec<View> = tensors.iter().map(|_| poison(machine, bands.channels)).collect();
    let scratch = poison(machine, bands.merge_bytes(tensors.len()) / 4);
    let [from, to] = [&from, &to].map(|views| views.iter().collect::<Vec<_>>());
    run(machine, &merge::sums(bands, &from, &to, Some(&scratch)).unwrap());
    to.into_iter().map(download).collect()
}

#[test]
fn sums_merge_exactly() {
    for &[count, channels] in BANDS {
        let bands = Bands { count, channels };
        let mut random = Random::new(&format!("{bands:?}"));
        for tensors in 1..=3 {
            let tensors: Vec<_> = (0..tensors).map(|_| random.integers(count * channels, -99, 99)).collect();
            let sum = |t: &[f64], c: usize| t.iter().skip(c).step_by(channels).sum::<f64>();
            let expected: Vec<Vec<f64>> = tensors.iter().map(|t| (0..channels).map(|c| sum(t, c)).collect()).collect();
            for machine in machines(Sweep::Schedules) {
                assert_eq!(sums_on(machine, bands, &tensors), expected, "{bands:?} on {}", machine.label);
            }
        }
    }
}

#[test]
fn a_merge_refuses_what_does_not_fit() {
    let Some(machine) = machines(Sweep::Quick).next() else { return };
    let bands = Bands { count: 600, channels: 3 };
    let (from, to, scratch) = (poison(machine, 1800), poison(machine, 3), poison(machine, bands.merge_bytes(2) / 4));
    let short = from.part(0, 7196).unwrap();
    let rows = BandRows { rows: 6000, each: 10 };
    let wrong = [
        merge::sums(bands, &[&short], &[&to], Some(&scratch)),
        merge::sums(bands, &[&from], &[&to], None),
        merge::sums(bands, &[&from], &[&to], Some(&scratch.part(0, 32).unwrap())),
        merge::sums(bands, &[&from; 4], &[&to; 4], Some(&from)),
        merge::moments(bands, rows, [&from, &short], [&to, &to], Some(&scratch)),
        merge::moments(bands, BandRows { rows: 6001, each: 10 }, [&from; 2], [&to; 2], Some(&scratch)),
    ];
    assert!(wrong.iter().all(Result::is_err));
    assert_eq!(merge::moments(bands, rows, [&from; 2], [&to; 2], Some(&scratch)).unwrap().len(), 2);
}

/// Mean and M2 of every band of `rows`, and mean and variance of all rows, channel by channel in f64.
fn band_moments(bands: Bands, rows: BandRows, x: &[f64]) -> [Vec<f64>; 4] {
    let moments = |of: &[f64], c: usize| {
        let column = || of.iter().skip(c).step_by(bands.channels);
        let mean = column().sum::<f64>() / (of.len() / bands.channels) as f64;
        (mean, column().map(|v| (v - mean) * (v - mean)).sum::<f64>())
    };
    let of_bands = x.chunks(rows.each * bands.channels).flat_map(|band| (0..bands.channels).map(|c| moments(band, c)));
    let (mean, m2) = of_bands.unzip();
    let (all_mean, all_m2): (_, Vec<f64>) = (0..bands.channels).map(|c| moments(x, c)).unzip();
    [mean, m2, all_mean, all_m2.iter().map(|v| v / rows.rows as f64).collect()]
}

fn moments_on(machine: &Machine, bands: Bands, rows: BandRows, from: [&[f64]; 2]) -> [Vec<f64>; 2] {
    let from = from.map(|t| upload(machine, t));
    let to = [0, 1].map(|_| poison(machine, bands.channels));
    let scratch = poison(machine, bands.merge_bytes(2) / 4);
    let [from, views] = [&from, &to].map(|v| v.each_ref());
    run(machine, &merge::moments(bands, rows, from, views, Some(&scratch)).unwrap());
    to.map(|view| download(&view))
}

/// Bands of random rows, with means of 0 and of 1,000 deviations; a lost row of a band is found.
#[test]
fn moments_merge() {
    for &[count, channels] in BANDS {
        for (mean, mean_off, var_off) in [(0.0, 1e-6, 2e-5), (1000.0, 2e-4, 1e-3)] {
            let (bands, each) = (Bands { count, channels }, 3);
            let rows = BandRows { rows: (count - 1) * each + 2, each };
            let mut random = Random::new(&format!("moments {bands:?} {mean}"));
            let x = random.normals(rows.rows * channels, mean, 1.0);
            let [band_mean, band_m2, all_mean, all_var] = band_moments(bands, rows, &x);
            let close = |got: &[Vec<f64>; 2]| {
                let near = |a: &[f64], b: &[f64], off: &dyn Fn(f64) -> f64| {
                    a.iter().zip(b).all(|(a, b)| (a - b).abs() <= off(*b))
                };
                near(&got[0], &all_mean, &|_| mean_off) && near(&got[1], &all_var, &|v| var_off * v)
            };
            let mut first = None;
            for machine in machines(Sweep::Schedules) {
                let got = moments_on(machine, bands, rows, [&band_mean, &band_m2]);
                assert!(close(&got), "{bands:?} mean {mean} on {}: {got:?}", machine.label);
                let bits = first.get_or_insert_with(|| (machine.group, got.clone()));
                assert!(bits.0 != machine.group || bits.1 == got, "{bands:?} on {}: other bits", machine.label);
            }
            if let Some(machine) = machines(Sweep::Quick).next().filter(|_| count > 1 && count < 600) {
                let short = BandRows { rows: rows.rows - 1, each };
                let got = moments_on(machine, bands, short, [&band_mean, &band_m2]);
                assert!(!close(&got), "{bands:?} mean {mean}: a lost row passed");
            }
        }
    }
}

#[test]
fn moments_exact() {
    for &shape in EXACT_SHAPES {
        let name = format!("norm moments exact {shape:?}");
        let x = exact_input(&mut Random::new(&name), shape);
        check(&Case::exact(name, op(shape, Pass::Measure), vec![Data::Real(x)]).sliced(), Sweep::Schedules);
    }
}

fn moments_case(shape: [usize; 4], mean: f64) -> Case {
    let name = format!("norm moments {shape:?} mean {mean}");
    let x = Random::new(&name).normals(shape.iter().product(), mean, 1.0);
    Case::bounded(name, op(shape, Pass::Measure), vec![Data::Real(x)], move |j| {
        let all = channels_of(j.numbers(<Measure>::default()).y, shape[3]);
        let (mean, var) = all.iter().map(|c| (c.mean_bound(), c.var_bound())).unzip();
        rules(Measure { y: (), moments: Moments { mean, var }.map(|_, off| Compare::Within(off)) })
    })
}

#[test]
fn moments_bounded() {
    for &shape in SHAPES {
        check(&moments_case(shape, 0.0).sliced(), Sweep::Schedules);
        check(&moments_case(shape, 3.0), Sweep::Quick);
    }
    for &shape in &SHAPES[2..6] {
        let at = <Measure>::default().places();
        check_refused_with(&moments_case(shape, 0.0), at.y, last_pixel_lost(shape[3]));
    }
}

/// A mean 1,000 times the deviation still gives the variance to 1e-3.
#[test]
fn moments_of_a_mean_far_from_zero() {
    for shape in [[11, 10, 10, 16], [1, 61, 67, 3]] {
        let mut case = moments_case(shape, 1000.0);
        case.judge = Box::new(|j| {
            let within = |name: &str, moments: &[f64]| {
                let relative = if name == "mean" { 8.0 * bounds::U } else { 1e-3 };
                Compare::Within(moments.iter().map(|v| relative * v).collect())
            };
            rules(Measure { y: (), moments: j.numbers(<Measure>::default()).moments.map(within) })
        });
        check(&case, Sweep::Schedules);
    }
}

/// Variances that become powers of four when 0.25 is added.
fn variances(random: &mut Random, channels: usize) -> Vec<f64> {
    (0..channels).map(|_| [3.75, 0.75, 15.75][random.below(3)]).collect()
}

#[test]
fn affine() {
    for &shape in SHAPES.iter().chain(EXACT_SHAPES) {
        let (channels, m) = (shape[3], (shape[0] * shape[1] * shape[2]) as f64);
        let name = format!("norm affine {shape:?}");
        let mut random = Random::new(&name);
        let (gamma, beta) = (powers(&mut random, channels), random.integers(channels, -9, 9));
        let (mean, var) = (random.integers(channels, -4, 4), variances(&mut random, channels));
        let inputs = inputs(Scale { gamma, beta, moments: Moments { mean, var }, ..Default::default() });
        let updates = [-3, 0].map(|low| Data::Real(random.integers(channels, low, 7)));
        let judge = move |_: &Judged<'_>| {
            let off = bounds::moved(7.0, 16.0 * m / (m - 1.0), 0.5, 0.0);
            let exact = <Scale>::default().map(|_, ()| (), |_, ()| Compare::Exact);
            rules(Scale { running_var: Compare::Within(vec![off; channels]), ..exact })
        };
        let case = Case::bounded(name, op(shape, Pass::Scale { eps: 0.25, momentum: 0.5 }), inputs, judge);
        check(&case.updating(updates.into()), Sweep::Schedules);
    }
}

/// Variances that are no powers of two. The running variance is unbiased: a biased one is found.
#[test]
fn affine_of_real_numbers() {
    let shape = SHAPES[2];
    let channels = shape[3];
    let name = "norm affine of real numbers";
    let mut random = Random::new(name);
    let [gamma, beta, mean, var] =
        [(0.5, 1.5), (-1.0, 1.0), (-3.0, 3.0), (0.1, 4.0)].map(|(a, b)| random.reals(channels, a, b));
    let inputs = inputs(Scale { gamma, beta, moments: Moments { mean, var }, ..Default::default() });
    let updates = [random.reals(channels, -1.0, 1.0), random.reals(channels, 0.5, 2.0)].map(Data::Real);
    let judge = move |j: &Judged<'_>| {
        let Scale { beta, moments: Moments { mean, .. }, scale, .. } = j.numbers(<Scale>::default());
        let shift_off = |k: usize| bounds::U * (beta[k].abs() + 6.0 * (mean[k] * scale[k]).abs());
        let within = |name: &str, ()| {
            Compare::Within(match name {
                "scale" => scale.iter().map(|s| 4.0 * bounds::U * s.abs()).collect(),
                "shift" => (0..channels).map(shift_off).collect(),
                _ => vec![bounds::moved(2.0, 8.0, 1.0, 0.0); channels],
            })
        };
        rules(<Scale>::default().map(|_, ()| (), within))
    };
    let case = Case::bounded(name, op(shape, Pass::Scale { eps: 1e-5, momentum: 0.5 }), inputs, judge)
        .updating(updates.into());
    check(&case, Sweep::Schedules);
    check_refused_with(&case, <Scale>::default().places().moments.var, |var| {
        var.iter_mut().for_each(|v| *v *= 104.0 / 105.0);
    });
}

#[test]
fn coefficients() {
    for &shape in EXACT_SHAPES {
        for (lazy, bias) in [(false, false), (true, false), (false, true)] {
            let channels = shape[3];
            let name = format!("norm coefficients {shape:?} lazy {lazy} bias {bias}");
            let mut random = Random::new(&name);
            let call = Coefficients {
                dy_sum: random.integers(channels, -99, 99),
                dyx_sum: random.integers(channels, -99, 99),
                gamma: powers(&mut random, channels),
                moments: Moments { mean: random.integers(channels, -4, 4), var: variances(&mut random, channels) },
                a: (!lazy).then_some(()),
                dbias: bias.then_some(()),
                ..Default::default()
            };
            let (pass, inputs) = (Pass::Coefficients { form: call.form(), eps: 0.25 }, inputs(call));
            check(&Case::exact(name, op(shape, pass), inputs), Sweep::Schedules);
        }
    }
}
