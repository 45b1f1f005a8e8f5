//! `residuum models`.

use residuum::models::{self, Model};

use crate::failure::{print, Failure};

/// Lists the networks: name, parameters, multiply-adds at the default input size, source
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  residuum models
  residuum models --json

The names follow a grammar: resnet26_cifar or resnext50_16x4d work as well, though nobody published them.")]
pub struct Args {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    if args.json {
        let list: Vec<_> = models::all().iter().map(json).collect();
        return print(&format!("{:#}", serde_json::Value::from(list)));
    }
    let width = models::all().iter().map(|m| m.name().len()).max().unwrap_or(0);
    let head = format!("{:width$}  {:>13}  {:>16}  {:11}  source", "name", "parameters", "multiply-adds", "input");
    let rows = models::all().iter().filter_map(|model| {
        let published = model.published()?;
        let (parameters, macs) = (grouped(published.parameters), grouped(published.macs));
        let [c, h, w] = model.input();
        let input = format!("{c}x{h}x{w}");
        Some(format!("{:width$}  {parameters:>13}  {macs:>16}  {input:11}  {}", model.name(), published.source))
    });
    print(&std::iter::once(head).chain(rows).collect::<Vec<_>>().join("\n"))
}

fn json(model: &Model) -> serde_json::Value {
    let published = model.published();
    serde_json::json!({
        "name": model.name(),
        "parameters": published.map(|p| p.parameters),
        "macs": published.map(|p| p.macs),
        "input": model.input(),
        "classes": model.classes(),
        "source": published.map(|p| p.source),
    })
}

/// A number with a comma after every three digits.
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

/// The network called `name`, for an option's value.
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
