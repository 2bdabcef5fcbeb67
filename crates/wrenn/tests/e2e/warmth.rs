//! Warm images that the tests of one stack share: booting a guest is the dearest thing that most of them would do.
//!
//! An instance makes them as anybody's does. With its key, which the captured guests know, any other can start from them.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::world::{Stack, World, link_tree, prepared_images};

/// Memory of the sandboxes that tests start, in MiB: the default, and what is enough for most.
const SIZES: [&str; 2] = ["256", "128"];
const IMAGES: &str = "warm";
const KEY: &str = "agent.key";
/// What the images were made by; written last.
const MAKER: &str = "maker";

/// Gives the instance in `dir`, which was not opened yet, the warm images, made by the first test that wants them.
pub fn share(dir: &Path) {
    let shared = shared();
    fs::create_dir_all(&shared).unwrap();
    let one_makes_them = File::create(shared.join("lock")).unwrap();
    flock(&one_makes_them, FlockOperation::LockExclusive).unwrap();
    let maker = maker();
    if fs::read_to_string(shared.join(MAKER)).ok() != Some(maker.clone()) {
        make(&shared);
        fs::write(shared.join(MAKER), maker).unwrap();
    }
    fs::copy(shared.join(KEY), dir.join(KEY)).unwrap();
    for image in fs::read_dir(shared.join(IMAGES)).unwrap().map(Result::unwrap) {
        // Its locks are every instance's own.
        if image.file_type().unwrap().is_dir() {
            link_tree(&image.path(), &dir.join(IMAGES).join(image.file_name()));
        }
    }
}

/// Beside the other images.
fn shared() -> PathBuf {
    let Stack { vmm, accel, storage } = Stack::of_this_run();
    prepared_images().join(format!("warm-{vmm}-{accel}-{storage}"))
}

/// Another build makes its own.
fn maker() -> String {
    let program = fs::metadata(env!("CARGO_BIN_EXE_wrenn")).unwrap();
    format!("{}.{:09}", program.mtime(), program.mtime_nsec())
}

fn make(shared: &Path) {
    let world = World::cold();
    let agent = world.agent(&[]);
    for size in SIZES {
        let warmed = world.json(&["template", "warm", "minimal", "--memory", size]);
        assert_eq!(warmed["made"], true, "{warmed}: {}", world.agent_words());
    }
    agent.stop();
    let images = shared.join(IMAGES);
    if images.exists() {
        fs::remove_dir_all(&images).unwrap();
    }
    fs::rename(world.dir().join(IMAGES), &images).unwrap();
    fs::copy(world.dir().join(KEY), shared.join(KEY)).unwrap();
    world.finish_agent();
}
