//! `wrenn template`: building and listing the images that sandboxes start from.

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use wrenn_agent::instance::Instance;
use wrenn_engine::image::{Progress, Recipe, Reporter, Template};
use wrenn_engine::storage::allocated_bytes;

use crate::cli::TemplateVerb;
use crate::host::open_images;

/// Does one of the verbs.
pub fn run(dir: &Path, verb: TemplateVerb) -> Result<ExitCode> {
    // Makes the folder as private as it has to be, before anything is put into it.
    Instance::open(dir)?;
    match verb {
        TemplateVerb::Build { name, refresh, json } => build(dir, name.parse()?, refresh, json),
        TemplateVerb::Ls { json } => list(dir, json),
    }
}

fn build(dir: &Path, recipe: Recipe, refresh: bool, json: bool) -> Result<ExitCode> {
    let images = open_images(dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let reporter = reporter();
    let (kernel, template) = runtime.block_on(async {
        let kernel = images.prepare_kernel(refresh, Arc::clone(&reporter)).await?;
        let template = images.build_template(recipe, refresh, reporter).await?;
        anyhow::Ok((kernel, template))
    })?;
    if json {
        println!("{}", json!({ "template": describe(&template)?, "kernel": kernel.release, "kernel_id": kernel.id }));
    } else {
        println!("template {} is ready ({}), with kernel {}", template.name, short(&template.id), kernel.release);
    }
    Ok(ExitCode::SUCCESS)
}

fn list(dir: &Path, json: bool) -> Result<ExitCode> {
    let templates = open_images(dir)?.templates()?;
    if json {
        let all = templates.iter().map(describe).collect::<Result<Vec<Value>>>()?;
        println!("{}", json!({ "templates": all }));
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:<12} {:<14} {:>9} {:>9}  CREATED", "NAME", "ID", "SIZE", "ON DISK");
    for template in &templates {
        let on_disk = allocated_bytes(&template.rootfs)?;
        println!(
            "{:<12} {:<14} {:>5} MiB {:>5} MiB  {}",
            template.name,
            short(&template.id),
            template.size_bytes >> 20,
            on_disk.div_ceil(1 << 20),
            template.created
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(template: &Template) -> Result<Value> {
    Ok(json!({
        "id": template.id,
        "name": template.name,
        "size_bytes": template.size_bytes,
        "allocated_bytes": allocated_bytes(&template.rootfs)?,
        "sha256": template.sha256,
        "created": template.created,
    }))
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// A bar on a terminal, a line per step elsewhere; on stderr either way.
fn reporter() -> Reporter {
    if std::io::stderr().is_terminal() { Arc::new(Bar::new()) } else { Arc::new(Lines::default()) }
}

struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("{msg:40} {wide_bar} {percent:>3} %  {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self(bar)
    }
}

impl Progress for Bar {
    fn report(&self, step: &str, done: u64, total: u64) {
        self.0.set_message(step.to_owned());
        self.0.set_length(total.max(1));
        self.0.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[derive(Default)]
struct Lines {
    last: Mutex<String>,
}

impl Progress for Lines {
    fn report(&self, step: &str, _done: u64, _total: u64) {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *last != step {
            step.clone_into(&mut last);
            eprintln!("{step} ...");
        }
    }
}
