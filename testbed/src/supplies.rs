//! What a job needs from this host, as a disk made for one run.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result};
use wrenn_testbed_runner::{Bind, JOB_FILE, Job};

use crate::host_image::make_disk;

/// Room on the disk beyond what is on it: tests make their own disks there.
const FREE_MIB: u64 = 6144;

/// A file or folder here, and an absolute path there; or the other way round for what is brought back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Supply {
    /// Where it comes from.
    pub source: PathBuf,
    /// Where it goes.
    pub target: PathBuf,
}

impl FromStr for Supply {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (source, target) = text.split_once('=').ok_or_else(|| format!("`{text}` is not SOURCE=TARGET"))?;
        let supply = Self { source: source.into(), target: target.into() };
        if !supply.source.is_absolute() || !supply.target.is_absolute() {
            return Err(format!("`{text}`: both paths have to be absolute"));
        }
        Ok(supply)
    }
}

/// Everything a job brings along.
#[derive(Clone, Debug, Default)]
pub struct Supplies {
    /// Files and folders of this host.
    pub puts: Vec<Supply>,
    /// Folders there that are one mount, with all that is put below them: within one, files can be linked and renamed.
    pub volumes: Vec<PathBuf>,
}

impl Supplies {
    /// Where on the disk what belongs at `target` is, and the path there that has to be mounted for it.
    fn place(&self, number: usize, target: &Path) -> (PathBuf, PathBuf) {
        let volume = self.volumes.iter().enumerate().find_map(|(index, volume)| {
            let below = target.strip_prefix(volume).ok()?;
            Some((PathBuf::from(format!("volume{index}")).join(below), volume.clone()))
        });
        volume.unwrap_or_else(|| (number.to_string().into(), target.to_owned()))
    }

    /// What of the disk appears where; parents first, so that nothing is covered by what comes later.
    pub fn binds(&self) -> Vec<Bind> {
        let volumes = self.volumes.iter().enumerate();
        let mut binds: Vec<Bind> =
            volumes.map(|(index, volume)| Bind { from: format!("volume{index}").into(), to: volume.clone() }).collect();
        for (number, put) in self.puts.iter().enumerate() {
            let (from, to) = self.place(number, &put.target);
            if to == put.target && !self.volumes.contains(&to) {
                binds.push(Bind { from, to });
            }
        }
        binds.sort_by(|a, b| a.to.cmp(&b.to));
        binds
    }

    /// Makes the disk in `work`.
    pub async fn disk(&self, work: &Path, job: &Job) -> Result<PathBuf> {
        let tree = work.join("supplies");
        fs::create_dir(&tree)?;
        for index in 0..self.volumes.len() {
            fs::create_dir(tree.join(format!("volume{index}")))?;
        }
        for (number, put) in self.puts.iter().enumerate() {
            let place = tree.join(self.place(number, &put.target).0);
            let folder = place.parent().context("a supply without a place")?;
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            stage(&put.source, &place)?;
        }
        fs::write(tree.join(JOB_FILE), serde_json::to_vec_pretty(job)?)?;
        let image = work.join("supplies.img");
        make_disk(&tree, &image, FREE_MIB).await?;
        fs::remove_dir_all(&tree)?;
        Ok(image)
    }
}

/// Hard links where they can be had: nothing is copied twice. Sockets and the like are left out.
fn stage(from: &Path, to: &Path) -> Result<()> {
    let metadata = fs::symlink_metadata(from).with_context(|| format!("cannot find {}", from.display()))?;
    let (kind, failed) = (metadata.file_type(), || format!("cannot stage {}", from.display()));
    if kind.is_dir() {
        // Something that belongs below may have been put there before.
        fs::create_dir_all(to).with_context(failed)?;
        fs::set_permissions(to, metadata.permissions()).with_context(failed)?;
        for entry in fs::read_dir(from).with_context(failed)? {
            let entry = entry.with_context(failed)?;
            stage(&entry.path(), &to.join(entry.file_name()))?;
        }
    } else if kind.is_symlink() {
        symlink(fs::read_link(from).with_context(failed)?, to).with_context(failed)?;
    } else if kind.is_file() && fs::hard_link(from, to).is_err() {
        fs::copy(from, to).with_context(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_into_a_volume_is_part_of_its_one_mount() {
        let puts = ["/x/bin=/w/target/bin", "/x=/w/crates", "/y=/etc/y"].map(|text| text.parse().unwrap()).to_vec();
        let supplies = Supplies { puts, volumes: vec!["/w".into()] };
        let binds = supplies.binds();
        let shown: Vec<_> = binds.iter().map(|bind| format!("{}:{}", bind.from.display(), bind.to.display())).collect();
        assert_eq!(shown, ["2:/etc/y", "volume0:/w"]);
        assert_eq!(supplies.place(0, Path::new("/w/target/bin")).0, Path::new("volume0/target/bin"));
    }

    #[test]
    fn paths_have_to_be_absolute() {
        for wrong in ["/x", "x=/y", "/x=y"] {
            assert!(wrong.parse::<Supply>().is_err(), "{wrong}");
        }
    }
}
