//! `wrenn template`: building, warming, listing and removing the images that sandboxes start from.
//!
//! Building and listing go on the images themselves, with or without an agent. Warm images are an agent's, and who starts
//! from a template that is removed only an agent knows: the other verbs need one. With a server all of it is the server's.

mod progress;
mod show;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use wrenn_agent::host_agent::{AgentError, HostAgent, TemplateView, WarmView};
use wrenn_agent::instance::Instance;
use wrenn_engine::image::Recipe;

use crate::EXIT_FAILED;
use crate::cli::{TemplateVerb, WarmArgs};
use crate::host::open_images;
use crate::place::Place;
use crate::remote::RestAgent;
use crate::sandbox::{Link, block_on, find};
use crate::words::short;

/// Does one of the verbs.
pub fn run(place: &Place, verb: TemplateVerb) -> Result<ExitCode> {
    if place.server().is_none() {
        // Makes the folder as private as it has to be, before anything is put into it.
        Instance::open(&place.dir)?;
    }
    block_on(async {
        match verb {
            TemplateVerb::Build { name, refresh, json } => match place.server() {
                Some(client) => build_there(&RestAgent::new(client.clone()), name.parse()?, refresh, json).await,
                None => build(&place.dir, name.parse()?, refresh, json).await,
            },
            TemplateVerb::Ls { json } if place.server().is_some() => {
                list_there(&Link::require(place).await?, json).await
            }
            TemplateVerb::Ls { json } => list(place, json).await,
            TemplateVerb::Warm(args) => warm(&Link::require(place).await?, args).await,
            TemplateVerb::Rm { names, json } => remove(&Link::require(place).await?, &names, json).await,
            TemplateVerb::FromSnapshot { snapshot, name, json } => {
                from_snapshot(&Link::require(place).await?, &snapshot, &name, json).await
            }
        }
    })
}

async fn build_there(agent: &RestAgent, recipe: Recipe, refresh: bool, json: bool) -> Result<ExitCode> {
    if refresh {
        bail!("a server builds from what its host has; leave --refresh out");
    }
    let reporter = progress::reporter();
    let made = agent.build_template(recipe.name(), Arc::new(move |line: &str| reporter.report(line, 0, 0))).await?;
    if json {
        println!("{}", json!({ "template": show::view_json(&made) }));
    } else {
        println!("template {} is ready ({})", made.name, short(&made.id));
    }
    Ok(ExitCode::SUCCESS)
}

async fn list_there(link: &Link, json: bool) -> Result<ExitCode> {
    let templates = link.agent().templates().await?;
    if json {
        println!("{}", json!({ "templates": templates.iter().map(show::view_json).collect::<Value>() }));
    } else {
        print!("{}", show::table(&templates.iter().map(show::view_row).collect::<Vec<_>>()));
    }
    Ok(ExitCode::SUCCESS)
}

async fn build(dir: &Path, recipe: Recipe, refresh: bool, json: bool) -> Result<ExitCode> {
    let images = open_images(dir)?;
    let reporter = progress::reporter();
    let kernel = images.prepare_kernel(refresh, Arc::clone(&reporter)).await?;
    let template = images.build_template(recipe, refresh, reporter).await?;
    if json {
        let described = show::built_json(&template)?;
        println!("{}", json!({ "template": described, "kernel": kernel.release, "kernel_id": kernel.id }));
    } else {
        println!("template {} is ready ({}), with kernel {}", template.name, short(&template.id), kernel.release);
    }
    Ok(ExitCode::SUCCESS)
}

/// The images say what there is; an agent, if one runs, what of it is warm.
async fn list(place: &Place, json: bool) -> Result<ExitCode> {
    let templates = open_images(&place.dir)?.templates()?;
    let told = match find(place).await? {
        Some(link) => Some(link.agent().templates().await?),
        None => None,
    };
    let warm_of = |id: &str| -> Option<&[WarmView]> {
        let told = told.as_ref()?.iter().find(|view| view.id == id);
        Some(told.map_or(&[], |view| &view.warm))
    };
    if json {
        let all = templates.iter().map(|template| show::json(template, warm_of(&template.id)));
        println!("{}", json!({ "templates": all.collect::<Result<Vec<Value>>>()? }));
    } else {
        let rows = templates.iter().map(|template| show::row(template, warm_of(&template.id)));
        print!("{}", show::table(&rows.collect::<Result<Vec<_>>>()?));
    }
    Ok(ExitCode::SUCCESS)
}

async fn warm(link: &Link, args: WarmArgs) -> Result<ExitCode> {
    let fresh = args.size.fresh(&args.name, false)?;
    let warmed = link.agent().warm(fresh, args.size.boot_timeout).await?;
    if args.json {
        println!("{}", show::warmed_json(&args.name, &warmed));
    } else {
        println!("{}", show::warmed_sentence(&args.name, &warmed));
    }
    Ok(ExitCode::SUCCESS)
}

/// All of them are tried, whatever becomes of one.
async fn remove(link: &Link, names: &[String], json: bool) -> Result<ExitCode> {
    let mut answers = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for name in names {
        let answer = link.agent().remove_template(name).await;
        if answer.is_err() {
            code = ExitCode::from(EXIT_FAILED);
        }
        match answer {
            answer if json => answers.push(removed_json(name, &answer)),
            Ok(removed) => println!("template {} is removed ({})", removed.name, short(&removed.id)),
            Err(error) => eprintln!("wrenn: {error}"),
        }
    }
    if json {
        println!("{}", Value::from(answers));
    }
    Ok(code)
}

fn removed_json(name: &str, answer: &Result<TemplateView, AgentError>) -> Value {
    match answer {
        Ok(view) => json!({ "asked": name, "id": view.id, "name": view.name, "error": null }),
        Err(error) => {
            json!({ "asked": name, "id": null, "name": null, "error": { "code": error.code, "message": error.message } })
        }
    }
}

async fn from_snapshot(link: &Link, snapshot: &str, name: &str, json: bool) -> Result<ExitCode> {
    let made = link.agent().template_from_snapshot(snapshot, name).await?;
    if json {
        println!("{}", show::view_json(&made));
    } else {
        println!("template {} is ready ({}), from snapshot {snapshot}", made.name, short(&made.id));
    }
    Ok(ExitCode::SUCCESS)
}
