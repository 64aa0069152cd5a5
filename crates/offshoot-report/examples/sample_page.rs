//! Writes a page of a made-up family, to look at: `cargo run --example sample_page -- PATH [vit|language|resnet|line|one|bare]`.

#[path = "../tests/synthetic/mod.rs"]
mod synthetic;

use offshoot_report::{RunFacts, render};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("where to? give a path")?;
    let (catalog, run) = match arguments.next().as_deref() {
        Some("language") => (synthetic::language_family(), synthetic::language_facts()),
        Some("resnet") => (
            synthetic::resnet_family(),
            RunFacts {
                title: "Three axes".into(),
                ..RunFacts::default()
            },
        ),
        Some("line") => (
            synthetic::line_family(4),
            RunFacts {
                title: "One axis".into(),
                ..RunFacts::default()
            },
        ),
        Some("one") => (
            synthetic::line_family(1),
            RunFacts {
                title: "One child".into(),
                ..RunFacts::default()
            },
        ),
        Some("bare") => {
            let mut catalog = synthetic::vit_family();
            catalog.children.iter_mut().for_each(|child| child.scorecards.clear());
            (catalog, RunFacts::default())
        }
        _ => (synthetic::vit_family(), synthetic::facts()),
    };
    std::fs::write(path, render(&catalog, &run)?)?;
    Ok(())
}
