//! Plots of loss and accuracy over the epochs. The font is embedded: a machine may have none.

use std::fmt::Display;
use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{register_font, FontStyle};
use residuum::train::Metrics;

/// The bytes that drawing takes, rounded up: mostly the pixels of the bitmap.
pub const MEMORY: usize = (SIZE.0 * FINE * SIZE.1 * FINE * 3) as usize + (8 << 20);

/// Width and height in pixels.
const SIZE: (u32, u32) = (1200, 500);
/// The factor of supersampling, for smooth lines.
const FINE: u32 = 3;
const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(45, 48, 56);
const FAINT: RGBColor = RGBColor(225, 227, 232);
const TRAIN: RGBColor = RGBColor(43, 108, 176);
const TEST: RGBColor = RGBColor(217, 95, 2);

/// The curves as SVG.
pub fn svg(title: &str, history: &[Metrics]) -> Result<Vec<u8>, String> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        draw(&root, 1, title, history)?;
    }
    Ok(text.into_bytes())
}

/// The curves as PNG.
pub fn png(title: &str, history: &[Metrics]) -> Result<Vec<u8>, String> {
    let (width, height) = (SIZE.0 * FINE, SIZE.1 * FINE);
    let mut pixels = vec![255; (width * height * 3) as usize];
    {
        let root = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        draw(&root, FINE, title, history)?;
    }
    let mut content = Vec::new();
    let mut encoder = png::Encoder::new(&mut content, SIZE.0, SIZE.1);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Best);
    let mut writer = encoder.write_header().map_err(text)?;
    writer.write_image_data(&reduced(&pixels, width as usize)).map_err(text)?;
    writer.finish().map_err(text)?;
    Ok(content)
}

/// Scales the picture down by `FINE`: each pixel is the mean of the pixels that it covers.
fn reduced(pixels: &[u8], width: usize) -> Vec<u8> {
    let (fine, row) = (FINE as usize, width * 3);
    let mut out = Vec::with_capacity(pixels.len() / (fine * fine));
    for rows in pixels.chunks_exact(row * fine) {
        for x in 0..width / fine {
            for c in 0..3 {
                let covered = (0..fine * fine).map(|i| i / fine * row + (x * fine + i % fine) * 3 + c);
                let sum: usize = covered.map(|at| usize::from(rows[at])).sum();
                out.push((sum / (fine * fine)) as u8);
            }
        }
    }
    out
}

/// A panel of the plot.
struct Panel<'a> {
    title: &'a str,
    unit: &'a str,
    /// The training curve and the test curve: (epoch, value).
    curves: [Vec<(f64, f64)>; 2],
    log: bool,
    legend: SeriesLabelPosition,
}

fn draw<B: DrawingBackend>(
    root: &DrawingArea<B, Shift>,
    scale: u32,
    title: &str,
    history: &[Metrics],
) -> Result<(), String> {
    register_font(FONT, FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| "the font does not load".to_string())?;
    let curve = |of: fn(&Metrics) -> f64| history.iter().map(|m| (f64::from(m.epoch), of(m))).collect::<Vec<_>>();
    let loss = Panel {
        title: "loss (logarithmic)",
        unit: "",
        curves: [curve(|m| m.train_loss), curve(|m| m.test_loss)],
        log: true,
        legend: SeriesLabelPosition::UpperRight,
    };
    let accuracy = Panel {
        title: "accuracy, %",
        unit: " %",
        curves: [curve(|m| 100.0 * m.train_accuracy), curve(|m| 100.0 * m.test_accuracy)],
        log: false,
        legend: SeriesLabelPosition::LowerRight,
    };
    root.fill(&WHITE).map_err(text)?;
    let edge = 10 * scale as i32;
    let root = root.margin(edge, edge / 2, edge, edge);
    let root = root.titled(title, (FONT, 20 * scale).into_font().color(&INK)).map_err(text)?;
    let (left, right) = root.split_horizontally((SIZE.0 * scale / 2) as i32 - edge);
    panel(&left, scale, &loss)?;
    panel(&right, scale, &accuracy)?;
    root.present().map_err(text)
}

fn panel<B: DrawingBackend>(area: &DrawingArea<B, Shift>, scale: u32, panel: &Panel<'_>) -> Result<(), String> {
    let last = panel.curves[0].last().map_or(1.0, |&(epoch, _)| epoch);
    let axis = Axis::around(panel);
    let font = |size: u32| (FONT, size * scale).into_font().color(&INK);
    let mut chart = ChartBuilder::on(area)
        .margin(8 * scale)
        .margin_right(16 * scale)
        .caption(panel.title, font(16))
        .x_label_area_size(40 * scale)
        .y_label_area_size(52 * scale)
        .build_cartesian_2d(Epochs(1.0..last.max(2.0)), axis)
        .map_err(text)?;
    chart
        .configure_mesh()
        .bold_line_style(FAINT.stroke_width(scale))
        .light_line_style(TRANSPARENT)
        .axis_style(INK.stroke_width(scale))
        .label_style(font(13))
        .x_desc("epoch")
        .axis_desc_style(font(13))
        .set_all_tick_mark_size(4 * scale)
        .x_labels(9)
        .y_labels(8)
        .draw()
        .map_err(text)?;
    for (name, color, points) in [("train", TRAIN, &panel.curves[0]), ("test", TEST, &panel.curves[1])] {
        let finite: Vec<_> = points.iter().copied().filter(|(_, v)| v.is_finite()).collect();
        let end = points.last().map_or(String::new(), |&(_, v)| format!(" {}{}", shown(v), panel.unit));
        let dots = finite.iter().map(|&point| Circle::new(point, 3 * scale, color.filled())).collect::<Vec<_>>();
        chart
            .draw_series(LineSeries::new(finite, color.stroke_width(2 * scale)))
            .map_err(text)?
            .label(format!("{name}{end}"))
            .legend(move |(x, y)| {
                PathElement::new([(x, y), (x + 18 * scale as i32, y)], color.stroke_width(2 * scale))
            });
        chart.draw_series(dots).map_err(text)?;
    }
    chart
        .configure_series_labels()
        .position(panel.legend.clone())
        .margin(12 * scale)
        .legend_area_size(24 * scale)
        .background_style(WHITE.mix(0.85))
        .border_style(FAINT.stroke_width(scale))
        .label_font(font(13))
        .draw()
        .map_err(text)
}

/// Formats a value for the legend.
fn shown(v: f64) -> String {
    if v.abs() >= 10.0 {
        format!("{v:.2}")
    } else {
        format!("{v:.4}")
    }
}

fn text(error: impl Display) -> String {
    error.to_string()
}

/// The axis of epochs: integers, linear.
struct Epochs(Range<f64>);

impl Ranged for Epochs {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        place((value - self.0.start) / (self.0.end - self.0.start), limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        let step = round_step((self.0.end - self.0.start) / hint.bold_points().max(2) as f64).max(1.0);
        let mut points = vec![1.0];
        let multiples = (1..).map(|i| f64::from(i) * step).take_while(|&v| v <= self.0.end);
        points.extend(multiples.filter(|&v| v > 1.0 && v.fract() == 0.0));
        points
    }

    fn range(&self) -> Range<f64> {
        self.0.clone()
    }
}

impl ValueFormatter<f64> for Epochs {
    fn format(value: &f64) -> String {
        format!("{value:.0}")
    }
}

/// A vertical axis, linear or logarithmic.
struct Axis {
    range: Range<f64>,
    log: bool,
}

impl Axis {
    /// An axis for all finite points of `panel`.
    fn around(panel: &Panel<'_>) -> Self {
        let log = panel.log;
        let values = panel.curves.iter().flatten().map(|&(_, v)| v).filter(|v| v.is_finite() && (!log || *v > 0.0));
        let (low, high) = values.fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), v| (low.min(v), high.max(v)));
        let range = match (low.is_finite(), log) {
            (false, _) => 0.1..1.0,
            (true, true) => (low / 1.3).max(high / 1e6)..high * 1.3,
            (true, false) => (low - 2.0).max(0.0)..100.5,
        };
        Self { range, log }
    }

    fn scaled(&self, v: f64) -> f64 {
        if self.log {
            v.max(self.range.start).log10()
        } else {
            v
        }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let (start, end) = (self.scaled(self.range.start), self.scaled(self.range.end));
        place((self.scaled(*value) - start) / (end - start), limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        let inside = |v: &f64| self.range.contains(v);
        if self.log {
            let decades = self.range.start.log10().floor() as i32..=self.range.end.log10().ceil() as i32;
            let wide = decades.clone().count() > 4;
            let digits: &[f64] = if wide { &[1.0] } else { &[1.0, 2.0, 5.0] };
            return decades.flat_map(|d| digits.iter().map(move |k| k * 10f64.powi(d))).filter(inside).collect();
        }
        let step = round_step((self.range.end - self.range.start) / hint.bold_points().max(2) as f64);
        (0..).map(|i| f64::from(i) * step).take_while(|&v| v <= self.range.end).filter(inside).collect()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    fn format(value: &f64) -> String {
        // Powers of ten are not exact: rounded to six digits.
        let rounded = format!("{value:.6}");
        rounded.trim_end_matches('0').trim_end_matches('.').to_string()
    }
}

/// The pixel at the fraction `share` between the limits.
fn place(share: f64, (from, to): (i32, i32)) -> i32 {
    from + (share * f64::from(to - from)).round() as i32
}

/// The least 1, 2 or 5 times a power of ten that is at least `step`.
fn round_step(step: f64) -> f64 {
    let decade = 10f64.powf(step.max(1e-9).log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|k| k * decade).into_iter().find(|&s| s >= step).unwrap_or(10.0 * decade)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(epochs: u32, loss: impl Fn(u32) -> f64) -> Vec<Metrics> {
        let epoch = |epoch: u32| Metrics {
            epoch,
            train_loss: loss(epoch),
            train_accuracy: 1.0 - 0.6 / f64::from(epoch),
            test_loss: 1.2 * loss(epoch),
            test_accuracy: 1.0 - 0.8 / f64::from(epoch),
            learning_rate: 0.1,
            images_per_second: 4000.0,
            seconds: 0.4,
        };
        (1..=epochs).map(epoch).collect()
    }

    #[test]
    fn any_history_can_be_drawn() {
        let cases = [
            history(0, |_| 1.0),
            history(1, |_| 1.0),
            history(3, |_| 0.0),
            history(3, |_| f64::NAN),
            history(2, |_| 1e300),
            history(400, |e| 2.0 / f64::from(e)),
        ];
        for history in &cases {
            let image = svg("a title", history).unwrap();
            assert!(String::from_utf8(image).unwrap().contains("accuracy"));
        }
    }

    #[test]
    fn the_bitmap_is_a_png_of_the_stated_size_with_both_colours() {
        let image = png("resnet20_cifar on digits, seed 0", &history(15, |e| 2.3 / f64::from(e * e))).unwrap();
        let mut reader = png::Decoder::new(image.as_slice()).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), SIZE);
        for color in [TRAIN, TEST, INK] {
            let near =
                |p: &[u8]| p[0].abs_diff(color.0) < 8 && p[1].abs_diff(color.1) < 8 && p[2].abs_diff(color.2) < 8;
            let count = pixels.chunks_exact(3).filter(|p| near(p)).count();
            assert!(count > 100, "{count} pixels of {color:?}");
        }
    }

    #[test]
    fn ticks_are_round_numbers() {
        for (step, expected) in [(0.9, 1.0), (1.1, 2.0), (3.0, 5.0), (6.0, 10.0), (0.03, 0.05)] {
            assert!((round_step(step) - expected).abs() < 1e-12, "{step}");
        }
        assert_eq!(Axis::format(&0.1), "0.1");
        assert_eq!(Axis::format(&100.0), "100");
    }
}
