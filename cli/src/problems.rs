//! Tab-separated tables of convolutions: a line of column names, then a line for each problem.

use residuum::ops::conv2d::Spec;

/// The batch size: more than one, so that a mix-up of images shows.
const BATCH: usize = 2;

/// The required columns, in any order; a table may have others.
#[rustfmt::skip]
const COLUMNS: [&str; 17] = [
    "name", "groups", "ic", "oc", "ih", "iw", "oh", "ow", "kh", "kw", "stride_h", "stride_w", "pad_h", "pad_w",
    "dilation_h", "dilation_w", "macs_per_image",
];

/// A row of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Its name in reports.
    pub name: String,
    /// The convolution.
    pub spec: Spec,
    /// The height and width of its output, by the table.
    pub output: [usize; 2],
    /// Multiply-adds per image, by the table.
    pub macs: u64,
}

/// Parses the table `text`. Skips a byte-order mark, carriage returns and blank lines. Fails on a table without
/// problems, without column names or with an invalid row.
pub fn parse(text: &str) -> Result<Vec<Problem>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let (_, first) = lines.next().ok_or_else(|| format!("empty, expected {}", expected()))?;
    let header = Header::new(first)?;
    let problems: Vec<Problem> = lines
        .map(|(i, line)| header.problem(line).map_err(|e| format!("line {}: {e}", i + 1)))
        .collect::<Result<_, _>>()?;
    match problems.is_empty() {
        true => Err("no problem after the line of column names".into()),
        false => Ok(problems),
    }
}

fn expected() -> String {
    format!("a tab-separated table whose first line names the columns {}", COLUMNS.join(" "))
}

fn cells(line: &str) -> Vec<&str> {
    line.trim_end().split('\t').map(str::trim).collect()
}

/// The position of each of [`COLUMNS`].
struct Header {
    places: [usize; COLUMNS.len()],
    len: usize,
}

impl Header {
    fn new(line: &str) -> Result<Self, String> {
        let names = cells(line);
        let mut places = [0; COLUMNS.len()];
        for (place, column) in places.iter_mut().zip(COLUMNS) {
            let mut found = (0..names.len()).filter(|&i| names[i] == column);
            *place = found.next().ok_or_else(|| format!("no column `{column}`, expected {}", expected()))?;
            if found.next().is_some() {
                return Err(format!("duplicate column `{column}`"));
            }
        }
        Ok(Self { places, len: names.len() })
    }

    fn problem(&self, line: &str) -> Result<Problem, String> {
        let cells = cells(line);
        if cells.len() > self.len {
            return Err(format!("{} cells, but {} columns", cells.len(), self.len));
        }
        let text = |column: &str| {
            let place = COLUMNS.iter().position(|c| *c == column).map(|i| self.places[i]);
            let cell = place.and_then(|place| cells.get(place)).filter(|cell| !cell.is_empty());
            cell.copied().ok_or_else(|| format!("no value for `{column}`"))
        };
        let number = |column: &str| -> Result<usize, String> {
            let value = text(column)?;
            value.parse().map_err(|_| format!("`{value}` for `{column}`, expected an integer"))
        };
        let spec = Spec {
            n: BATCH,
            h: number("ih")?,
            w: number("iw")?,
            c: number("ic")?,
            k: number("oc")?,
            kernel: [number("kh")?, number("kw")?],
            stride: [number("stride_h")?, number("stride_w")?],
            padding: [number("pad_h")?, number("pad_w")?],
            dilation: [number("dilation_h")?, number("dilation_w")?],
            groups: number("groups")?,
        };
        let output = [number("oh")?, number("ow")?];
        Ok(Problem { name: text("name")?.into(), spec, output, macs: number("macs_per_image")? as u64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &str = "plain\t1\t8\t16\t9\t7\t9\t7\t3\t3\t1\t1\t1\t1\t1\t1\t72576";

    fn table(rows: &[&str], end: &str) -> String {
        std::iter::once(COLUMNS.join("\t").as_str()).chain(rows.iter().copied()).map(|l| format!("{l}{end}")).collect()
    }

    #[test]
    fn tables_as_editors_and_spreadsheets_leave_them_are_read() {
        let plain = parse(&table(&[ROW, ROW], "\n")).unwrap();
        assert_eq!(plain.len(), 2);
        assert_eq!((plain[0].name.as_str(), plain[0].spec.c, plain[0].spec.k, plain[0].macs), ("plain", 8, 16, 72_576));
        for text in [
            table(&[ROW, ROW], "\r\n"),
            format!("\u{feff}{}", table(&[ROW, ROW], "\n")),
            format!("\u{feff}{}\r\n \r\n", table(&[ROW, "", ROW], "\r\n")),
            format!("\n\n{}", table(&[ROW, ROW], "\n\n")),
            table(&[ROW, ROW], "\t\n"),
            table(&[ROW, &ROW.replace('\t', " \t ")], "\n").trim_end().to_string(),
        ] {
            assert_eq!(parse(&text).unwrap(), plain, "{text:?}");
        }
    }

    #[test]
    fn columns_may_come_in_any_order_with_others_between() {
        let turn = |line: &str| format!("note\t{}", line.split('\t').rev().collect::<Vec<_>>().join("\t"));
        let text = format!("{}\n{}\n", turn(&COLUMNS.join("\t")), turn(ROW));
        assert_eq!(parse(&text).unwrap(), parse(&table(&[ROW], "\n")).unwrap());
    }

    #[test]
    fn invalid_tables_are_refused() {
        for (text, expected) in [
            (String::new(), "empty, expected a tab-separated table whose first line names the columns name groups"),
            (" \n\r\n".into(), "empty, expected"),
            (table(&[], "\n"), "no problem after the line of column names"),
            (table(&["", " "], "\r\n"), "no problem after"),
            (format!("{ROW}\n{ROW}\n"), "no column `name`, expected a tab-separated table"),
            (table(&[ROW], "\n").replace('\t', ","), "no column `name`"),
            (table(&[ROW], "\n").replace("groups", "Groups"), "no column `groups`"),
            (table(&[ROW], "\n").replace("ow\t", "oh\t"), "duplicate column `oh`"),
            (table(&[ROW, &ROW.replace("16", "x")], "\n"), "line 3: `x` for `oc`, expected an integer"),
            (table(&[&ROW.replace("16", "-1")], "\n"), "line 2: `-1` for `oc`"),
            (table(&[&ROW.replace("\t72576", "")], "\n"), "line 2: no value for `macs_per_image`"),
            (table(&[&ROW.replace("\t16\t", "\t\t")], "\n"), "line 2: no value for `oc`"),
            (table(&[&format!("{ROW}\t9")], "\n"), "line 2: 18 cells, but 17 columns"),
        ] {
            let found = parse(&text).unwrap_err();
            assert!(found.contains(expected) && !found.contains('\n'), "{text:?}: {found}");
        }
    }
}
