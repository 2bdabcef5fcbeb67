//! Templates as they are printed: aligned tables for people, JSON for programs.

use anyhow::Result;
use serde_json::{Value, json};
use wrenn_agent::host_agent::{TemplateView, WarmView, Warmed};
use wrenn_engine::image::Template;
use wrenn_engine::storage::allocated_bytes;

use crate::words::{bytes, columns, millis, printable_line, short, timings_json};

const HEAD: [&str; 7] = ["NAME", "ID", "SIZE", "ON DISK", "WARM", "WARM ON DISK", "CREATED"];

/// Templates, a line each.
pub fn table(rows: &[[String; HEAD.len()]]) -> String {
    columns(HEAD, rows)
}

/// A template's line; its warm images are not known without an agent.
pub fn row(template: &Template, warm: Option<&[WarmView]>) -> Result<[String; HEAD.len()]> {
    let unknown = || "?".to_owned();
    Ok([
        printable_line(&template.name),
        short(&template.id),
        bytes(template.size_bytes),
        bytes(allocated_bytes(&template.rootfs)?),
        warm.map_or_else(unknown, |warm| warm.len().to_string()),
        warm.map_or_else(unknown, |warm| bytes(warm.iter().map(|image| image.own_bytes).sum())),
        printable_line(&template.created),
    ])
}

/// The line of a template that an agent tells of.
pub fn view_row(view: &TemplateView) -> [String; HEAD.len()] {
    [
        printable_line(&view.name),
        short(&view.id),
        bytes(view.size_bytes),
        bytes(view.own_bytes),
        view.warm.len().to_string(),
        bytes(view.warm.iter().map(|image| image.own_bytes).sum()),
        printable_line(&view.created),
    ]
}

/// A template's image, for programs.
pub fn built_json(template: &Template) -> Result<Value> {
    Ok(json!({
        "id": template.id,
        "name": template.name,
        "size_bytes": template.size_bytes,
        "allocated_bytes": allocated_bytes(&template.rootfs)?,
        "sha256": template.sha256,
        "created": template.created,
    }))
}

/// The same with its warm images; `null` when no agent tells of them.
pub fn json(template: &Template, warm: Option<&[WarmView]>) -> Result<Value> {
    let mut value = built_json(template)?;
    value["warm"] = warm.map_or(Value::Null, |warm| warm.iter().map(warm_json).collect());
    Ok(value)
}

/// A template as an agent tells of it, for programs.
pub fn view_json(view: &TemplateView) -> Value {
    json!({
        "id": view.id,
        "name": view.name,
        "size_bytes": view.size_bytes,
        "allocated_bytes": view.own_bytes,
        "created": view.created,
        "warm": view.warm.iter().map(warm_json).collect::<Value>(),
    })
}

fn warm_json(warm: &WarmView) -> Value {
    json!({
        "key": warm.key,
        "vcpus": warm.vcpus,
        "memory_mib": warm.memory,
        "disk_mib": warm.disk,
        "kernel": warm.kernel,
        "vmm": warm.vmm,
        "own_bytes": warm.own_bytes,
    })
}

/// A warm image that is there now, for programs.
pub fn warmed_json(template: &str, warmed: &Warmed) -> Value {
    let mut value = warm_json(&warmed.view);
    value["template"] = template.into();
    value["made"] = warmed.made.into();
    value["timings_ms"] = timings_json(&warmed.timings);
    value
}

/// A warm image that is there now, in a sentence.
pub fn warmed_sentence(template: &str, warmed: &Warmed) -> String {
    let view = &warmed.view;
    let cpus = if view.vcpus == 1 { "1 vCPU".to_owned() } else { format!("{} vCPUs", view.vcpus) };
    let size = format!("{cpus}, {} of memory, {} of disk", view.memory, view.disk);
    let took: std::time::Duration = warmed.timings.iter().map(|timing| timing.took).sum();
    let how = if warmed.made { format!("made in {:.0} ms", millis(took)) } else { "it was there".to_owned() };
    format!("template {template} is warm for {size} ({how}; {} on disk)", bytes(view.own_bytes))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wrenn_agent::sandbox::Timing;
    use wrenn_engine::units::Mib;
    use wrenn_engine::vmm::{Accel, Description, DriverKind};

    use super::*;

    fn warm(vcpus: u32) -> WarmView {
        WarmView {
            key: "abc".to_owned(),
            vcpus,
            memory: Mib(256),
            disk: Mib(64),
            kernel: "6.12.9".to_owned(),
            vmm: Description { driver: DriverKind::Qemu, version: "10.0.2".to_owned(), accel: Accel::Tcg },
            own_bytes: 5 << 20,
        }
    }

    fn template(dir: &tempfile::TempDir) -> Template {
        let rootfs = dir.path().join("rootfs.ext4");
        std::fs::write(&rootfs, "").unwrap();
        Template {
            id: "0123456789abcdef".to_owned(),
            name: "minimal".to_owned(),
            rootfs,
            size_bytes: 64 << 20,
            sha256: "beef".to_owned(),
            created: "2026-01-02T03:04:05Z".to_owned(),
        }
    }

    #[test]
    fn templates_are_a_line_each() {
        let dir = tempfile::tempdir().unwrap();
        let template = template(&dir);
        let rows = [row(&template, Some(&[warm(1), warm(2)])).unwrap(), row(&template, None).unwrap()];
        assert_eq!(
            format!("\n{}", table(&rows)),
            "
NAME     ID            SIZE      ON DISK  WARM  WARM ON DISK  CREATED
minimal  0123456789ab  64.0 MiB  0 B      2     10.0 MiB      2026-01-02T03:04:05Z
minimal  0123456789ab  64.0 MiB  0 B      ?     ?             2026-01-02T03:04:05Z
"
        );
    }

    #[test]
    fn templates_of_an_agent_are_the_same_line() {
        let view = TemplateView {
            id: "0123456789abcdef".to_owned(),
            name: "minimal".to_owned(),
            created: "2026-01-02T03:04:05Z".to_owned(),
            size_bytes: 64 << 20,
            own_bytes: 0,
            warm: vec![warm(1), warm(2)],
        };
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(view_row(&view), row(&template(&dir), Some(&view.warm)).unwrap());
    }

    #[test]
    fn programs_can_tell_no_warm_images_from_none_known() {
        let dir = tempfile::tempdir().unwrap();
        let template = template(&dir);
        assert_eq!(json(&template, None).unwrap()["warm"], Value::Null);
        assert_eq!(json(&template, Some(&[])).unwrap()["warm"], json!([]));
        let told = json(&template, Some(&[warm(1)])).unwrap();
        assert_eq!((&told["warm"][0]["key"], &told["warm"][0]["memory_mib"]), (&json!("abc"), &json!(256)));
        assert_eq!((&told["id"], &told["sha256"]), (&json!("0123456789abcdef"), &json!("beef")));
    }

    #[test]
    fn a_warm_image_says_whether_it_was_made() {
        let timings = vec![Timing { phase: "boot".into(), took: Duration::from_millis(1234) }];
        let made = Warmed { view: warm(1), made: true, timings };
        assert_eq!(
            warmed_sentence("minimal", &made),
            "template minimal is warm for 1 vCPU, 256 MiB of memory, 64 MiB of disk (made in 1234 ms; 5.0 MiB on disk)"
        );
        let value = warmed_json("minimal", &made);
        assert_eq!((&value["template"], &value["made"]), (&json!("minimal"), &json!(true)));
        assert_eq!(value["timings_ms"], json!({ "boot": 1234.0 }));
        let there = Warmed { view: warm(2), made: false, timings: Vec::new() };
        assert!(warmed_sentence("base", &there).contains("2 vCPUs, 256 MiB of memory, 64 MiB of disk (it was there;"));
    }
}
