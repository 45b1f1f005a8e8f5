//! `residuum models`.

use residuum::graph::Mode;
use residuum::models::{self, BuildOptions, Model};

use crate::failure::{print, Failure};

/// Lists the networks: name, parameters, multiply-adds per image at the default size, source
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  residuum models
  residuum models --json

Names follow a grammar: other depths and widths, such as resnet26_cifar or resnext50_16x4d, work too.")]
pub struct Args {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let rows = models::all().iter().map(Row::new).collect::<Result<Vec<_>, _>>()?;
    if args.json {
        let list: Vec<_> = rows.iter().map(Row::json).collect();
        return print(&format!("{:#}", serde_json::Value::from(list)));
    }
    let width = rows.iter().map(|row| row.model.name().len()).max().unwrap_or(0);
    let head = format!("{:width$}  {:>13}  {:>16}  {:11}  source", "name", "parameters", "multiply-adds", "input");
    let lines = rows.iter().map(|row| row.line(width));
    print(&std::iter::once(head).chain(lines).collect::<Vec<_>>().join("\n"))
}

/// A network with the counts of its graph.
struct Row {
    model: &'static Model,
    parameters: u64,
    multiply_adds: u64,
    source: &'static str,
}

impl Row {
    fn new(model: &'static Model) -> Result<Self, Failure> {
        let graph = model.build(Mode::Infer, 1, model.input(), model.classes(), BuildOptions::default())?;
        let source = model.published().map_or("", |p| p.source);
        Ok(Self { model, parameters: graph.parameter_count() as u64, multiply_adds: graph.macs(), source })
    }

    fn line(&self, width: usize) -> String {
        let (parameters, multiply_adds) = (grouped(self.parameters), grouped(self.multiply_adds));
        let [c, h, w] = self.model.input();
        let input = format!("{c}x{h}x{w}");
        format!("{:width$}  {parameters:>13}  {multiply_adds:>16}  {input:11}  {}", self.model.name(), self.source)
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "name": self.model.name(),
            "parameters": self.parameters,
            "multiply_adds": self.multiply_adds,
            "input": self.model.input(),
            "classes": self.model.classes(),
            "source": self.source,
        })
    }
}

/// A number with thousands separators.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Parses the name of a network.
pub fn parse(name: &str) -> Result<Model, String> {
    models::find(name).map_err(|e| format!("{e}; `residuum models` lists them"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn thousands_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (25_557_032, "25,557,032")] {
            assert_eq!(super::grouped(number), text);
        }
    }
}
