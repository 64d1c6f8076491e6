//! A guest's physical memory as a drawing: one cell for each 2 MiB region, a panel for each way it came to be.

use crate::survey::Survey;
use control::RegionKind;
use std::fmt::Write;

/// Cells in a row: 64 MiB.
const COLUMNS: usize = 32;

/// Size of a cell, in drawing units, with its margin.
const CELL: usize = 14;

/// Height of a panel's title.
const TITLE: usize = 26;

/// Draws the panels one below the other; rows that are all holes are left out.
pub(super) fn draw(guest: &str, panels: &[(&str, &Survey)]) -> String {
    let mut body = String::new();
    let mut y = TITLE + 8;
    for (name, survey) in panels {
        y = panel(&mut body, y, name, survey);
    }
    let (width, height) = (COLUMNS * CELL + 110, y + 4);
    let legend = legend();
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"18\" font-weight=\"bold\">{guest}: guest-physical memory, a cell is 2 MiB</text>\n\
         {legend}{body}</svg>\n"
    )
}

fn panel(body: &mut String, top: usize, name: &str, survey: &Survey) -> usize {
    let superpages = survey.count(RegionKind::Superpage);
    let title = format!("{name}: {superpages} superpages, {} whole regions", survey.nr_whole());
    put(body, format_args!("<text x=\"8\" y=\"{}\">{title}</text>", top + 16));
    let mut y = top + TITLE;
    for (number, row) in survey.kinds.chunks(COLUMNS).enumerate() {
        if row.iter().all(|kind| *kind == RegionKind::Hole) {
            continue;
        }
        put(
            body,
            format_args!("<text x=\"8\" y=\"{}\" fill=\"#666\">{} MiB</text>", y + 11, number * COLUMNS * 2),
        );
        for (column, kind) in row.iter().enumerate() {
            cell(body, 80 + column * CELL, y, *kind);
        }
        y += CELL;
    }
    y + 10
}

fn cell(body: &mut String, x: usize, y: usize, kind: RegionKind) {
    let (fill, size) = (fill(kind), CELL - 2);
    put(
        body,
        format_args!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{size}\" height=\"{size}\" fill=\"{fill}\" stroke=\"#bbb\" \
             stroke-width=\"0.5\"/>"
        ),
    );
}

fn fill(kind: RegionKind) -> &'static str {
    match kind {
        RegionKind::Hole => "#ffffff",
        RegionKind::Superpage => "#2e8b57",
        RegionKind::Small => "#d9534f",
        RegionKind::Partial => "#f0ad4e",
    }
}

fn legend() -> String {
    let mut body = String::new();
    let kinds = [
        (RegionKind::Superpage, "superpage"),
        (RegionKind::Small, "4 KiB"),
        (RegionKind::Partial, "partly a hole"),
        (RegionKind::Hole, "hole"),
    ];
    for (place, (kind, word)) in kinds.into_iter().enumerate() {
        let x = 80 + place * 100;
        cell(&mut body, x, TITLE - 2, kind);
        put(&mut body, format_args!("<text x=\"{}\" y=\"{}\">{word}</text>", x + CELL + 2, TITLE + 9));
    }
    body
}

fn put(body: &mut String, element: std::fmt::Arguments<'_>) {
    let _ = writeln!(body, "{element}"); // writing to a String cannot fail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_holes_are_left_out_and_every_other_region_has_its_cell() {
        let mut kinds = vec![RegionKind::Superpage; 40];
        kinds.resize(2048, RegionKind::Hole);
        let survey = Survey { kinds, nr_contiguous_1g: 0, nr_owned: 0 };
        let drawing = draw("g", &[("fresh", &survey)]);
        assert_eq!(drawing.matches("#2e8b57").count(), 40 + 1);
        assert_eq!(drawing.matches("stroke-width").count(), 2 * COLUMNS + 4);
    }
}
