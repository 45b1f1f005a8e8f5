//! The network of a weights file.

use std::path::Path;

use residuum::models::weights::Metadata;
use residuum::models::{self, Model};

use crate::failure::Failure;

/// The network of the file at `path` with `metadata`: the one that it names, which must match `asked` if that is given,
/// or `asked` if it names none.
pub fn model(path: &Path, metadata: &Metadata, asked: Option<&Model>) -> Result<Model, Failure> {
    let file = path.display();
    let Some(name) = metadata.get("model") else {
        return asked.cloned().ok_or_else(|| {
            let cause = format!("--model: {file} names no network; give one that `residuum models` lists");
            Failure::Arguments(cause)
        });
    };
    let known = models::find(name);
    match (asked, known) {
        (None, known) => known.map_err(|e| {
            let way_out = if is_ours(metadata) { "" } else { "; --model NAME says what it is" };
            Failure::Work(format!("{file}: {e}{way_out}"))
        }),
        (Some(asked), Ok(known)) if asked.is_same_network(&known) => Ok(asked.clone()),
        // The file is another program's, and its `model` may mean something else.
        (Some(asked), Err(_)) if !is_ours(metadata) => Ok(asked.clone()),
        (Some(asked), _) => Err(contradiction(path, name, asked)),
    }
}

/// Fails if `asked` is given and is not the network `name` of the checkpoint at `path`.
pub fn check(path: &Path, name: &str, asked: Option<&Model>) -> Result<(), Failure> {
    match asked {
        Some(asked) if !models::find(name).is_ok_and(|known| known.is_same_network(asked)) => {
            Err(contradiction(path, name, asked))
        }
        _ => Ok(()),
    }
}

/// True if `residuum train` wrote the file.
fn is_ours(metadata: &Metadata) -> bool {
    metadata.get("library").is_some_and(|library| library.starts_with("residuum "))
}

fn contradiction(path: &Path, name: &str, asked: &Model) -> Failure {
    let (file, asked) = (path.display(), asked.name());
    let way_out = match models::find(name) {
        Ok(_) => "without --model they run as their own network",
        Err(_) => "this version knows no such network",
    };
    Failure::Work(format!("{file}: weights of {name}, but --model says {asked}; {way_out}"))
}
