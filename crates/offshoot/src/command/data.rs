//! `offshoot data`: what a data set holds, and a sheet of its augmented crops.

use anyhow::Context;
use offshoot_data::sheet::{contact_sheet, write_png};
use offshoot_data::{BlockMasks, CropSpec, Dataset, Labels, LoaderConfig, MultiCrop, SplitShares, Summary, summarize};
use offshoot_methods::elastic::pretrain::loader_config;
use offshoot_methods::elastic::recipe::ElasticRecipe;

use super::pretrain::{facts, read_recipe};
use crate::args::Data;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::terminal::{complain, say};

/// Classes that are listed one by one.
const LISTED: usize = 20;
/// Damaged images that are named.
const NAMED: usize = 10;

/// Runs the command.
pub fn run(args: &Data) -> Result<(), Failure> {
    let labels = if args.labels { Labels::Use } else { Labels::Ignore };
    let source = offshoot_data::open(&args.path, labels)?;
    let count = source.len() as u64;
    let progress = std::cell::RefCell::new(Progress::new("reading", 0, count, "images"));
    let summary = summarize(source.as_ref(), Some(&|done| progress.borrow_mut().at(done as u64, "")));
    progress.borrow().finish();
    if args.json {
        say(&serde_json::to_string_pretty(&summary)?)?;
    } else {
        print(&summary)?;
    }
    if args.rows > 0 {
        let config = config(args, &summary)?;
        let sheet = contact_sheet(source.as_ref(), &config, args.rows, args.seed)?;
        if let Some(folder) = args.sheet.parent() {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        write_png(&sheet, &args.sheet)?;
        complain(&format!(
            "wrote {}: original, two global crops (masked patches shaded), local crops",
            args.sheet.display()
        ));
    }
    Ok(())
}

fn print(summary: &Summary) -> Result<(), Failure> {
    let mut lines = vec![format!("{} images ({})", summary.count, summary.kind)];
    if let Some(sizes) = &summary.sizes {
        let side = |(w, h): (u32, u32)| format!("{w}x{h}");
        let (min, median, max) = (side(sizes.min), side(sizes.median), side(sizes.max));
        lines.push(match sizes.distinct {
            1 => format!("size {min}"),
            n => format!("sizes {min} to {max}, median {median}, {n} different"),
        });
    }
    lines.push(format!("{} grey, {} colour", summary.grey, summary.colour));
    match summary.classes.len() {
        0 => lines.push("no labels used (--labels uses class folders, label files or columns)".into()),
        n if n <= LISTED => {
            let each: Vec<String> = summary
                .classes
                .iter()
                .map(|(name, count)| format!("{name} {count}"))
                .collect();
            lines.push(format!("{n} classes: {}", each.join(", ")));
        }
        n => {
            let counts = summary.classes.iter().map(|(_, count)| *count);
            let (min, max) = (counts.clone().min().unwrap_or(0), counts.max().unwrap_or(0));
            lines.push(format!("{n} classes of {min} to {max} images"));
        }
    }
    for (count, what) in [
        (summary.duplicates, "duplicates"),
        (summary.skipped, "other files skipped"),
    ] {
        if count > 0 {
            lines.push(format!("{count} {what}"));
        }
    }
    if !summary.damaged.is_empty() {
        lines.push(format!("{} damaged:", summary.damaged.len()));
        lines.extend(
            summary
                .damaged
                .iter()
                .take(NAMED)
                .map(|(name, reason)| format!("  {name}: {reason}")),
        );
    }
    lines.push(format!("fingerprint {}", summary.fingerprint));
    say(&lines.join("\n"))?;
    Ok(())
}

/// Crops and masks of the sheet: the recipe's, or ones in POA's proportions that suit the median image.
fn config(args: &Data, summary: &Summary) -> Result<LoaderConfig, Failure> {
    if let Some(path) = &args.recipe {
        let mut recipe: ElasticRecipe = read_recipe(path, &[])?;
        let shares = SplitShares {
            val: recipe.data.val,
            test: recipe.data.test,
        };
        let dataset = Dataset::open(&args.path, Labels::Ignore, recipe.seed, shares)?;
        recipe.resolve(Some(&facts(&dataset)?), 1)?;
        return Ok(loader_config(&recipe));
    }
    let side = summary
        .sizes
        .as_ref()
        .map_or(224, |s| s.median.0.min(s.median.1))
        .clamp(16, 224);
    let patch = (side / 14).max(2);
    let global = side / patch * patch;
    let local = (global * 3 / 7 / patch).max(1) * patch;
    let default = MultiCrop::default();
    let channels = if summary.colour == 0 { 1 } else { 3 };
    Ok(LoaderConfig {
        crops: MultiCrop {
            globals: CropSpec {
                px: global,
                ..default.globals
            },
            locals: CropSpec {
                px: local,
                ..default.locals
            },
            channels,
            mean: vec![0.5],
            std: vec![0.25],
            ..default
        },
        masks: Some(BlockMasks {
            grid: ((global / patch) as usize, (global / patch) as usize),
            ..BlockMasks::default()
        }),
        seed: args.seed,
        ..LoaderConfig::default()
    })
}
